"""Decodes task files in a process of its own: the engine's threads do not wait for Python's lock meanwhile.

Decoding a task is thousands of small steps that each hold the lock; the network's forward pass, which takes and
gives it a few hundred times, would be late at every one. The process runs at a lower priority, so that
cold tasks take what hot ones leave. What it sends back is pickled: both ends are this program.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from io import BytesIO
from typing import IO, Any

import torch
from torch import Tensor

from piggyback.errors import UnavailableError
from piggyback.taskfile.file import load
from piggyback.taskfile.parse import Shapes
from piggyback.taskfile.task import Task

NICENESS = 10
_LENGTH = 8
_END_S = 5.0


class Decoder:
    """Loads task files for a backbone with these shapes, one at a time; may be used from several threads.

    The process takes seconds to start; until then, files are decoded here.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = dict(shapes)
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    @property
    def pid(self) -> int:
        """The process that decodes."""
        return self._process.pid

    def wait(self, timeout: float) -> bool:
        """Return whether the process was ready within ``timeout`` seconds."""
        return self._ready.wait(timeout)

    def load(self, data: bytes, name: str) -> Task:
        """Return what ``tasks.file.load`` does; raises what it does, and UnavailableError where the process ended."""
        if not self._ready.is_set():
            return load(data, name, expect=self._shapes)
        with self._lock:
            try:
                _send(self._process.stdin, (name, data))
                answer = _receive(self._process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                self._end()
                if not self._closed:
                    logging.getLogger(__name__).warning(
                        "the decoding process ended; starting another"
                    )
                    self._start()
                raise UnavailableError(
                    f"task {name!r}: the process that decodes files ended at it; memory may be short, ask again"
                ) from error
        if isinstance(answer, Exception):
            raise answer
        task: Task = answer
        return task

    def close(self) -> None:
        """End the process; a file that is being decoded is given up."""
        self._closed = True
        self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import decode; decode()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ready = threading.Event()
        greeted = threading.Thread(target=self._greet, args=(self._process, self._ready))
        greeted.daemon = True
        greeted.start()

    def _greet(self, process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        with suppress(OSError, EOFError):  # it was ended before it was ready
            _send(process.stdin, self._shapes)
            _receive(process.stdout)
            ready.set()

    def _end(self) -> None:
        self._process.kill()  # it holds nothing but copies
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def decode() -> None:
    """Answer what a ``Decoder`` writes to this process's standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine's to decide
    torch.set_num_threads(1)
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not come between
    shapes = _receive(incoming)
    _send(outgoing, None)
    while True:
        try:
            name, data = _receive(incoming)
        except EOFError:
            return
        try:
            answer: Task | Exception = load(data, name, expect=shapes)
        except Exception as error:  # noqa: BLE001  raised again where it was asked for
            answer = error
        _send(outgoing, answer)


class _Pickler(pickle.Pickler):
    """Tensors as their bytes: torch's own way takes files or shared memory."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            return _tensor, (
                str(value.dtype).removeprefix("torch."),
                value.shape,
                flat.numpy().tobytes(),
            )
        return NotImplemented


def _tensor(dtype: str, shape: torch.Size, data: bytes) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)


def _send(pipe: IO[bytes] | None, value: Any) -> None:
    if pipe is None:
        raise EOFError
    buffer = BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    pipe.write(buffer.tell().to_bytes(_LENGTH, "little"))
    pipe.write(buffer.getbuffer())
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> Any:
    length = b"" if pipe is None else pipe.read(_LENGTH)
    if pipe is None or len(length) < _LENGTH:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(length, "little")))
