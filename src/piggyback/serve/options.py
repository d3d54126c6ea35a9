"""How an engine works: every choice, with its default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import Literal

import torch

from piggyback.errors import InputError

MOST_WORKERS = 4
"""Beyond, Python's own lock is in the way: more cores go into each worker's operations."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine works; the defaults are for a server of its own."""

    max_batch: int = 32
    """Images answered together at most."""
    max_queue: int = 1024
    """Images that may wait, half of them for one task; more raise OverloadError."""
    patience_ms: float = 20.0
    """How long a request may be passed by for the sake of fewer switches: see ``queues.py``."""
    workers: int | None = None
    """Threads that run the network, each on its share of the cores; None: a worker a core, at most 4, one for a GPU."""
    loaders: int = 1
    """Threads that read task files."""
    decode_apart: bool = False
    """Whether task files are decoded in a process of its own, so that hot tasks hardly notice cold ones; it takes about
    300 MB, most of them shared."""
    device: str | None = None
    """None: the first GPU, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the network's arithmetic; auto: bfloat16 where it is measured to be clearly faster."""
    compile: bool = False
    """Whether the network is compiled: minutes for the first batches, which come after the start; faster ones then."""
    watch_s: float = 1.0
    """Seconds between looks at the folder; 0: only ``rescan`` looks."""
    max_pixels: int = 25_000_000
    """Of one image; larger ones are refused before they are decoded, which takes up to 19 bytes a pixel."""

    def __post_init__(self) -> None:
        counts = {
            "max_batch": self.max_batch,
            "max_queue": self.max_queue,
            "workers": 1 if self.workers is None else self.workers,
            "loaders": self.loaders,
            "max_pixels": self.max_pixels,
        }
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{name} {value!r}: expected a whole number, 1 or more")
        for name, seconds in (("patience_ms", self.patience_ms), ("watch_s", self.watch_s)):
            if not 0 <= seconds <= TIMEOUT_MAX:
                raise InputError(f"{name} {seconds!r}: expected a number, 0 or more")

    @property
    def place(self) -> str:
        """The device that the network runs on."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def division(self) -> tuple[int, int]:
        """Return the number of workers, and of cores each may use.

        >>> EngineOptions(workers=1).division()[0]
        1
        """
        cores = torch.get_num_threads()
        workers = self.workers or (min(cores, MOST_WORKERS) if self.place == "cpu" else 1)
        return workers, max(1, cores // workers)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use ``number`` cores within the block.

    Threads that start in it and call ``torch.set_num_threads`` keep their own number; others are as before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(
            before
        )  # the number of threads to come, too: torch has one for them all
