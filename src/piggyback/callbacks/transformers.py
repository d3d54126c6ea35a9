"""A callback for the Trainer of transformers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from piggyback.callbacks.task_file import TaskFile
from piggyback.errors import InputError, require
from piggyback.masks.optimizer import MaskOptimizer, warmup_cosine
from piggyback.model.multitask import MultiTaskModel

transformers: Any = require("transformers", "text")


class TrainerTask(TaskFile, transformers.TrainerCallback):  # type: ignore[misc]
    """Learns a task of ``model`` in a Trainer of transformers, and writes its file when training ends.

    ``options`` are those of ``MultiTaskModel.start_task``. The Trainer takes what ``optimizers`` returns, and this as
    one of its ``callbacks``. The task is finished when training is, as ``load_best_model_at_end`` leaves it, and held
    in ``task``; after an exception it stays in training.

    Raises TaskStateError, when the Trainer is made, where it has another model or optimizer; InputError where its
    arguments would drop the network's inputs, or evaluate without labels, and, before the first step, where it takes
    another number of steps.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        path: str | os.PathLike[str],
        classes: int | Sequence[str] | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, classes, name=name, **options)
        self.model = model
        self._steps: int | None = None

    def optimizers(
        self,
        steps: int,
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        **options: Any,
    ) -> tuple[MaskOptimizer, torch.optim.lr_scheduler.LambdaLR]:
        """Start the task and return its optimizer and schedule over ``steps`` steps of the optimizer in all.

        ``inner`` and ``options`` are those of ``MultiTaskModel.optimizer``.
        """
        self.start(self.model)
        optimizer = self.model.optimizer(inner, steps=steps, **options)
        self._steps = steps
        return optimizer, warmup_cosine(optimizer, steps)

    def on_init_end(self, args: Any, state: Any, control: Any, **has: Any) -> None:
        """Look whether the Trainer can train the task."""
        self.check(has["model"], [has["optimizer"]] if has["optimizer"] else [])
        taken = [
            name
            for name, each in inspect.signature(type(self.model).forward).parameters.items()
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
            and name not in ("self", "task")
        ]
        network = type(self.model.backbone).__name__
        if args.remove_unused_columns and not [name for name in taken if "label" not in name]:
            raise InputError(
                f"task {self.name!r}: {network}.forward names no inputs, so the Trainer would drop every column: "
                "expected TrainingArguments(remove_unused_columns=False)"
            )
        labels = transformers.utils.find_labels(type(self.model))
        if args.eval_strategy != "no" and not (
            labels if args.label_names is None else args.label_names
        ):
            raise InputError(
                f"task {self.name!r}: {network}.forward names no labels, so the Trainer would evaluate without them: "
                "expected TrainingArguments(label_names=[...])"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **has: Any) -> None:
        """Look again, for a callback that was added later, and at the number of steps."""
        self.on_init_end(args, state, control, **has)
        if self._steps not in (None, state.max_steps):
            raise InputError(
                f"task {self.name!r}: optimizers({self._steps}), but the Trainer takes {state.max_steps} steps: "
                "expected the same number, from which rates and schedule follow"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **has: Any) -> None:
        """Finish the task, on every process, and write it on the first."""
        self.finish(write=state.is_world_process_zero)
