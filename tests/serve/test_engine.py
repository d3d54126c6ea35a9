"""One network, a folder of tasks: every answer is its task's, whatever else goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from piggyback.errors import (
    BackboneMismatchError,
    ClosedError,
    DeadlineError,
    InputError,
    OverloadError,
    TaskFileError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.kinds.classification import confidence
from piggyback.schemas import Answer
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from piggyback.serve.replicas.copies import ModelCopy
from piggyback.serve.store.folder import TaskFolder
from piggyback.serve.store.stores import LocalStore
from piggyback.taskfile.file import save
from piggyback.taskfile.header import header_of
from support.fake_engine import wait_until
from support.telling import INPUT, Telling, engine_over, expected, telling_tasks, write_tasks


def says(engine: Engine, name: str) -> str:
    return engine.predict(INPUT, name, top_k=1).classes[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tasks(tmp_path / "tasks", 12)
    return tmp_path / "tasks"


class Gate:
    """Holds every forward pass up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        run = ModelCopy.run

        def held(copy: ModelCopy, x: torch.Tensor) -> torch.Tensor:
            self.reached.set()
            assert self.opened.wait(60)
            return run(copy, x)

        monkeypatch.setattr(ModelCopy, "run", held)


@pytest.fixture
def busy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes an engine of one worker, which a request for ``t1`` holds up until the gate is opened."""

    @contextmanager
    def made(**options: object) -> Iterator[tuple[Engine, Gate, Future[Answer]]]:
        with engine_over(folder, workers=1, **options) as engine:
            gate = Gate(monkeypatch)
            running = engine.submit(INPUT, "t1")
            assert gate.reached.wait(60)
            yield engine, gate, running

    return made


# -- answers -----------------------------------------------------------------------------------


def test_every_task_answers_for_itself_and_says_who_it_is(folder):
    with engine_over(folder) as engine:
        for status in engine.tasks():
            answer = engine.predict(INPUT, status.name, top_k=3)
            assert answer.classes[0] == expected(status.name)
            assert (answer.task, answer.version) == (status.name, status.version)
            assert len(answer.classes) == len(answer.probabilities) == 3
            assert answer.probabilities[0] > answer.probabilities[1] > 0
            assert 0 < answer.confidence <= 1
            assert answer.timing.batch == 1
            assert answer.timing.total >= answer.timing.run > 0


def test_answers_are_those_of_the_model_itself(folder):
    from piggyback.model.multitask import MultiTaskModel

    torch.manual_seed(4)
    model = MultiTaskModel(Telling(), head="head")
    names = [model.load_task(path) for path in sorted(folder.iterdir())]
    x = torch.randn(5, 4)
    with engine_over(folder) as engine:
        for name in names:
            logits = model(x, task=name)
            want = logits.softmax(1).topk(4)
            got = engine.predict(list(x), name, top_k=4)
            found = torch.tensor([answer.probabilities for answer in got])
            torch.testing.assert_close(found, want.values)
            sure = torch.tensor([answer.confidence for answer in got])
            torch.testing.assert_close(sure, confidence(logits), atol=1e-5, rtol=1e-4)


def test_a_list_gives_a_list_in_its_order(folder):
    with engine_over(folder) as engine:
        answers = engine.predict([INPUT, -INPUT, INPUT], "t3")
    assert [answer.classes[0] == expected("t3") for answer in answers] == [True, False, True]


def test_more_classes_than_there_are_gives_them_all(folder):
    with engine_over(folder) as engine:
        assert len(engine.predict(INPUT, "t1", top_k=1000).classes) == 64


def test_infer_asks_all_tasks_and_gives_the_surest_first(folder):
    with engine_over(folder) as engine:
        answers = engine.infer(INPUT)
        assert sorted(answer.task for answer in answers) == sorted(f"t{i}" for i in range(12))
        sure = [answer.confidence for answer in answers]
        assert sure == sorted(sure, reverse=True)
        assert {a.task for a in engine.infer(INPUT, ["t2", "t5", "t2"])} == {"t2", "t5"}


def test_an_event_loop_gets_the_same_answers(folder):
    async def ask(engine: Engine) -> None:
        names = [f"t{i % 12}" for i in range(60)]
        answers = await asyncio.gather(*[engine.predict_async(INPUT, n, top_k=1) for n in names])
        assert [answer.classes[0] for answer in answers] == [expected(n) for n in names]
        found = await engine.infer_async(INPUT, ["t1", "t2"])
        assert {answer.task for answer in found} == {"t1", "t2"}
        assert len(await engine.predict_async([INPUT] * 3, "t1")) == 3

    with engine_over(folder) as engine:
        asyncio.run(ask(engine))


# -- batches -----------------------------------------------------------------------------------


def test_what_waits_for_one_task_is_answered_together(busy):
    with busy(max_batch=8) as (engine, gate, first):
        rest = [engine.submit(INPUT, f"t{1 + i % 2}") for i in range(8)]
        gate.opened.set()
        assert first.result(60).timing.batch == 1
        assert [future.result(60).timing.batch for future in rest] == [4] * 8


def test_a_bad_input_does_not_spoil_the_batch_it_is_in(busy):
    with busy() as (engine, gate, first):
        bad = [torch.zeros(5), torch.full((4,), float("nan"))]
        good, *failed = [engine.submit(x, "t1") for x in (INPUT, *bad)]
        gate.opened.set()
        assert first.result(60).classes[0] == good.result(60).classes[0] == expected("t1")
        for future in failed:
            assert isinstance(future.exception(10), (InputError, RuntimeError))


def test_a_float_input_is_the_one_that_was_given_whatever_becomes_of_it(busy):
    with busy() as (engine, gate, running):
        frame = INPUT.clone()
        waiting = engine.submit(frame, "t1")
        frame.neg_()
        gate.opened.set()
        running.result(60)
        assert waiting.result(60).classes[0] == expected("t1")


def test_asking_all_tasks_leaves_out_those_that_cannot_answer(folder):
    with engine_over(folder) as engine:
        (folder / "t3.safetensors").unlink()
        assert len(engine.infer(INPUT)) == 11
        assert len(asyncio.run(engine.infer_async(INPUT))) == 11
        with pytest.raises(UnknownTaskError):
            engine.infer(INPUT, ["t1", "t3"])


def test_loading_tasks_draws_no_random_numbers(folder):
    with engine_over(folder) as engine:
        before = torch.get_rng_state()
        for i in range(12):
            says(engine, f"t{i}")
        assert torch.equal(before, torch.get_rng_state())


def test_finished_futures_do_not_keep_their_images(folder):
    with engine_over(folder) as engine:
        image = INPUT.numpy().copy()
        kept, gone = engine.submit(image, "t1"), ref(image)
        kept.result(60)
        says(engine, "t2")
        del image
        wait_until(lambda: gone() is None)


# -- limits ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_more_and_goes_on(busy):
    with busy(max_queue=6, max_batch=1) as (engine, gate, running):
        waiting = [engine.submit(INPUT, f"t{2 + i % 2}") for i in range(6)]
        with pytest.raises(OverloadError, match="6 requests are waiting and 1 more came") as found:
            engine.submit(INPUT, "t3")
        assert found.value.retry_after > 0
        with pytest.raises(OverloadError):
            engine.infer(INPUT, ["t1", "t2"])
        gate.opened.set()
        assert {future.result(60).task for future in (running, *waiting)} == {"t1", "t2", "t3"}
        assert says(engine, "t3") == expected("t3")
        assert engine.stats().requests["t3", "overload"] == 1


def test_an_answer_that_takes_too_long_is_given_up(busy):
    with busy() as (engine, gate, running):
        with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
            engine.predict(INPUT, "t2", timeout=0.05)
        with pytest.raises(DeadlineError):
            asyncio.run(engine.predict_async(INPUT, "t2", timeout=0.05))
        assert engine.queue_depth == 0
        gate.opened.set()
        running.result(60)
        assert engine.stats().requests["t2", "timeout"] == 2


def test_a_cancelled_request_is_not_run(busy):
    with busy() as (engine, gate, running):
        dropped, kept = engine.submit(INPUT, "t2"), engine.submit(INPUT, "t2")
        assert dropped.cancel()
        assert wait([dropped], timeout=60).done == {dropped}
        assert engine.queue_depth == 1
        assert engine.stats().requests["t2", "cancelled"] == 1
        gate.opened.set()
        running.result(60)
        assert kept.result(60).timing.batch == 1
        with pytest.raises(CancelledError):
            dropped.result(0)


def test_more_at_once_than_may_ever_wait_is_not_told_to_come_again(folder):
    with engine_over(folder, max_queue=6) as engine:
        with pytest.raises(InputError, match="4 requests at once: expected at most 6"):
            engine.predict([INPUT] * 4, "t1")
        assert len(engine.predict([INPUT] * 3, "t1")) == 3


def test_a_busy_task_leaves_room_in_the_queue_for_others(busy):
    with busy(max_queue=6, max_batch=1) as (engine, gate, running):
        waiting = [engine.submit(INPUT, "t1") for _ in range(3)]
        with pytest.raises(OverloadError, match="and 3 for one task"):
            engine.submit(INPUT, "t1")
        waiting += [engine.submit(INPUT, "t2") for _ in range(3)]
        gate.opened.set()
        assert all(future.result(60) for future in (running, *waiting))


def test_a_bad_image_takes_no_place_in_the_queue(folder):
    with engine_over(folder, max_queue=2) as engine:
        for _ in range(5):
            with pytest.raises(InputError):
                engine.predict(b"not an image", "t1")
        assert engine.queue_depth == 0
        assert says(engine, "t1") == expected("t1")


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", True])
def test_a_wrong_top_k_is_refused(folder, top_k):
    with engine_over(folder) as engine, pytest.raises(InputError, match="top_k"):
        engine.predict(INPUT, "t1", top_k=top_k)


def test_an_unknown_task_is_an_error_that_names_near_ones(folder):
    with engine_over(folder) as engine:
        with pytest.raises(UnknownTaskError, match="t11"):
            engine.predict(INPUT, "t111")
        with pytest.raises(UnknownTaskError):
            engine.infer(INPUT, ["t1", "nope"])


# -- tiers -------------------------------------------------------------------------------------


def test_tiers_are_what_was_used_and_bytes_stay_within_the_budget(folder):
    with engine_over(folder, memory=100_000, workers=1) as engine:
        assert {status.tier for status in engine.tasks()} == {"disk"}
        assert engine.predict(INPUT, "t1").tier == "disk"
        assert engine.predict(INPUT, "t1").tier == "dense"
        assert engine.task("t1").tier == "dense"
        assert engine.task("t1").memory_bytes > 0
        for i in range(12):
            says(engine, f"t{i}")
        stats = engine.stats()
        assert sum(stats.bytes.values()) <= stats.budget
        assert sum(stats.tasks.values()) == 12
        assert stats.loads >= 12


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(InputError, match=f"device '{device}': expected"):
        engine_over(folder, device=device)


def test_all_who_wait_for_a_task_share_one_load(folder, monkeypatch):
    with engine_over(folder, workers=1) as engine:
        futures = [engine.submit(INPUT, "t5") for _ in range(20)]
        assert {future.result(60).classes[0] for future in futures} == {expected("t5")}
        assert engine.stats().loads == 1


def test_a_slow_disk_does_not_hold_up_tasks_in_memory(folder, monkeypatch):
    with engine_over(folder) as engine:
        says(engine, "t1")
        release, read = threading.Event(), LocalStore.read

        def slow(store: LocalStore, name: str) -> bytes:
            assert release.wait(60)
            return read(store, name)

        monkeypatch.setattr(LocalStore, "read", slow)
        cold = engine.submit(INPUT, "t2")
        assert says(engine, "t1") == expected("t1")
        assert not cold.done()
        release.set()
        assert cold.result(60).tier == "disk"
        assert cold.result(60).timing.load > 0


def test_a_task_that_is_removed_while_it_is_read_is_counted_no_more(folder, monkeypatch):
    reading, release, read = threading.Event(), threading.Event(), LocalStore.read

    def slow(store: LocalStore, name: str) -> bytes:
        reading.set()
        assert release.wait(60)
        return read(store, name)

    with engine_over(folder) as engine:
        monkeypatch.setattr(LocalStore, "read", slow)
        waiting = engine.submit(INPUT, "t2")
        assert reading.wait(60)
        engine.delete_task("t2")
        release.set()
        with pytest.raises(UnknownTaskError):
            waiting.result(60)
        assert not engine.stats().requests


def test_short_memory_while_loading_fails_those_who_wait_and_nobody_else(folder, monkeypatch):
    from piggyback.serve.replicas.network import Network

    with engine_over(folder) as engine:
        says(engine, "t1")
        pack = Network.pack

        def short(network: Network, task: object) -> object:
            raise MemoryError

        monkeypatch.setattr(Network, "pack", short)
        with pytest.raises(UnavailableError, match="memory is short"):
            engine.predict(INPUT, "t2")
        assert says(engine, "t1") == expected("t1")
        monkeypatch.setattr(Network, "pack", pack)
        assert says(engine, "t2") == expected("t2")
        assert (
            engine.stats().load_failures >= 1
        )  # one more where it failed before the request was queued


# -- tasks come and go -------------------------------------------------------------------------


def test_files_put_into_the_folder_are_found(folder):
    others = {name: save(task) for name, task in telling_tasks(20).items()}
    with engine_over(folder, watch_s=0.01) as engine:
        says(engine, "t1")
        (folder / "new").write_bytes(others["t15"])
        (folder / "new").rename(folder / "t15.safetensors")
        (folder / "t1.safetensors").unlink()
        wait_until(lambda: {"t15"} <= {s.name for s in engine.tasks()} >= {"t2"})
        assert says(engine, "t15") == expected("t15")
        wait_until(lambda: "t1" not in {s.name for s in engine.tasks()})
        with pytest.raises(UnknownTaskError):
            engine.predict(INPUT, "t1")


def test_a_look_that_fails_is_logged_and_the_next_one_comes(folder, monkeypatch, caplog):
    looked = threading.Event()
    scan = TaskFolder.scan

    def fails_once(tasks: TaskFolder) -> None:
        monkeypatch.setattr(TaskFolder, "scan", lambda tasks: looked.set() or scan(tasks))
        raise MemoryError("for once")

    with engine_over(folder, watch_s=0.001):
        monkeypatch.setattr(TaskFolder, "scan", fails_once)
        assert looked.wait(60)
    assert "a look at the tasks directory failed" in caplog.text


def test_a_file_replaced_between_request_and_load_answers_as_what_it_is(folder, monkeypatch):
    """The request was prepared for the old file; the new one answers, whole."""
    others = {name: save(task) for name, task in telling_tasks(20).items()}
    with engine_over(folder) as engine:
        (folder / "new").write_bytes(others["t19"])
        (folder / "new").rename(folder / "t1.safetensors")
        answer = engine.predict(INPUT, "t1", timeout=60)
        assert answer.classes[0] == expected("t19")
        assert answer.version == engine.task("t1").version


def test_replacing_under_load_never_mixes_two_versions_and_keeps_one(folder):
    """Versions alternate while others ask: names come from the file, the class from the mask; both must agree."""
    files = [save(telling_tasks(20)[name].renamed("x")) for name in ("t3", "t17")]
    right = [expected("t3"), expected("t17")]
    with engine_over(folder, workers=2) as engine:
        versions = {
            engine.put_task("x", data, replace_classes=True).version: says
            for data, says in zip(files, right, strict=True)
        }
        stop = threading.Event()

        def ask() -> list[tuple[str, str]]:
            found = []
            while not stop.is_set():
                answer = engine.predict(INPUT, "x", top_k=1, timeout=60)
                found.append((answer.version, answer.classes[0]))
            return found

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            for i in range(60):
                engine.put_task("x", files[i % 2], replace_classes=True)
            stop.set()
            found = [pair for future in asking for pair in future.result(60)]
        held = engine.stats().bytes["packed"]
        assert held == engine.task("x").memory_bytes  # the other version has left memory
    assert len(found) > 4
    assert {version for version, _ in found} <= versions.keys()
    assert all(versions[version] == answer for version, answer in found)


def test_an_upload_is_decoded_before_it_replaces_anything(folder):
    """The header and its checksum are right; the coded bits are not those that it promises."""
    data = (folder / "t1.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])["masks"]["data_offsets"]
    damaged = bytearray(data[:-32])
    for place in range(8 + length + start, 8 + length + stop):
        damaged[place] ^= 0x5A
    damaged += hashlib.sha256(damaged).digest()
    header_of(bytes(damaged))
    with engine_over(folder) as engine:
        with pytest.raises(TaskFileError):
            engine.put_task("t1", bytes(damaged))
        assert (folder / "t1.safetensors").read_bytes() == data
        assert says(engine, "t1") == expected("t1")


def test_a_task_of_another_backbone_is_refused(folder):
    other = Telling()
    with torch.no_grad():
        other.body.weight[0, 0] = 2.0
    with Engine(other, folder, "64MiB", EngineOptions(watch_s=0.0, device="cpu")) as engine:
        assert engine.tasks() == []
        assert len(engine.refused()) == 12
        data = (folder / "t1.safetensors").read_bytes()
        with pytest.raises(BackboneMismatchError, match="fingerprint"):
            engine.put_task("t1", data)


# -- the end -----------------------------------------------------------------------------------


def test_closing_answers_what_waits(folder, monkeypatch):
    engine = engine_over(folder, workers=1)
    gate = Gate(monkeypatch)
    futures = [engine.submit(INPUT, f"t{i}") for i in range(6)]
    assert gate.reached.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.opened.set()
    closing.join(60)
    assert not closing.is_alive()
    assert [future.result(0).classes[0] for future in futures] == [
        expected(f"t{i}") for i in range(6)
    ]
    with pytest.raises(ClosedError):
        engine.predict(INPUT, "t1")


def test_closing_does_not_wait_for_a_disk_that_hangs(folder, monkeypatch):
    release, reached = threading.Event(), threading.Event()

    def hang(store: LocalStore, name: str) -> bytes:
        reached.set()
        release.wait(60)
        raise UnavailableError("it hung")

    engine = engine_over(folder)
    monkeypatch.setattr(LocalStore, "read", hang)
    waiting = engine.submit(INPUT, "t1")
    assert reached.wait(60)
    closing = threading.Thread(target=engine.close, kwargs={"drain": False})
    closing.start()
    closing.join(60)
    release.set()
    assert not closing.is_alive()
    with pytest.raises(ClosedError):
        waiting.result(0)


def test_closing_at_once_tells_those_who_wait(folder, monkeypatch):
    engine = engine_over(folder, workers=1)
    gate = Gate(monkeypatch)
    running = engine.submit(INPUT, "t1")
    assert gate.reached.wait(60)
    waiting = engine.submit(INPUT, "t2")
    threading.Timer(0.05, gate.opened.set).start()
    engine.close(drain=False)
    assert running.result(60).classes[0] == expected("t1")
    with pytest.raises(ClosedError):
        waiting.result(0)


def test_the_number_of_cores_that_torch_uses_is_left_as_it_was(folder):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with engine_over(folder, workers=1) as engine:
            asyncio.run(engine.predict_async(INPUT, "t1"))
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 3
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
