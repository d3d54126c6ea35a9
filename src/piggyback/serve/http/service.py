"""The engine behind the routes, from the moment it is being started to the end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from piggyback.errors import PiggybackError
from piggyback.serve.engine import Engine
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.refusals import RefusedError

Status = Literal["starting", "ready", "stopping", "failed"]
T = TypeVar("T")

LOGGER = logging.getLogger(__name__)

_STEP_S = 0.1
"""Between looks whether to go on waiting for a start."""


class Service:
    """One engine, how far it is, and what its clients may do."""

    def __init__(self, start: Callable[[], Engine], token: bytes | None, limits: Limits) -> None:
        self.token = token
        self.limits = limits
        self.failure: BaseException | None = None
        """What ``start`` raised."""
        self.in_flight = 0
        """Requests that are being answered."""
        self.held = 0
        """Bytes of their bodies."""
        self.only_local = False
        """Whether to answer only those who ask for an address or "localhost"."""
        self._start = start
        self._engine: Engine | None = None
        self._stopping = False
        self._drain = True
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> Status:
        """How far the engine is."""
        if self._stopping:
            return "stopping"
        if self.failure is not None:
            return "failed"
        return "starting" if self._engine is None else "ready"

    @property
    def engine(self) -> Engine:
        """The engine, ready; raises RefusedError (503) where it is not."""
        if self._engine is not None and not self._stopping:
            return self._engine
        raise RefusedError(503, self.status, self.reason, {"Retry-After": "1"})

    @property
    def counted(self) -> Engine | None:
        """The engine as far as there is one, to be asked what it did."""
        return self._engine

    @property
    def reason(self) -> str:
        """One line on why there is no answer."""
        return {
            "ready": "the server is ready",
            "starting": "the network is being loaded; ask again in a moment",
            "stopping": "the server is stopping",
            "failed": f"the server could not start: {_told(self.failure)}",
        }[self.status]

    def begin(self) -> None:
        """Start the engine in a thread; returns at once."""
        self._thread = threading.Thread(target=self._run, name="piggyback-start", daemon=True)
        self._thread.start()

    def refuse(self) -> None:
        """Answer nothing new from now on."""
        self._stopping = True

    def abandon(self) -> None:
        """Give up what is queued when the engine is closed."""
        self._drain = False

    async def end(self) -> None:
        """Close the engine once what is queued has been answered, in bounded time."""
        self.refuse()
        await self.aside(self._close)

    async def aside(self, work: Callable[[], T]) -> T:
        """Return what ``work`` does in a thread, while others are answered."""
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _run(self) -> None:
        try:
            self._engine = self._start()
        except PiggybackError as error:
            self.failure = error
        except Exception as error:
            # Nothing above this thread could tell anyone: /health does.
            LOGGER.exception("the engine could not be started")
            self.failure = error

    def _close(self) -> None:
        if self._thread is not None:
            until = time.monotonic() + self.limits.stop_s
            while self._drain and self._thread.is_alive() and time.monotonic() < until:
                self._thread.join(_STEP_S)
        if self._engine is not None:
            self._engine.close(drain=self._drain, timeout=self.limits.stop_s)


def _told(error: BaseException | None) -> str:
    return str(error) if isinstance(error, PiggybackError) else "an internal error; see its log"
