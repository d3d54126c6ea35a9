"""One engine made of many replicas: what is asked of whom, and what is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from piggyback import errors
from piggyback.errors import (
    DeadlineError,
    OverloadError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.schemas import TaskStatus
from piggyback.serve.cluster.failures import Failure
from piggyback.serve.cluster.ingress import MOST_GONE, ClusterEngine
from piggyback.serve.cluster.merge import merge_stats, merge_tasks
from piggyback.serve.cluster.replica import EngineReplica, Report
from piggyback.serve.options import EngineOptions
from piggyback.serve.stats import SECONDS, Counts, Stats


def status(name, tier="disk", memory_bytes=0):
    return TaskStatus(
        name=name, version="0" * 16, kind="classification", classes=("a",), file_bytes=10,
        memory_bytes=memory_bytes, tier=tier, image_size=8,
    )  # fmt: skip


def stats(ok=0, **given):
    counts = Counts()
    counts.count("t1", "ok", [0.003] * ok, ok)
    counts.hits["dense"] += ok
    counts.batch_sizes.add([2] * ok)
    counts.loads, counts.load_seconds, counts.switches = 1, 0.5, 1
    empty = Stats(
        **counts.snapshot(),
        evictions={},
        bytes={"dense": 100},
        budget=1000,
        tasks={"disk": 1},
        queue_depth=3,
        queue_limit=10,
    )
    return replace(empty, **given)


def report(replica, tasks=(), ok=0, **given):
    return Report(replica, "toy", "f" * 64, "fast", list(tasks), {}, None, stats(ok, **given))


class Handle:
    """Stands for Ray's handle: what its replicas report, and what each prediction comes to, in turn."""

    def __init__(self, reports, outcomes=()):
        self.reports = list(reports)
        self.outcomes = list(outcomes)
        self.asked = []
        self.called = []
        self.predict = self.put_task = self.delete_task = self

    def options(self, multiplexed_model_id):
        self.asked.append(multiplexed_model_id)
        return self

    def remote(self, *args):
        return Response(self.outcomes.pop(0))

    def broadcast(self, call):
        self.called.append(call)
        return self

    def results(self, timeout_s, return_exceptions):
        return list(self.reports)


class Response:
    def __init__(self, outcome):
        self.outcome = outcome
        self.cancelled = False

    def __await__(self):
        if self.outcome == "never":
            yield from asyncio.sleep(60).__await__()
        return self.result()

    def result(self, timeout_s=None):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def ray_errors():
    return pytest.importorskip("ray.exceptions")


@pytest.fixture
def made(ray_errors):
    """Makes a ClusterEngine over a Handle; it does not look by itself."""
    engines = []

    def make(handle):
        engine = ClusterEngine(handle, EngineOptions())
        engine.close()
        engines.append(engine)
        return engine

    return make


class TestMerge:
    def test_a_task_is_told_once_where_it_is_best(self):
        one = [status("b"), status("a", "packed", 5)]
        other = [status("a", "dense", 7), status("c")]
        merged = merge_tasks([one, other])
        assert list(merged) == ["a", "b", "c"]
        assert (merged["a"].tier, merged["a"].memory_bytes) == ("dense", 12)

    def test_counts_are_sums_and_tasks_are_not(self):
        merged = merge_stats([stats(2), stats(3)], [status("t1", "dense")])
        assert merged.requests == {("t1", "ok"): 5}
        assert merged.latency["t1"].counts[-1] == 5
        assert merged.latency["t1"].bounds == SECONDS
        assert merged.batch_sizes.total == 10
        assert merged.hits == {"dense": 5}
        assert (merged.loads, merged.load_seconds, merged.switches) == (2, 1.0, 2)
        assert (merged.budget, merged.bytes) == (2000, {"dense": 200})
        assert (merged.queue_depth, merged.queue_limit) == (6, 20)
        assert merged.tasks == {"dense": 1, "packed": 0, "disk": 0}


class Late:
    """Stands for an engine that has not looked at the folder since a task came."""

    def __init__(self):
        self.known = set()
        self.looks = 0

    def task(self, name):
        if name not in self.known:
            raise UnknownTaskError(f"unknown task {name!r}")

    def rescan(self):
        self.looks += 1
        self.known.add("new")

    async def predict_async(self, images, task, top_k, timeout):
        self.task(task)
        return "answer"

    def close(self, drain, timeout):
        pass


class TestReplica:
    def test_a_task_that_others_know_is_looked_for_and_errors_come_back_as_values(self):
        named = []

        async def tell_router(task):
            named.append(task)

        replica = EngineReplica.__new__(EngineReplica)  # its constructor wants a cluster
        replica._engine, replica._tell_router = Late(), tell_router
        for looks in (1, 1):  # the second time it knows
            assert asyncio.run(replica.predict(b"image", "new", 5, None)) == "answer"
            assert replica._engine.looks == looks
        gone = asyncio.run(replica.predict(b"image", "gone", 5, None))
        assert gone == Failure("UnknownTaskError", "unknown task 'gone'")
        assert named == ["new", "new", "gone"]


class TestClusterEngine:
    def test_a_call_goes_out_with_its_task_as_the_hint(self, made):
        handle = Handle([report("one", [status("t1")])], ["answer"])
        assert asyncio.run(made(handle).predict_async(b"image", "t1")) == "answer"
        assert handle.asked == ["t1"]

    def test_an_unknown_task_goes_nowhere(self, made):
        handle = Handle([report("one", [status("t1")])])
        with pytest.raises(UnknownTaskError, match="did you mean 't1'"):
            asyncio.run(made(handle).predict_async(b"image", "t11"))
        assert handle.asked == []

    def test_a_failure_is_raised_as_the_error_it_was(self, made):
        failure = Failure("DataError", "no image")
        engine = made(Handle([report("one", [status("t1")])], [failure]))
        with pytest.raises(errors.DataError, match="no image"):
            asyncio.run(engine.predict_async(b"image", "t1"))

    def test_another_replica_is_asked_when_one_dies(self, made, ray_errors):
        died = ray_errors.ActorDiedError()
        engine = made(Handle([report("one", [status("t1")])], [died, died, "answer"]))
        assert asyncio.run(engine.predict_async(b"image", "t1")) == "answer"
        engine = made(Handle([report("one", [status("t1")])], [died] * 3))
        with pytest.raises(UnavailableError, match="3 replicas died"):
            asyncio.run(engine.predict_async(b"image", "t1"))

    def test_full_queues_are_an_overload(self, made):
        from ray.serve.exceptions import BackPressureError

        full = BackPressureError(num_queued_requests=9, max_queued_requests=9)
        engine = made(Handle([report("one", [status("t1")])], [full]))
        with pytest.raises(OverloadError, match="all replicas are busy") as caught:
            asyncio.run(engine.predict_async(b"image", "t1"))
        assert caught.value.retry_after > 0

    def test_full_queues_refuse_a_change(self, made):
        from ray.serve.exceptions import BackPressureError

        full = BackPressureError(num_queued_requests=9, max_queued_requests=9)
        engine = made(Handle([report("one", [status("t1")])], [full, full]))
        for call in (lambda: engine.put_task("new", b"..."), lambda: engine.delete_task("t1")):
            with pytest.raises(OverloadError, match="all replicas are busy") as caught:
                call()
            assert caught.value.retry_after > 0

    def test_no_answer_in_time_is_a_deadline(self, made, monkeypatch):
        monkeypatch.setattr("piggyback.serve.cluster.ingress.GRACE_S", 0.01)
        engine = made(Handle([report("one", [status("t1")])], ["never"]))
        with pytest.raises(DeadlineError, match="no replica answered"):
            asyncio.run(engine.predict_async(b"image", "t1", timeout=0.01))

    def test_an_upload_is_seen_by_all_before_it_is_answered(self, made):
        handle = Handle([report("one", [])], [status("new")])
        engine = made(handle)
        handle.reports = [report("one", [status("new", "packed", 3)]), report("two", [])]
        assert engine.put_task("new", b"...").tier == "packed"
        assert handle.called[-1] == "rescan"
        assert [task.name for task in engine.tasks()] == ["new"]

    def test_a_refused_upload_is_raised(self, made):
        engine = made(Handle([report("one")], [Failure("TaskFileError", "hostile")]))
        with pytest.raises(errors.TaskFileError, match="hostile"):
            engine.put_task("new", b"...")

    def test_what_a_lost_replica_did_stays_counted_and_what_it_held_does_not(self, made):
        handle = Handle([report("one", ok=2), report("two", ok=3)])
        engine = made(handle)
        assert engine.stats().requests == {("t1", "ok"): 5}
        handle.reports = [report("two", ok=3), RuntimeError("slow")]
        engine.look()
        assert engine.stats().requests == {("t1", "ok"): 5}
        assert engine.stats().budget == 1000
        handle.reports = [report("one", ok=4), report("two", ok=3)]  # it was only slow
        engine.look()
        assert engine.stats().requests == {("t1", "ok"): 7}

    def test_however_many_replicas_come_and_go_all_are_counted(self, made):
        handle = Handle([report("r0", ok=1)])
        engine = made(handle)
        for i in range(1, 3 * MOST_GONE):
            handle.reports = [report(f"r{i}", ok=1)]
            engine.look()
        assert engine.stats().requests == {("t1", "ok"): 3 * MOST_GONE}
        assert len(engine._gone) == MOST_GONE

    def test_the_last_view_stays_when_nobody_answers(self, made):
        handle = Handle([report("one", [status("t1")])])
        engine = made(handle)
        handle.reports = []
        engine.look()
        assert [task.name for task in engine.tasks()] == ["t1"]
