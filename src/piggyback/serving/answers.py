"""What the engine says: answers, and the state of its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Tier = Literal["dense", "packed", "disk"]
"""Where a task is: a live copy of the network holds it, its bits are in memory, or only its file is there."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one request, and the batch it was answered in."""

    prepare: float
    """Decoding and resizing the image."""
    queue: float
    """From being queued to the start of its batch, without ``load``."""
    load: float
    """Of the time in the queue, how long its task was being read from disk."""
    run: float
    """Its batch's: making the task live, and the network's forward pass."""
    total: float
    batch: int
    """Images answered together."""

    def to_json(self) -> dict[str, float | int]:
        """Return plain JSON values."""
        times = {name: getattr(self, name) for name in ("prepare", "queue", "load", "run", "total")}
        return {**{name: round(ms, 3) for name, ms in times.items()}, "batch": self.batch}


@dataclass(frozen=True)
class Answer:
    """What one task says about one image."""

    task: str
    version: str
    """Of the task file that answered: the first 16 digits of its SHA-256."""
    classes: tuple[str, ...]
    """The ``top_k`` likeliest, likeliest first."""
    probabilities: tuple[float, ...]
    confidence: float
    """1 - entropy / log(classes), in [0, 1]: by which a task is inferred."""
    tier: Tier
    """Where the task was when its batch was begun."""
    timing: Timing

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return {
            "task": self.task,
            "version": self.version,
            "classes": [{"class": name, "probability": round(p, 6)} for name, p in pairs],
            "confidence": round(self.confidence, 6),
            "tier": self.tier,
            "timing_ms": self.timing.to_json(),
        }


@dataclass(frozen=True)
class TaskStatus:
    """A task that can be asked for."""

    name: str
    version: str
    kind: str
    classes: tuple[str, ...]
    file_bytes: int
    memory_bytes: int
    """Its packed bits, head and normalisation in memory; 0 on disk. A live copy is not counted."""
    tier: Tier
    image_size: int | None
    """Side of the square the network sees, in pixels; None where the file does not say."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "classes": list(self.classes)}
