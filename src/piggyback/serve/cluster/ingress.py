"""What speaks HTTP in a cluster: the same application, over an engine that is many.

The application of one process runs unchanged: it reads bodies, checks tokens and limits, and asks an engine.
Here the engine forwards each call to a replica, with the task's name as the routing hint. So the task is
known where the router needs it, whatever form a request has. The hint could also be read off the path
by a request router of our own in Ray's proxy; that saves a hop, but its interface is not stable yet,
and it would not know the tasks of ``POST /v1/predict``, which are in the body.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import FastAPI

from piggyback.errors import (
    DeadlineError,
    OverloadError,
    UnavailableError,
    UnknownTaskError,
    near_misses,
    require,
)
from piggyback.schemas import Answer, TaskStatus
from piggyback.serve.cluster.failures import Failure
from piggyback.serve.cluster.merge import merge_stats, merge_tasks, past
from piggyback.serve.cluster.options import ClusterOptions
from piggyback.serve.cluster.process import begin
from piggyback.serve.cluster.replica import Report
from piggyback.serve.engine import Engine
from piggyback.serve.http.app import create_app
from piggyback.serve.http.routes import together
from piggyback.serve.options import EngineOptions
from piggyback.serve.stats import Stats
from piggyback.serve.store.watcher import Watcher

LOOK_S = 1.0
"""Seconds between two looks at the replicas."""
CONTROL_S = 60.0
"""Seconds for a call that is no prediction, such as an upload."""
GRACE_S = 1.0
"""Seconds beyond a request's time in which the replica may say itself that it is over."""
MOST_GONE = 16
"""Replicas that are gone whose counts are kept one by one; of older ones only the sum."""
TRIES = 3
"""Replicas that are asked, if one after the other dies while it answers."""


class Ingress:
    """The class of the ingress's deployment; Ray asks it for its application in each process."""

    def __init__(self, engines: Any, options: ClusterOptions) -> None:
        begin()
        self._engines = engines
        self._options = options

    def __serve_build_asgi_app__(self) -> FastAPI:
        def start() -> Engine:
            # It has every method that the application calls.
            return cast("Engine", ClusterEngine(self._engines, self._options.engine))

        self._application = create_app(
            start, token=self._options.token, limits=self._options.limits
        )
        return self._application

    async def finish(self) -> bool:
        """Refuse what comes from now on (503), and return whether all before was answered in ``limits.stop_s``."""
        service = self._application.state.service
        service.refuse()
        until = time.monotonic() + self._options.limits.stop_s
        while service.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return not service.in_flight


@dataclass(frozen=True)
class View:
    """All replicas, as they were at the last look."""

    reports: Mapping[str, Report]
    """By replica."""
    tasks: Mapping[str, TaskStatus]
    stats: Stats

    @property
    def any(self) -> Report:
        """The report of one of them, for what they have in common."""
        return next(iter(self.reports.values()))


class ClusterEngine:
    """An engine to whoever calls it; behind it, replicas. Waits at the start until one is there."""

    def __init__(self, engines: Any, options: EngineOptions) -> None:
        self.options = options
        self._engines = engines
        self._looking = threading.Lock()
        self._gone: dict[str, Stats] = {}
        serve_errors = require("ray.serve.exceptions", "ray")
        self._overload = serve_errors.BackPressureError
        self._dead = (
            require("ray.exceptions", "ray").RayActorError,
            serve_errors.DeploymentUnavailableError,
        )
        self._view: View | None = None
        while not self._look("look"):
            time.sleep(LOOK_S / 4)
        self._watcher: Watcher = Watcher(self.look, LOOK_S)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """How the backbone can be loaded again."""
        return self._now.any.source

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the backbone."""
        return self._now.any.fingerprint

    @property
    def speed(self) -> str:
        """How the replicas run the network, in words."""
        return f"{len(self._now.reports)} replicas, {self._now.any.speed}"

    @property
    def queue_depth(self) -> int:
        """Images that wait at replicas."""
        return self._now.stats.queue_depth

    @property
    def problem(self) -> str | None:
        """Why some replica could not look at the tasks last time."""
        return next((r.problem for r in self._now.reports.values() if r.problem), None)

    # -- answers -------------------------------------------------------------------------------

    async def predict_async(
        self, image_or_batch: Any, task: str, top_k: int = 5, timeout: float | None = None
    ) -> Any:
        """Return what ``Engine.predict_async`` does, from a replica that has the task at hand if one does."""
        self.task(task)  # a name that is none would be kept by the router for ever
        until = None if timeout is None else time.monotonic() + timeout
        for _ in range(TRIES):
            left = None if until is None else max(0.0, until - time.monotonic())
            response = self._engines.options(multiplexed_model_id=task).predict.remote(
                image_or_batch, task, top_k, left
            )
            try:
                # The replica keeps to the time itself, and says more; it may be gone or not get to it.
                answer = await asyncio.wait_for(response, None if left is None else left + GRACE_S)
            except self._dead:
                continue  # predicting changes nothing: another replica is asked
            except self._overload as error:
                raise OverloadError(
                    f"all replicas are busy and {self.options.max_queue} requests wait for them; ask again later",
                    retry_after=1.0,
                ) from error
            except TimeoutError:
                response.cancel()
                raise DeadlineError(
                    f"task {task!r}: no replica answered within {timeout} s; give it more time or send less"
                ) from None
            except asyncio.CancelledError:
                response.cancel()
                raise
            return _given(answer)
        raise UnavailableError(
            f"task {task!r}: {TRIES} replicas died while they answered; see their logs"
        )

    async def infer_async(
        self,
        image: Any,
        tasks: Sequence[str] | None = None,
        top_k: int = 5,
        timeout: float | None = None,
    ) -> list[Answer]:
        """Return the answer of each of ``tasks`` for one image, the surest first; None asks all tasks.

        Each task is asked for where it is at hand, so that not every replica comes to hold them all.
        """
        names = list(self._now.tasks) if tasks is None else list(dict.fromkeys(tasks))
        if not names:
            raise UnknownTaskError("no tasks to choose from: put task files into the folder first")
        calls = [self.predict_async(image, name, top_k, timeout) for name in names]
        answers: list[Answer] = await together(calls)
        return sorted(answers, key=lambda answer: -answer.confidence)

    # -- tasks ---------------------------------------------------------------------------------

    def tasks(self) -> list[TaskStatus]:
        """Return every task that can be asked for, by name, in its best tier over the replicas."""
        return list(self._now.tasks.values())

    def task(self, name: str) -> TaskStatus:
        """Return one task's state; raises UnknownTaskError."""
        known = self._now.tasks
        if name not in known:
            raise UnknownTaskError(f"unknown task {name[:100]!r}{near_misses(name, known)}")
        return known[name]

    def refused(self) -> dict[str, str]:
        """Return why files cannot be served, by name."""
        return {k: v for report in self._now.reports.values() for k, v in report.refused.items()}

    def put_task(self, name: str, data: bytes) -> TaskStatus:
        """Have one replica check and write a task's file, and all of them take it in before this returns."""
        status: TaskStatus = self._changed(self._engines.put_task.remote(name, data))
        return self._now.tasks.get(name, status)

    def delete_task(self, name: str) -> None:
        """Have one replica delete a task's file, and all of them see it before this returns."""
        self._changed(self._engines.delete_task.remote(name))

    def rescan(self) -> None:
        """Have all replicas look at the tasks now."""
        self._look("rescan")

    def look(self) -> None:
        """Ask all replicas how they are. One that dies meanwhile is left out."""
        self._look("look")

    def stats(self) -> Stats:
        """Return what all replicas did so far, those that are gone included."""
        return self._now.stats

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Look no more; the replicas are Ray's to stop, and finish what they have."""
        self._watcher.stop()

    # -- inside --------------------------------------------------------------------------------

    @property
    def _now(self) -> View:
        if self._view is None:
            raise UnavailableError("no replica has reported yet; ask again in a moment")
        return self._view

    def _changed(self, response: Any) -> Any:
        try:
            answer = _given(response.result(timeout_s=CONTROL_S))
        except self._overload as error:
            raise OverloadError(
                "all replicas are busy; ask again later", retry_after=1.0
            ) from error
        except (*self._dead, TimeoutError) as error:
            raise UnavailableError(
                "the replica that should change the tasks did not answer; look whether it did, and ask again"
            ) from error
        self.rescan()
        return answer

    def _look(self, call: str) -> bool:
        """Whether any replica answered."""
        with self._looking:  # or an older look could replace a newer one
            try:
                response = self._engines.broadcast(call)
                found = response.results(timeout_s=CONTROL_S, return_exceptions=True)
            except (*self._dead, TimeoutError):
                return False  # none is there now; the last view stays, and calls say what is wrong
            reports = {r.replica: r for r in found if isinstance(r, Report)}
            if reports:
                self._view = self._seen(reports)
            return bool(reports)

    def _seen(self, reports: Mapping[str, Report]) -> View:
        before = {} if self._view is None else self._view.reports
        for name in reports:
            self._gone.pop(name, None)  # it was only slow to answer
        lost = {name: past(r.stats) for name, r in before.items() if name not in reports}
        self._gone.update(lost)
        while len(self._gone) > MOST_GONE:
            first, second = list(self._gone)[:2]
            both = merge_stats([self._gone.pop(first), self._gone.pop(second)], [])
            self._gone = {f"{first}+": both, **self._gone}
        tasks = merge_tasks(report.tasks for report in reports.values())
        every = [*(report.stats for report in reports.values()), *self._gone.values()]
        return View(reports, tasks, merge_stats(every, tasks.values()))


def _given(answer: Any) -> Any:
    """What a replica answered; a Failure is raised."""
    if isinstance(answer, Failure):
        raise answer.error()
    return answer
