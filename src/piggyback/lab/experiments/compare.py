"""Several methods on several tasks, one training after the other, and a proof that no task disturbed another.

for each seed, task, method:    train                       -> a row, a task file
all task files in one model:    measure each task again     -> the same accuracy, the same backbone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from piggyback.lab.tables.formats import runs_csv, runs_json, runs_markdown
from piggyback.lab.tables.plots import accuracy_against_bytes, density_per_layer, save_all
from piggyback.lab.tables.rows import Row, row_of
from piggyback.lab.tables.table import result_table
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.taskfile.file import save_file
from piggyback.train import ImageData, Listener, Recipe, TrainResult, evaluate, train
from piggyback.train.device import processes


@dataclass(frozen=True)
class Remeasured:
    """A task's test accuracy when it was trained, and again beside all other tasks."""

    task: str
    alone: float
    together: float


@dataclass(frozen=True)
class Proof:
    """Whether tasks disturbed each other or the backbone."""

    before: str
    """Fingerprint of the backbone before anything was trained."""
    after: str
    """And after all tasks were trained, held in one model, and run in turns."""
    tasks: tuple[Remeasured, ...]

    @property
    def identical(self) -> bool:
        """Whether the backbone is the same to the bit."""
        return self.before == self.after

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Names of the tasks whose accuracy changed."""
        return tuple(task.task for task in self.tasks if task.alone != task.together)


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns."""

    rows: list[Row]
    files: dict[str, Path]
    """The task file of each task, by name: of the seed that was best on val."""
    proof: Proof | None
    """None where no method made a task."""
    written: tuple[Path, ...]
    """Tables and plots."""


def compare(
    backbone: Backbone,
    data: Mapping[str, ImageData],
    methods: Sequence[str],
    recipe: Recipe,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    resume: bool = False,
    overwrite: bool = False,
    listener: Callable[[str], Listener | None] = lambda title: None,
) -> Comparison:
    """Return the rows of all runs, after writing tables, plots and task files below ``out``.

    ``resume`` goes on with runs that are there, ``overwrite`` replaces finished ones of other settings.
    ``listener(title)`` gives each run its listener. What stops one run, stops all.
    """
    before = _fingerprint(backbone)
    results = []
    for seed, task, method in product(seeds, data, methods):
        result = train(
            backbone,
            data[task],
            task,
            replace(recipe, method=method, seed=seed),
            out / "runs" / task / f"{method}-seed{seed}",
            resume=resume,
            overwrite=overwrite,
            listener=listener(f"{task} {method}" + f" seed {seed}" * (len(seeds) > 1)),
        )
        # By its method, also where tune found the head alone to be best; a full copy of every network adds up.
        results.append(replace(result, method=method, state=None))
    rows = [row_of(result) for result in results]
    best = _best(results)
    files = {name: out / "tasks" / f"{name}.safetensors" for name in best}
    for name, result in best.items():
        if result.task is not None and processes().is_main_process:
            files[name].parent.mkdir(parents=True, exist_ok=True)
            save_file(result.task, files[name])
    processes().wait_for_everyone()
    shared = [result for result in results if result.task is not None]
    proof = prove(backbone, shared, data, before) if shared else None
    return Comparison(rows, files, proof, _write(rows, best, out))


def prove(
    backbone: Backbone,
    results: Sequence[TrainResult],
    data: Mapping[str, ImageData],
    before: str,
) -> Proof:
    """Return what the tasks score when one model holds them all, and the backbone's fingerprint."""
    model = MultiTaskModel(backbone)
    # Device, layout, kernels and batches as the tasks were measured with: others round differently.
    layout = torch.contiguous_format
    if any(result.provenance["speed"]["channels_last"] for result in results):
        layout = torch.channels_last
    model.to(processes().device).to(memory_format=layout)
    held = {f"{result.name}-{result.method}-{result.seed}": result for result in results}
    measured = []
    try:
        for label, result in held.items():
            if result.task is not None:
                model.add_task(result.task.renamed(label))
        for label, result in held.items():
            size = result.provenance["recipe"]["batch_size"]
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                again = evaluate(model, label, data[result.name].test, batch_size=size)
            measured.append(Remeasured(label, result.accuracy, again.accuracy))
        model.set_task(None)
        after = _fingerprint(backbone)
    finally:
        model.release()
        model.to("cpu").to(memory_format=torch.contiguous_format)
    return Proof(before, after, tuple(measured))


def _best(results: Sequence[TrainResult]) -> dict[str, TrainResult]:
    """For each task the run to keep: masks before head, then the best on val."""
    by_merit = sorted(
        results, key=lambda r: (r.bits_per_weight is not None, r.val_accuracy), reverse=True
    )
    return {
        name: next(result for result in by_merit if result.task and result.name == name)
        for name in dict.fromkeys(result.name for result in results if result.task)
    }


def _write(rows: Sequence[Row], best: Mapping[str, TrainResult], out: Path) -> tuple[Path, ...]:
    """The tables and plots of a comparison."""
    texts = {
        "table.csv": runs_csv(rows),
        "table.json": runs_json(rows),
        "table.md": runs_markdown(rows),
    }
    figures = {"accuracy.png": accuracy_against_bytes(result_table(rows))}
    layers = {
        (name, result.method): {weight: mask.density for weight, mask in result.task.masks.items()}
        for name, result in best.items()
        if result.task is not None and result.task.masks
    }
    if layers:
        figures["density.png"] = density_per_layer(layers)
    return save_all(out, texts, figures)


def _fingerprint(backbone: Backbone) -> str:
    return fingerprint(backbone.module, (), backbone.head)[0]
