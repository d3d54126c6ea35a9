"""Servers without masks: one network into which whole state dicts are loaded, or one network for each task.

They batch as the engine does, with the engine's own queues, and have as many workers. ``fifo`` is the
simplest server instead: requests in order of arrival, neighbours of the same task together.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from piggyback.errors import OverloadError
from piggyback.serve.options import EngineOptions
from piggyback.serve.scheduler.queues import Queues

Discipline = Literal["grouped", "fifo"]
State = Mapping[str, Tensor]


@dataclass(eq=False)
class Asked:
    """A request."""

    task: str
    image: Tensor
    arrived: float
    future: Future[Any] = field(default_factory=Future)


class PlainServer:
    """Threads around a queue; ``makers`` gives each worker its function from a task to the network that answers."""

    def __init__(
        self,
        makers: Callable[[], Callable[[str], tuple[nn.Module, bool]]],
        discipline: Discipline = "grouped",
    ) -> None:
        options = EngineOptions(device="cpu")
        self._options, self._discipline = options, discipline
        self._ready = threading.Condition()
        self._queues: Queues[str, Asked] = Queues(options.max_batch, options.patience_ms / 1e3)
        self._line: deque[Asked] = deque()
        self._stopped = False
        self._counts = {"batches": 0.0, "images": 0.0, "switches": 0.0}
        workers, threads = options.division()
        self._threads = [
            threading.Thread(target=self._work, args=(makers(), threads), daemon=True)
            for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, image: Tensor, task: str) -> Future[Any]:
        """Queue an image; raises OverloadError."""
        asked = Asked(task, image, time.perf_counter())
        with self._ready:
            if len(self._queues) + len(self._line) >= self._options.max_queue:
                raise OverloadError("the queue is full", retry_after=1.0)
            if self._discipline == "fifo":
                self._line.append(asked)
            else:
                self._queues.add(task, asked)
            self._ready.notify()
        return asked.future

    def counts(self) -> dict[str, float]:
        """Return batches, images and switches so far."""
        with self._ready:
            return dict(self._counts)

    def close(self) -> None:
        """End the workers."""
        with self._ready:
            self._stopped = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, network_of: Callable[[str], tuple[nn.Module, bool]], threads: int) -> None:
        torch.set_num_threads(threads)
        live = ""
        while (batch := self._next(live)) is not None:
            if not batch:
                continue
            live = batch[0].task
            with torch.inference_mode():
                network, switched = network_of(live)
                x = torch.stack([asked.image for asked in batch])
                y = network(x.contiguous(memory_format=torch.channels_last)).softmax(1)
                values, order = y.topk(min(5, y.shape[1]), dim=1)
            rows = list(zip(values.tolist(), order.tolist(), strict=True))
            with self._ready:
                self._counts["batches"] += 1
                self._counts["images"] += len(batch)
                self._counts["switches"] += switched
            for asked, row in zip(batch, rows, strict=True):
                asked.future.set_result(row)

    def _next(self, live: str) -> list[Asked] | None:
        """The next batch, without those who went away; None at the end."""
        with self._ready:
            while not (self._line or len(self._queues)):
                if self._stopped:
                    return None
                self._ready.wait()
            if self._discipline == "fifo":
                batch = [self._line.popleft()]
                while (
                    self._line
                    and self._line[0].task == batch[0].task
                    and len(batch) < self._options.max_batch
                ):
                    batch.append(self._line.popleft())
            else:
                taken = self._queues.take(time.perf_counter(), lambda task: task == live)
                batch = [] if taken is None else taken[1]
            return [asked for asked in batch if asked.future.set_running_or_notify_cancel()]


def reloading(
    network: nn.Module, state_of: Callable[[str], State]
) -> Callable[[], Callable[[str], tuple[nn.Module, bool]]]:
    """Return what gives each worker a network of its own, into which ``state_of(task)`` is loaded at a switch."""

    def worker() -> Callable[[str], tuple[nn.Module, bool]]:
        own, held = copy.deepcopy(network), [""]

        def network_of(task: str) -> tuple[nn.Module, bool]:
            switched = held[0] != task
            if switched:
                own.load_state_dict(state_of(task))
                held[0] = task
            return own, switched

        return network_of

    return worker


def whole(
    networks: Mapping[str, nn.Module],
) -> Callable[[], Callable[[str], tuple[nn.Module, bool]]]:
    """Return what gives every worker the same networks, one a task."""
    return lambda: lambda task: (networks[task], False)


def from_disk(place: Path) -> Callable[[str], State]:
    """Return a function that reads a task's state dict, as ``torch.save`` wrote it."""

    def state_of(task: str) -> State:
        found: State = torch.load(place / f"{task}.pt", weights_only=True)
        return found

    return state_of
