"""What the callbacks share: a task from its start in a trainer to its file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from piggyback.errors import InputError, TaskFileError, TaskStateError
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.header import keep_task
from piggyback.taskfile.task import Task


class TaskFile:
    """A task that a trainer learns, and the file that it becomes, called by the file's name unless told."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: int | Sequence[str] | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem if name is None else name
        self._classes, self._options = classes, options
        self._model: MultiTaskModel | None = None
        self.task: Task | None = None
        """The finished task; None until training has ended."""

    def start(self, model: MultiTaskModel) -> None:
        """Start the task, unless it is in training already: after an interrupted run it goes on.

        Raises InputError where the file is another task's; this task's own, of an earlier run, is written anew.
        """
        keep_task(self.path, "file", own=self.name)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"task {self.name!r}: no file can be written to {str(self.path.parent)!r} ({error.strerror}): "
                "choose another folder"
            ) from error
        if model.training_task != self.name:
            model.start_task(self.name, self._classes, **self._options)
        self._model = model

    def check(self, model: object, optimizers: Iterable[Any]) -> None:
        """Raise TaskStateError where ``optimizers``, a trainer's, do not train this task of ``model``."""
        own = self._model
        if own is None or own is not model or own.training_task != self.name:
            raise TaskStateError(
                f"task {self.name!r} is not in training in the model that the trainer has: expected the MultiTaskModel "
                "that the callback was given, and a callback of its own for each training"
            )
        masked: set[int] = set()
        held: set[int] = set()
        found = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        for optimizer in found:
            for group in optimizer.param_groups:
                ids = set(map(id, group["params"]))
                held |= ids
                masked |= ids if isinstance(optimizer, MaskOptimizer) and group["masked"] else set()
        for group in own.parameter_groups(0.0):
            there = masked if group.get("masked") else held
            for name, param in zip(group["names"], group["params"], strict=True):
                if id(param) not in there:
                    listed = ", ".join(type(each).__name__ for each in found) or "no optimizer"
                    raise TaskStateError(
                        f"task {self.name!r}: {name!r} is not trained by the trainer's {listed}: expected the "
                        "MaskOptimizer of model.optimizer(...), made after this task was started"
                    )

    def finish(self, *, write: bool) -> None:
        """Finish the task, and write its file; raises TaskFileError where that cannot be, with the task held."""
        if self._model is None:
            raise TaskStateError(f"task {self.name!r} was not started")
        self.task = self._model.finish_task()
        if write:
            try:
                self._model.save_task(self.name, self.path)
            except TaskFileError as error:
                raise TaskFileError(
                    f"{error}; the model holds it: model.save_task({self.name!r}, elsewhere)"
                ) from error
