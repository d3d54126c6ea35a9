"""What the engine says: answers, and the state of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Timing:
        """Return what ``to_json`` gave; raises KeyError, TypeError or ValueError for anything else.

        >>> Timing.from_json(Timing(1.5, 2.0, 0.0, 3.25, 6.75, 4).to_json()).run
        3.25
        """
        times = {field.name: float(values[field.name]) for field in fields(cls)}
        batch = int(times.pop("batch"))
        return cls(**times, batch=batch)


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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Answer:
        """Return what ``to_json`` gave; raises KeyError, TypeError or ValueError for anything else.

        >>> timing = Timing(1.5, 2.0, 0.0, 3.25, 6.75, 4)
        >>> answer = Answer("signs", "0" * 16, ("stop",), (0.75,), 0.5, "dense", timing)
        >>> Answer.from_json(answer.to_json()) == answer
        True
        """
        return cls(
            task=str(values["task"]),
            version=str(values["version"]),
            classes=tuple(str(one["class"]) for one in values["classes"]),
            probabilities=tuple(float(one["probability"]) for one in values["classes"]),
            confidence=float(values["confidence"]),
            tier=_tier(values["tier"]),
            timing=Timing.from_json(values["timing_ms"]),
        )


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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TaskStatus:
        """Return what ``to_json`` gave; raises KeyError, TypeError or ValueError for anything else.

        >>> status = TaskStatus("signs", "0" * 16, "classification", ("go", "stop"), 999, 0, "disk", 64)
        >>> TaskStatus.from_json(status.to_json()) == status
        True
        """
        held = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**held, "classes": tuple(held["classes"]), "tier": _tier(held["tier"])})


def _tier(value: Any) -> Tier:
    """``value``, if it is a tier."""
    if value not in get_args(Tier):
        raise ValueError(f"tier {value!r}: expected one of {', '.join(get_args(Tier))}")
    found: Tier = value
    return found
