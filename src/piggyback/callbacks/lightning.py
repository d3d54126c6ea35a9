"""A callback for Lightning."""

from __future__ import annotations

import multiprocessing
from typing import Any

from piggyback.callbacks.task_file import TaskFile
from piggyback.errors import TaskStateError, require
from piggyback.model.multitask import MultiTaskModel

Callback: Any = require("lightning.pytorch", "lightning").Callback


class LightningTask(TaskFile, Callback):  # type: ignore[misc]
    """Learns a task of the one MultiTaskModel in a LightningModule, and writes its file when ``fit`` ends.

    ``LightningTask(path, classes, name=..., **options)``; ``options`` are those of ``MultiTaskModel.start_task``. The
    task is started, and the model set to training mode, before ``configure_optimizers``, which returns a
    ``model.optimizer(...)``; it is finished when training is, and held in ``task``. After an exception it stays in
    training; a run with ``fast_dev_run`` writes nothing.

    Raises TaskStateError, before the first step, where the module has no MultiTaskModel or several, and where the
    trainer's optimizers do not train the task.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start the task."""
        if stage != "fit":
            return
        # A launcher of processes runs this in one that multiprocessing has started; others start the script again.
        if trainer.strategy.launcher is not None and multiprocessing.parent_process() is not None:
            raise TaskStateError(
                f"task {self.name!r}: the trainer's strategy starts processes with copies of the model, and what they "
                "learn comes back as weights, which are no task: expected strategy='ddp', or one device"
            )
        models = [part for part in pl_module.modules() if isinstance(part, MultiTaskModel)]
        if len(models) != 1:
            raise TaskStateError(
                f"task {self.name!r}: {type(pl_module).__name__} has {len(models)} MultiTaskModels: expected one, as "
                "an attribute of the LightningModule"
            )
        (model,) = models
        self.start(model)
        model.train()  # Lightning keeps modes as it finds them, and networks come in evaluation mode

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look whether the task is what gets trained."""
        for other in trainer.callbacks:
            kinds = {
                kind.__name__ for kind in type(other).__mro__
            }  # some versions lack one of them
            if kinds & {"StochasticWeightAveraging", "WeightAveraging"}:
                raise TaskStateError(
                    f"task {self.name!r}: {type(other).__name__} averages weights, and an average is no mask: "
                    "expected none of its kind among the callbacks"
                )
        self.check(self._model, trainer.optimizers)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the task, on every process, and write it on the first; the last checkpoint was written before."""
        self.finish(write=trainer.is_global_zero and not trainer.fast_dev_run)
