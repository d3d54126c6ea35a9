"""The engine behind the routes, from the moment it is being started to the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from starlette.concurrency import run_in_threadpool

from piggyback.errors import ClosedError, PiggybackError, StartFailedError, StartingError
from piggyback.schemas import Health
from piggyback.serve.http.limits import Limits

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine

LOGGER = logging.getLogger(__name__)

_ERRORS = {"starting": StartingError, "failed": StartFailedError, "stopping": ClosedError}


class Service:
    """One engine, how far it is, and what its clients may do. An application has it as ``app.state.service``."""

    def __init__(
        self,
        engine: Engine | Callable[[], Engine],
        limits: Limits,
        token: str | None = None,
        local_only: bool = False,
    ) -> None:
        self.limits, self.token, self.local_only = limits, token, local_only
        self.failure: Exception | None = None
        """What the start of the engine raised."""
        self.in_flight = 0
        """Requests that are being answered."""
        self.held = 0
        """Bytes of their bodies."""
        self.started: Engine | None = None
        """The engine as far as there is one, to be asked what it did."""
        self._start: Callable[[], Engine] | None = None
        if callable(engine):
            self._start = engine
        else:
            self.started = engine
        self._begun = self._stopping = False
        self._drain = True
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> Literal["starting", "ready", "stopping", "failed"]:
        """How far the engine is."""
        if self._stopping or (self.started is not None and self.started.closed):
            return "stopping"
        if self.failure is not None:
            return "failed"
        return "starting" if self.started is None else "ready"

    @property
    def health(self) -> Health:
        """The status, and one line on why there are no answers."""
        known = isinstance(self.failure, PiggybackError)
        reasons = {
            "starting": "the network is being loaded; ask again in a moment"
            if self._begun
            else "the application was not started: run its lifespan, or give it an engine that is ready",
            "stopping": "the server is stopping"
            if self._stopping
            else "the engine was closed, or made before a fork: give each process one of its own",
            "failed": "the server could not start: "
            f"{self.failure if known else 'an internal error; see its log'}",
        }
        return Health(status=self.status, reason=reasons.get(self.status))

    @property
    def engine(self) -> Engine:
        """The engine, ready. Raises StartingError, StartFailedError or ClosedError where it is not."""
        if self.started is not None and self.status == "ready":
            return self.started
        raise _ERRORS[self.status](self.health.reason)

    def reset(self) -> None:
        """Be as new: an application may be started again after it has ended."""
        self._begun, self._stopping, self._drain, self.failure = True, False, True, None
        if self._start is not None:
            self.started = self._thread = None

    def begin(self) -> None:
        """Start the engine in a thread, if it was not given ready; returns at once."""
        if self._start is not None and not self._stopping:
            LOGGER.info({"event": "starting"})
            self._thread = threading.Thread(target=self._run, name="piggyback-start", daemon=True)
            self._thread.start()

    def refuse(self) -> None:
        """Answer nothing new from now on."""
        if not self._stopping:
            LOGGER.info({"event": "stopping", "in_flight": self.in_flight})
        self._stopping = True

    def abandon(self) -> None:
        """Give up what is queued when the engine is closed."""
        self._drain = False

    async def end(self) -> None:
        """Close the engine once what is queued has been answered, in bounded time; not one that was given ready."""
        self.refuse()
        if self._start is not None:
            await run_in_threadpool(self._close)
        LOGGER.info({"event": "stopped"})

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            engine = self._start() if self._start else None
            mine = self._thread is threading.current_thread()
            if mine:
                self.started = engine
            if engine is not None and (self._stopping or not mine):
                engine.close(drain=False)  # nobody has waited for it
                return
            LOGGER.info({"event": "ready", "seconds": round(time.perf_counter() - began, 2)})
        except Exception as error:
            # Nothing above this thread could tell anyone: /health does.
            if isinstance(error, PiggybackError):
                LOGGER.error({"event": "failed to start", "reason": str(error)})
            else:
                LOGGER.exception("the engine could not be started")
            self.failure = error

    def _close(self) -> None:
        if self.started is not None:
            self.started.close(drain=self._drain, timeout=self.limits.stop_s)
