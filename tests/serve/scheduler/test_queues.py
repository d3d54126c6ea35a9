"""Batches are of one task, in order; switches are few while there is time; nobody starves."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from piggyback.serve.scheduler.queues import Queues

BATCH, PATIENCE = 4, 10.0


@dataclass(eq=False)
class Item:
    task: str
    arrived: float


def queues_with(*items: tuple[str, float]) -> Queues:
    queues = Queues(BATCH, PATIENCE)
    for task, arrived in items:
        queues.add(task, Item(task, arrived))
    return queues


def nothing_live(task: str) -> bool:
    return False


def test_a_batch_is_one_task_in_order_of_arrival_and_not_larger_than_asked():
    queues = queues_with(*[("a", t) for t in range(6)], ("b", 6))
    taken = [queues.take(7, nothing_live) for _ in range(3)]
    assert [(task, [i.arrived for i in batch]) for task, batch in taken if batch] == [
        ("a", [0, 1, 2, 3]),
        ("a", [4, 5]),
        ("b", [6]),
    ]
    assert queues.take(7, nothing_live) is None
    assert len(queues) == 0


def test_while_nobody_has_waited_long_live_tasks_go_first_then_long_queues():
    queues = queues_with(("old", 0), ("live", 1), ("long", 2), ("long", 3))
    order = [queues.take(4, lambda task: task == "live") for _ in range(3)]
    assert [task for task, _ in order] == ["live", "long", "old"]


def test_whoever_has_waited_for_patience_goes_first():
    queues = queues_with(("old", 0), *[("busy", t) for t in range(1, 9)])
    assert queues.take(PATIENCE - 0.01, lambda task: task == "busy")[0] == "busy"
    assert queues.take(PATIENCE, lambda task: task == "busy")[0] == "old"


def test_parked_tasks_wait_until_they_are_ready():
    queues = queues_with(("here", 5))
    queues.add("away", Item("away", 0), parked=True)
    queues.add("away", Item("away", 1))
    assert queues.has("away")
    assert len(queues) == 3
    assert queues.take(100, nothing_live)[0] == "here"
    assert queues.take(100, nothing_live) is None
    assert [item.arrived for item in queues.ready("away")] == [0, 1]
    assert [item.arrived for item in queues.take(100, nothing_live)[1]] == [0, 1]


def test_a_request_that_finds_its_task_gone_again_parks_those_before_it_too():
    queues = queues_with(("a", 1))
    queues.add("a", Item("a", 2), parked=True)
    assert queues.take(50, nothing_live) is None
    queues.ready("a")
    assert [item.arrived for item in queues.take(50, nothing_live)[1]] == [1, 2]
    assert len(queues) == 0


def test_a_batch_that_is_put_back_keeps_its_place():
    queues = queues_with(*[("a", t) for t in range(6)])
    task, batch = queues.take(6, nothing_live)
    queues.put_back(task, batch)
    queues.add("a", Item("a", 7))
    assert queues.take(8, nothing_live) is None
    assert [item.arrived for item in queues.ready("a")] == [0, 1, 2, 3, 4, 5, 7]
    assert len(queues) == 7


@pytest.mark.parametrize("parked", [False, True])
def test_a_request_that_is_discarded_is_not_taken(parked):
    queues = Queues(BATCH, PATIENCE)
    first, second = Item("a", 0), Item("a", 1)
    queues.add("a", first, parked=parked)
    queues.add("a", second)
    queues.discard("a", first)
    queues.discard("a", first)
    queues.ready("a")
    assert len(queues) == 1
    assert queues.take(50, nothing_live) == ("a", [second])
    assert not queues.has("a")


def test_dropping_a_task_returns_all_that_waits():
    queues = queues_with(("a", 0), ("b", 1), ("a", 2))
    assert [item.arrived for item in queues.drop("a")] == [0, 2]
    assert len(queues) == 1
    assert queues.take(50, nothing_live)[0] == "b"


def test_the_bound_on_waiting_holds_under_any_traffic():
    """One worker, a batch a second, twice as many requests as it can take, most for a task that is always live.

    A request that has waited for patience is passed by none that came after it, but for those that ride in the
    batch of one that came before: see ``queues.py``.
    """
    rng = random.Random(3)
    queues = Queues(BATCH, PATIENCE)
    waiting: dict[Item, float] = {}
    now, checked = 0.0, 0
    for _ in range(2000):
        for _ in range(2 * BATCH if len(queues) < 60 else 0):
            item = Item("busy" if rng.random() < 0.8 else f"task {rng.randrange(12)}", now)
            waiting[item] = now
            queues.add(item.task, item)
        _, batch = queues.take(now, lambda task: task == "busy")
        oldest = min(waiting.values())
        if now - oldest >= PATIENCE:
            assert min(item.arrived for item in batch) == oldest
            checked += 1
        for item in batch:
            del waiting[item]
        now += 1.0
    assert checked > 1000
