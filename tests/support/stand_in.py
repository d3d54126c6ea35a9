"""The real server over an engine that says what a test of the page wants: no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from piggyback.errors import PiggybackError, UnknownTaskError
from piggyback.schemas import Answer, RankedClass, Span, TaskStatus, Tier, Timing, Value
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.routes import known_task
from support.fake_engine import running

TIMING = Timing(prepare=3.2, queue=1.1, load=0.0, run=14.6, total=18.9, batch=1)


def task(
    name: str, classes: Sequence[str] = ("cat", "dog", "owl"), tier: Tier = "packed", **more: Any
) -> TaskStatus:
    """Return a task's status; sizes and version follow from the name."""
    digits = hashlib.sha256(name.encode()).hexdigest()
    size = 400_000 + int(digits[:4], 16)
    fields = {"kind": "classification", "image_size": 224, **more}
    return TaskStatus(
        name=name, version=digits[:16], classes=classes, file_bytes=size,
        memory_bytes=0 if tier == "disk" else size + 5_000, tier=tier, **fields,
    )  # fmt: skip


@dataclass
class Service:
    """What the server says, to be changed by a test while it runs, and what it was asked."""

    tasks: list[TaskStatus] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    pixels: int = 50_000_000
    token: str | None = None
    failure: PiggybackError | None = None
    """What every question gets instead of an answer."""
    sure: bool = True
    """Whether a task is sure, where none is named."""
    asked: list[str] = field(default_factory=list)
    """What was asked for, in order, as the path that leads there."""
    images: list[bytes] = field(default_factory=list)
    """The files that came, byte for byte."""


class StandIn:
    """The engine of a service."""

    source, fingerprint, speed = "timm:efficientnet_lite0", "5c0ffee5" * 8, "float32, channels last"
    closed, problem = False, None

    def __init__(self, service: Service) -> None:
        self.service, self.options = service, SimpleNamespace(max_pixels=service.pixels)

    def tasks(self) -> list[TaskStatus]:
        self.service.asked.append("/v1/tasks")
        return self.service.tasks

    def task(self, name: str) -> TaskStatus:
        for status in self.service.tasks:
            if status.name == name:
                return status
        raise UnknownTaskError(f"there is no task {name!r}")

    def refused(self) -> dict[str, str]:
        return self.service.refused

    async def predict_async(
        self, images: list[Any], task: str, top_k: int, timeout: float, return_errors: bool
    ) -> list[Answer]:
        self.take(images, f"/v1/tasks/{task}/predict?top_k={top_k}")
        return [self.answer(self.task(task), top_k, 0.9) for _ in images]

    async def infer_async(self, image: Any, tasks: None, top_k: int, timeout: float) -> Any:
        self.take([image], f"/v1/predict?top_k={top_k}")
        sure = 0.9 if self.service.sure else 0.3
        held = enumerate(self.service.tasks, 1)
        return [self.answer(status, top_k, sure / place) for place, status in held]

    def take(self, images: list[Any], path: str) -> None:
        self.service.asked.append(path)
        self.service.images += [i if isinstance(i, bytes) else i.encode() for i in images]
        if self.service.failure is not None:
            raise self.service.failure

    def answer(self, status: TaskStatus, top_k: int, confidence: float) -> Answer:
        """The first class has 0.75, each next one a fifth of the one before.

        Numbers are 1234.5678 m; of several labels the first is given; of a text the letters 3 to 8 are marked.
        """
        more: dict[str, Any] = {}
        names = enumerate(status.classes[:top_k])
        if status.kind == "regression":
            more["values"] = [Value(name=name, value=1234.5678, unit="m") for _, name in names]
        elif status.kind == "tokens":
            more["spans"] = [Span(start=3, end=8, text="", label="place", probability=0.9)]
        else:
            more["ranking"] = [RankedClass(name=n, probability=0.75 * 0.2**i) for i, n in names]
        if status.kind == "multilabel":
            more["labels"] = status.classes[:1]
        return Answer(
            task=status.name, version=status.version, tier=status.tier, timing=TIMING,
            confidence=confidence, **more,
        )  # fmt: skip

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Nothing to close."""


async def any_task(task: str) -> str:
    """Takes names that no task has: whatever a server said, the page shows it as text."""
    return task


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve ``service`` on a free port; gives the page's address."""
    app = create_app(lambda: StandIn(service), token=service.token, limits=service.limits)
    app.dependency_overrides[known_task] = any_task
    with running(app) as server:
        yield f"{server.address}/"
