"""Ratios of two things done in turns, and the rows that report them."""

from __future__ import annotations

import datetime
import gc
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

PACKAGES = ("torch", "timm", "numpy", "torch-piggyback")


@dataclass(frozen=True)
class Settings:
    """Where to measure, and whether on toy sizes, which only shows that a benchmark runs."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    clock: Callable[[], float] = time.perf_counter
    """In seconds; ``time.thread_time`` leaves out the time that other programs took."""

    @property
    def networks(self) -> tuple[str, ...]:
        """timm's names of the networks to measure."""
        return ("test_resnet",) if self.quick else ("resnet50", "efficientnet_lite0")

    def repeats(self, count: int) -> int:
        """``count``, or 2 in quick mode."""
        return 2 if self.quick else count


@dataclass(frozen=True)
class Row:
    """One ratio and what it should be."""

    name: str
    ratio: float
    aim: float
    ours: float
    theirs: float
    unit: str
    at_least: bool = False
    """Whether a ratio is good from ``aim`` on, not up to it."""
    note: str = ""

    @property
    def sign(self) -> str:
        """Stands before ``aim``."""
        return ">=" if self.at_least else "<="

    @property
    def meets(self) -> bool:
        """Whether the ratio is on the right side of ``aim``."""
        return self.ratio >= self.aim if self.at_least else self.ratio <= self.aim

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return {**asdict(self), "meets": self.meets}


@dataclass(frozen=True)
class Pair:
    """Seconds of one side and the other, and the median of the ratios of neighbours in time."""

    ratio: float
    ours: float
    theirs: float


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    settings: Settings,
    *,
    repeats: int,
    after: Callable[[], object] = lambda: None,
) -> Pair:
    """Return what ``ours`` takes against ``theirs``: in turns, the first alternating, after one untimed turn of each.

    ``after`` runs, untimed, after each of ours.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, settings.repeats(repeats)):
        for side in ((0, 1), (1, 0))[turn % 2]:
            gc.collect()
            gc.disable()
            seconds = _seconds((ours, theirs)[side], settings)
            gc.enable()
            if side == 0:
                after()
            if turn >= 0:
                times[side].append(seconds)
    ratio = median(a / b for a, b in zip(*times, strict=True))
    return Pair(ratio, median(times[0]), median(times[1]))


def _seconds(run: Callable[[], object], settings: Settings) -> float:
    device = settings.device
    if device.type != "cuda":
        start = settings.clock()
        run()
        return settings.clock() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1e3


def machine(settings: Settings) -> dict[str, Any]:
    """Return what the numbers depend on: processor, threads, versions, date."""
    device = settings.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": settings.clock.__name__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
