"""A replica's engine: what it tells Ray's router and the other replicas, and what they did in all; no Ray here."""

from __future__ import annotations

import asyncio
import warnings
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from piggyback.errors import UnknownTaskError
from piggyback.serve.cluster import ClusterOptions, app
from piggyback.serve.cluster.replica import Replica, ReplicaEngine
from piggyback.serve.options import EngineOptions
from piggyback.serve.stats import SECONDS, Counts, Stats
from support import colour_tasks
from support.colour_tasks import numbered, picture, red_is


def stats(ok: int, **changes) -> Stats:
    counts = Counts()
    counts.count("t1", "ok", [0.003] * ok, ok)
    counts.hits["dense"] += ok
    counts.batch_sizes.add([2] * ok)
    counts.loads, counts.load_seconds, counts.switches = 1, 0.5, 1
    held = {"evictions": {}, "bytes": {"dense": 100}, "budget": 1000, "tasks": {"disk": 1}}
    return Stats(**counts.snapshot(), **{**held, "queue_depth": 3, "queue_limit": 10, **changes})


class FakeServe:
    """Stands for ``ray.serve``: notes what the router is told and what is asked of all replicas."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked: list[str] = []
        self.answers: list[object] = []

    def get_replica_context(self):
        return SimpleNamespace(deployment="piggyback", app_name="app")

    def get_deployment_handle(self, deployment, app_name):
        assert (deployment, app_name) == ("piggyback", "app")
        return self

    def multiplexed(self, max_num_models_per_replica):
        def wrap(load):
            async def told(task):
                self.told.append(task)
                return await load(task)

            return told

        return wrap

    def broadcast(self, method):
        self.asked.append(method)
        return self

    def results(self, timeout_s, return_exceptions):
        return self.answers


@pytest.fixture
def serve(monkeypatch):
    fake = FakeServe()
    monkeypatch.setattr("piggyback.serve.cluster.replica.require", lambda *_: fake)
    return fake


@pytest.fixture
def files(tmp_path):
    (tmp_path / "tasks").mkdir()
    made = numbered(2)
    (tmp_path / "tasks" / "t0.safetensors").write_bytes(made["t0"])
    return made


@pytest.fixture
def engine(serve, files, tmp_path):
    options = ClusterOptions(
        tasks=str(tmp_path / "tasks"),
        backbone=f"{colour_tasks.__file__}:build",
        memory="1MiB",
        engine=EngineOptions(workers=1, watch_s=0),
    )
    with ReplicaEngine(options) as made:
        yield made


def test_the_router_is_told_of_a_task_that_is_asked_for_and_of_no_other(engine, serve):
    answer = asyncio.run(engine.predict_async(picture("red"), "t0"))
    assert answer.classes[0] == red_is("t0")
    with pytest.raises(UnknownTaskError):
        asyncio.run(engine.predict_async(picture("red"), "t77"))
    assert serve.told == ["t0"]


def test_a_change_of_tasks_reaches_all_replicas_before_it_is_answered(engine, serve, files):
    assert engine.put_task("t1", files["t1"]).name == "t1"
    assert serve.asked == ["rescan"]
    engine.delete_task("t1")
    assert serve.asked == ["rescan", "rescan"]


def test_stats_are_the_sums_over_the_replicas_that_answer(engine, serve):
    serve.answers = [stats(2), RuntimeError("it died"), stats(3, tasks={"disk": 1, "dense": 2})]
    found = engine.stats()
    assert found.requests == {("t1", "ok"): 5}
    assert found.latency["t1"].counts[-1] == 5
    assert found.latency["t1"].bounds == SECONDS
    assert found.batch_sizes.total == 10
    assert found.hits == {"dense": 5}
    assert (found.loads, found.load_seconds, found.switches) == (2, 1.0, 2)
    assert (found.budget, found.bytes) == (2000, {"dense": 200})
    assert (found.queue_depth, found.queue_limit) == (6, 20)
    assert found.tasks == {"disk": 2, "dense": 2}
    serve.answers = []
    assert engine.stats() == engine.own_stats()


@pytest.mark.parametrize(
    ("host", "token", "status"),
    [("127.0.0.1", None, 421), ("0.0.0.0", None, 200), ("127.0.0.1", "s3cret", 401)],
)
def test_a_strangers_name_is_told_nothing(serve, files, tmp_path, monkeypatch, host, token, status):
    ran = []
    monkeypatch.setattr(app, "_start_ray", lambda: SimpleNamespace(shutdown=lambda: None))
    ray_serve = SimpleNamespace(start=lambda **_: None, run=lambda *_, **__: 1 / 0)
    monkeypatch.setattr(app, "require", lambda *_: ray_serve)
    monkeypatch.setattr(app, "_application", ran.append)
    options = ClusterOptions(
        tasks=str(tmp_path / "tasks"), backbone=f"{colour_tasks.__file__}:build", token=token
    )
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(action="ignore"):
        app.run(options, host=host, port=0)
    replica = Replica(ran[0])
    client = TestClient(replica.__serve_build_asgi_app__(), "http://evil.example")
    assert client.get("/v1/tasks").status_code == status
    replica._engine.close()
