"""Concurrent callers: each thread and coroutine gets the answers of its own task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from piggyback.errors import UnknownTaskError
from piggyback.model.multitask import MultiTaskModel
from support.nets import Tiny, assert_same_state, learn, seeded, state_of

CALLS = 10_000
NAMES = ("a", "b", "c", None)


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    torch.manual_seed(0)
    made = MultiTaskModel(seeded(Tiny))
    for name, classes in (("a", 3), ("b", 2), ("c", 3)):
        learn(made, name, torch.randn(4, 6), classes)
    made.set_task(None)
    return made


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 6)


@pytest.fixture(scope="module")
def answers(model: MultiTaskModel, inputs: Tensor) -> dict[str | None, Tensor]:
    with torch.no_grad():
        found = {name: model(inputs, task=name) for name in NAMES}
    assert not torch.equal(found["a"], found["c"])
    return found


def by_argument(model, x, name):
    return model(x, task=name)


def by_set_task(model, x, name):
    model.set_task(name)
    return model(x)


def by_with(model, x, name):
    with model.use_task(name) as chosen:
        return chosen(x)


def in_threads(work: Callable[[int], None], threads: int = 8) -> None:
    """Run ``work`` in threads that begin at once, and raise what any of them raised."""
    barrier = threading.Barrier(threads)

    def run(index: int) -> None:
        barrier.wait()
        with torch.no_grad():
            work(index)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, i) for i in range(threads)]:
            future.result()


@pytest.mark.parametrize("ask", [by_argument, by_set_task, by_with])
def test_threads_get_the_answers_of_their_own_task(model, inputs, answers, ask):
    def work(index: int) -> None:
        for call in range(CALLS // 3 // 8 + 1):
            name = NAMES[(index * 7 + call) % len(NAMES)]
            assert torch.equal(ask(model, inputs, name), answers[name])

    in_threads(work)
    assert model.active_task is None, "what other threads chose is not this thread's"
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Tiny)))


def test_a_thread_that_never_chose_follows_set_task_of_the_models_own_thread(
    model, inputs, answers
):
    def ask() -> Tensor:
        with torch.no_grad():
            return model(inputs)

    def elsewhere(work):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    model.set_task("a")
    assert torch.equal(elsewhere(ask), answers["a"])
    with model.use_task("b"):
        assert torch.equal(elsewhere(ask), answers["a"]), "a with block is its caller's alone"
    elsewhere(lambda: model.set_task("c"))
    assert torch.equal(ask(), answers["a"])
    model.set_task(None)
    assert torch.equal(elsewhere(ask), answers[None])


def test_coroutines_get_the_answers_of_their_own_task(model, inputs, answers):
    async def ask(index: int) -> None:
        own, other = NAMES[index % 4], NAMES[index // 4 % 4]
        with model.use_task(own):
            for _ in range(20):
                await asyncio.sleep(0)
                assert torch.equal(model(inputs), answers[own])
                with model.use_task(other):
                    await asyncio.sleep(0)
                    assert torch.equal(model(inputs), answers[other])
                assert torch.equal(await asyncio.to_thread(model, inputs), answers[own])

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(i) for i in range(16)))

    with torch.no_grad():
        asyncio.run(all_of_them())
    assert model.active_task is None


def test_a_task_deleted_by_another_thread_is_an_error_for_those_who_chose_it(model, inputs):
    model.add_task(model.get_task("a").renamed("gone"))
    chosen, deleted = threading.Event(), threading.Event()

    def work() -> str:
        model.set_task("gone")
        chosen.set()
        assert deleted.wait(60)
        with pytest.raises(UnknownTaskError, match="'gone'"):
            model(inputs)
        model.set_task("b")
        return str(model.active_task)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        assert chosen.wait(60)
        model.delete_task("gone")
        deleted.set()
        assert future.result() == "b"


def test_tasks_come_and_go_while_others_answer(model, inputs, answers):
    task = model.get_task("a")

    def work(index: int) -> None:
        if index:
            for call in range(200):
                name = NAMES[(index + call) % 4]
                assert torch.equal(model(inputs, task=name), answers[name])
            return
        for round_ in range(50):
            name = f"new{round_}"
            model.add_task(task.renamed(name))
            assert torch.equal(model(inputs, task=name), answers["a"])
            model.delete_task(name)

    in_threads(work, threads=4)
    assert model.task_names == ("a", "b", "c")


def test_models_do_not_share_choices(inputs):
    one, two = MultiTaskModel(seeded(Tiny)), MultiTaskModel(seeded(Tiny))
    learn(one, "a", torch.randn(4, 6))
    assert (one.active_task, two.active_task) == ("a", None)
    with one.use_task(None):
        assert torch.equal(one(inputs), two(inputs))
        assert one.active_task is None
    assert one.active_task == "a"
