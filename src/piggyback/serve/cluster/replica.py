"""A replica: an engine and the ordinary HTTP application, in a process that Ray started."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI

from piggyback.errors import require
from piggyback.schemas import TaskStatus
from piggyback.serve.cluster.options import ClusterOptions
from piggyback.serve.engine import Engine
from piggyback.serve.http.app import create_app
from piggyback.serve.http.logs import logging_to
from piggyback.serve.stats import Stats

CONTROL_S = 60.0
"""Seconds that all replicas may take for a call, such as to look at the tasks."""
CLOSE_S = 10.0
"""Seconds for what an engine still has when its replica ends."""


class ReplicaEngine(Engine):
    """An engine that tells Ray's router which tasks it has, and the other replicas when tasks change."""

    def __init__(self, options: ClusterOptions) -> None:
        serve = require("ray.serve", "ray")
        context = serve.get_replica_context()
        self._replicas = serve.get_deployment_handle(context.deployment, context.app_name)

        # Model multiplexing as a hint, and no more: the "model" is the task's own name. So Ray's lock
        # around loads is held for no time, and its eviction by count forgets a name, not a task: what
        # is in memory is decided by the engine, by bytes.
        @serve.multiplexed(max_num_models_per_replica=options.warm)  # type: ignore[untyped-decorator]
        async def tell_router(task: str) -> str:
            return task

        self._tell_router = tell_router
        super().__init__(options.backbone, options.tasks, options.memory, options.engine)

    async def predict_async(self, image_or_batch: Any, task: str, *more: Any, **named: Any) -> Any:
        """Return what ``Engine.predict_async`` does; later requests with this task as their hint come here."""
        self.task(task)  # the router would keep an unknown name
        await self._tell_router(task)
        return await super().predict_async(image_or_batch, task, *more, **named)

    def put_task(self, name: str, data: bytes, replace_classes: bool = False) -> TaskStatus:
        """Add or replace a task; all replicas serve it when this returns."""
        status = super().put_task(name, data, replace_classes)
        self._ask_all("rescan")
        return status

    def delete_task(self, name: str) -> None:
        """Delete a task; no replica serves it when this returns."""
        super().delete_task(name)
        self._ask_all("rescan")

    def stats(self) -> Stats:
        """Return what all replicas did, and what they hold together; not from within an event loop."""
        own, *others = self._ask_all("stats") or [super().stats()]
        total: Stats = sum(others, start=own)
        return total

    def own_stats(self) -> Stats:
        """Return what this replica did."""
        return super().stats()

    def _ask_all(self, method: str) -> list[Any]:
        """What each replica answers; one that dies meanwhile is left out."""
        answers = self._replicas.broadcast(method)
        found = answers.results(timeout_s=CONTROL_S, return_exceptions=True)
        return [answer for answer in found if not isinstance(answer, Exception)]


class Replica:
    """The class of the deployment; Ray asks each for its application once it has been made."""

    def __init__(self, options: ClusterOptions) -> None:
        self._log = ExitStack()
        self._log.enter_context(logging_to())
        self._options = options
        self._engine = ReplicaEngine(options)

    def __serve_build_asgi_app__(self) -> FastAPI:
        options = self._options
        app = create_app(
            self._engine,
            token=options.token,
            limits=options.limits,
            local_only=options.local_only,
        )
        self._service = app.state.service
        return app

    async def rescan(self) -> None:
        """Look at the tasks now."""
        await asyncio.to_thread(self._engine.rescan)

    async def stats(self) -> Stats:
        """Return what this replica did."""
        return self._engine.own_stats()

    async def finish(self) -> bool:
        """Refuse what comes from now on (503), and return whether all before was answered in ``limits.stop_s``."""
        self._service.refuse()
        until = time.monotonic() + self._options.limits.stop_s
        while self._service.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return not self._service.in_flight

    def __del__(self) -> None:
        # Ray calls this once nothing is in flight, or when its own time for that is over.
        if engine := getattr(self, "_engine", None):
            engine.close(drain=True, timeout=CLOSE_S)
