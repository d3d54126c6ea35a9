"""A thread that looks again and again: works on every file system, also where nobody tells of changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from piggyback.errors import InputError

STOP_S = 5.0
"""Seconds to wait for a look that is going on; one at a disk that hangs may never end."""


class Watcher:
    """Calls ``look`` every ``watch_s`` seconds, from the end of one call to the start of the next, until stopped.

    An error is logged and does not end it.

    >>> seen = threading.Event()
    >>> watcher = Watcher(seen.set, watch_s=0.001)
    >>> seen.wait(10)
    True
    >>> watcher.stop()
    """

    def __init__(self, look: Callable[[], object], watch_s: float) -> None:
        if not 0 < watch_s <= threading.TIMEOUT_MAX:
            raise InputError(f"watch_s {watch_s!r}: expected seconds > 0 between two looks")
        self._look = look
        self._watch_s = watch_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="piggyback-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no further look, and wait for the one that is going on; may be called twice, and by ``look``."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._watch_s):
            try:
                self._look()
            except Exception:  # whatever went wrong, the next look may go well
                logging.getLogger(__name__).exception("a look at the tasks directory failed")
