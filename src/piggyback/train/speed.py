"""Which arithmetic and memory layout is fastest here: measured on real steps and remembered.

Which of these wins differs from model to model and from processor to processor (ResNet-50 gains
from bfloat16 where EfficientNet-Lite0 loses), so it is tried on a copy of the network before
training starts. The winner is written into the user's cache folder: runs that are repeated or
resumed on a machine make the same choice.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from piggyback.errors import CheckpointError
from piggyback.train.checkpoint import write_atomically
from piggyback.train.recipe import Recipe

REPEATS = 2
"""Timed steps of each candidate, after one to warm up; the fastest counts."""
MARGIN = 0.95
"""A candidate replaces a simpler one only if it takes less than this part of its time."""


@dataclass(frozen=True)
class Speed:
    """How to run the network.

    >>> Speed("bf16", channels_last=True)
    Speed(amp='bf16', channels_last=True)
    """

    amp: str = "no"
    channels_last: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to autocast to; float32 for none."""
        return torch.bfloat16 if self.amp == "bf16" else torch.float32


def candidates(recipe: Recipe) -> list[Speed]:
    """Return what the recipe leaves open, the simplest first.

    >>> candidates(Recipe(amp="no", channels_last="yes"))
    [Speed(amp='no', channels_last=True)]
    """
    amps = ["no", "bf16"] if recipe.amp == "auto" else [recipe.amp]
    layouts = {"auto": [False, True], "yes": [True], "no": [False]}[recipe.channels_last]
    made = [Speed(amp, layout) for amp in amps for layout in layouts]
    # bfloat16 kernels are written for channels last; without it they are never the fastest.
    return [s for s in made if s != Speed("bf16", False)] if len(made) == 4 else made


def choose(
    options: Sequence[Speed], key: Mapping[str, Any], step: Callable[[Speed], Callable[[], None]]
) -> Speed:
    """Return the fastest of ``options``, from the cache where ``key`` was measured before.

    ``step(option)`` returns a function that runs one training step that way.
    """
    if len(options) == 1:
        return options[0]
    names = [f"{option.amp} {option.channels_last}" for option in options]
    place = _cache_file({**key, "options": names})
    known = _read(place)
    if known is not None and known in options:
        return known
    best, best_time = options[0], float("inf")
    for option in options:
        seconds = _time(step(option), give_up=2.5 * best_time)
        if seconds < MARGIN * best_time:
            best, best_time = option, seconds
    _write(place, best)
    return best


def _time(run: Callable[[], None], give_up: float) -> float:
    """The shortest of some steps in seconds; fewer where the first takes over ``give_up``."""
    fastest = float("inf")
    for repeat in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = time.perf_counter() - start
        if repeat or taken > give_up:  # the first one sets up kernels and memory
            fastest = min(fastest, taken)
        if taken > give_up:
            break
    return fastest


def _cache_file(key: Mapping[str, Any]) -> Path:
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
    text = json.dumps({**machine, **key}, sort_keys=True)
    folder = os.environ.get("PIGGYBACK_CACHE") or Path.home() / ".cache" / "piggyback"
    return Path(folder) / "speed" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def _read(place: Path) -> Speed | None:
    try:
        return Speed(**json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(place: Path, speed: Speed) -> None:
    text = json.dumps(asdict(speed))
    try:
        write_atomically(place, lambda temporary: _write_text(temporary, text))
    except CheckpointError:
        return  # a cache that cannot be written costs a measurement next time, nothing else


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
