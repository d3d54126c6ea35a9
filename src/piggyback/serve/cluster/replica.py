"""One engine in a process of its own, called through Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from piggyback.errors import PiggybackError, UnknownTaskError, require
from piggyback.schemas import TaskStatus
from piggyback.serve.cluster.failures import Failure
from piggyback.serve.cluster.options import ClusterOptions
from piggyback.serve.cluster.process import begin
from piggyback.serve.engine import Engine
from piggyback.serve.stats import Stats

T = TypeVar("T")

CLOSE_S = 10.0
"""Seconds for what an engine still has when its replica ends."""


@dataclass(frozen=True)
class Report:
    """What a replica says of itself."""

    replica: str
    source: str
    fingerprint: str
    speed: str
    tasks: Sequence[TaskStatus]
    refused: dict[str, str]
    problem: str | None
    stats: Stats


class EngineReplica:
    """The class of the engines' deployment: each replica loads the backbone and watches the tasks itself.

    What the user did wrong comes back as a `Failure`; what breaks the replica is raised, for Ray to see.
    """

    def __init__(self, options: ClusterOptions) -> None:
        serve = require("ray.serve", "ray")
        begin()
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._engine = Engine(options.backbone, options.tasks, options.memory, options.engine)

        # Model multiplexing as a hint, and no more: the "model" is the task's own name. So Ray's lock
        # around loads is held for no time, and its eviction by count forgets a name, not a task: what
        # is in memory is decided by the engine, by bytes.
        @serve.multiplexed(max_num_models_per_replica=options.warm)  # type: ignore[untyped-decorator]
        async def tell_router(task: str) -> str:
            return task

        self._tell_router: Callable[[str], Awaitable[str]] = tell_router

    async def predict(self, images: Any, task: str, top_k: int, timeout: float | None) -> Any:
        """Return what ``Engine.predict`` does, or a Failure."""
        try:
            self._engine.task(task)
        except UnknownTaskError:
            # The ingress knows it from another replica, whose look at the tasks came earlier.
            await asyncio.to_thread(self._engine.rescan)
        await self._tell_router(task)
        return await _told(self._engine.predict_async(images, task, top_k, timeout))

    async def put_task(self, name: str, data: bytes) -> TaskStatus | Failure:
        """Check a task file, and write it where all replicas look."""
        return await _told(asyncio.to_thread(self._engine.put_task, name, data))

    async def delete_task(self, name: str) -> Failure | None:
        """Delete a task's file."""
        return await _told(asyncio.to_thread(self._engine.delete_task, name))

    async def rescan(self) -> Report:
        """Look at the tasks now, and report."""
        await asyncio.to_thread(self._engine.rescan)
        return self.report()

    async def look(self) -> Report:
        """Report, without looking."""
        return self.report()

    def report(self) -> Report:
        """Return this replica's state."""
        engine = self._engine
        return Report(
            self._name,
            engine.source,
            engine.fingerprint,
            engine.speed,
            engine.tasks(),
            engine.refused(),
            engine.problem,
            engine.stats(),
        )

    def __del__(self) -> None:
        # Ray calls this once nothing is in flight, or when its own time for that is over.
        if engine := getattr(self, "_engine", None):
            engine.close(drain=True, timeout=CLOSE_S)


async def _told(answer: Awaitable[T]) -> T | Failure:
    try:
        return await answer
    except PiggybackError as error:
        return Failure.of(error)
