"""Decodes task files in a process of its own, so that the engine's threads do not wait for Python's lock meanwhile.

Decoding a task is thousands of small steps that each hold the lock; the network's forward pass, which takes and
gives it a few hundred times, would be late at every one. The process runs at a lower priority, so that cold tasks
take what hot ones leave.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import UnavailableError
from piggyback.taskfile.file import load
from piggyback.taskfile.header import Shapes
from piggyback.taskfile.task import Task

NICENESS = 10
logger = logging.getLogger(__name__)


class Decoder:
    """Loads task files for a backbone with these shapes; may be used from several threads.

    The process takes seconds to start; until then, and where it cannot be started, files are decoded here.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = dict(shapes)
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    @property
    def ready(self) -> Future[int]:
        """Holds the id of the process once it decodes."""
        return self._ready

    def load(self, data: bytes, name: str) -> Task:
        """Return and raise what ``taskfile.file.load`` does; UnavailableError where the process ended."""
        with self._lock:
            pool, ready = self._pool, self._ready
        if not ready.done() or ready.exception() is not None:
            return load(data, name, expect=self._shapes)
        try:
            decoded = pool.submit(_decode, data, name).result()
        except (BrokenProcessPool, RuntimeError) as error:  # RuntimeError: it was closed just now
            with self._lock:
                if pool is self._pool and not self._closed:
                    logger.warning("the decoding process ended; starting another")
                    self._start()
            raise UnavailableError(
                f"task {name!r}: the process that decodes files ended at it; memory may be short, ask again"
            ) from error
        task: Task = pickle.loads(decoded)
        return task

    def close(self) -> None:
        """End the process once it has decoded what it is at."""
        with self._lock:
            self._closed = True
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
        self._pool = ProcessPoolExecutor(1, context, _begin, (self._shapes,))
        self._ready = self._pool.submit(os.getpid)
        self._ready.add_done_callback(_tell_problem)


def _tell_problem(ready: Future[int]) -> None:
    if not ready.cancelled() and (problem := ready.exception()) is not None:
        logger.warning(
            "task files are decoded in this process: no other can be started: %s", problem
        )


# -- in the process ------------------------------------------------------------------------------

_expected: dict[str, tuple[int, ...]] = {}


def _begin(shapes: dict[str, tuple[int, ...]]) -> None:
    _expected.update(shapes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine's to decide
    torch.set_num_threads(1)
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the engine's was killed: nothing else would tell it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(data: bytes, name: str) -> bytes:
    buffer = BytesIO()
    _Pickler(buffer, protocol=5).dump(load(data, name, expect=_expected))
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as their bytes: torch's own way between processes takes shared memory, an open file for each."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            return _tensor, (value.dtype, value.shape, flat.numpy().tobytes())
        return NotImplemented


def _tensor(dtype: torch.dtype, shape: torch.Size, data: bytes) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
