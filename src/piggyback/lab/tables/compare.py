"""Several methods on several tasks, one table, and the proof that no task disturbed another.

for each seed, task, method:    train                       -> a row, a task file
all task files in one model:    measure each task again      -> the same accuracy, the same backbone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState

from piggyback.lab.tables.plots import accuracy_against_bytes, density_per_layer, save_png
from piggyback.lab.tables.rows import Row, row_of
from piggyback.lab.tables.tables import to_csv, to_json, to_markdown
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.taskfile.file import save_file
from piggyback.taskfile.task import Task
from piggyback.train import ImageData, Listener, Recipe, TrainResult, evaluate, train
from piggyback.train.logs import write_text


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
    tasks: dict[str, Task]
    proof: Proof | None
    written: tuple[Path, ...] = field(default=())
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
    recipes: Mapping[str, Recipe] | None = None,
    listener: Callable[[str], Listener | None] = lambda label: None,
) -> Comparison:
    """Return the rows of all runs, after writing tables, plots and task files below ``out``.

    ``recipes`` may replace ``recipe`` for a method. ``resume`` goes on with runs that are there.
    ``listener(label)`` gives each run its listener.
    """
    before = _fingerprint(backbone)
    results: list[TrainResult] = []
    for seed in seeds:
        for name, images in data.items():
            for method in methods:
                chosen = (recipes or {}).get(method, recipe)
                label = f"{name} {method}" + (f" seed {seed}" if len(seeds) > 1 else "")
                result = train(
                    backbone,
                    images,
                    name,
                    replace(chosen, method=method, seed=seed),
                    out / "runs" / name / f"{method}-seed{seed}",
                    resume=resume,
                    listener=listener(label),
                )
                results.append(replace(result, state=None))  # a full copy of every network adds up
    rows = [row_of(result) for result in results]
    best = _best(results)
    files = _keep_files(best, out / "tasks")
    proof = None
    if shared := [result for result in results if result.task is not None]:
        proof = prove(backbone, shared, data, before)
    tasks = {name: result.task for name, result in best.items() if result.task is not None}
    return Comparison(rows, files, tasks, proof, write(rows, tasks, out))


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
    model.to(PartialState().device).to(memory_format=layout)
    measured = []
    try:
        held = {}
        for result in results:
            if result.task is not None:
                label = f"{result.name}-{result.method}-{result.seed}"
                model.add_task(result.task.renamed(label))
                held[label] = result
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


def write(rows: Sequence[Row], tasks: Mapping[str, Task], out: Path) -> tuple[Path, ...]:
    """Return the tables and plots of a comparison after writing them into ``out``."""
    texts = {"table.csv": to_csv(rows), "table.json": to_json(rows), "table.md": to_markdown(rows)}
    for name, text in texts.items():
        _on_one_process(write_text, out / name, text)
    figures = {"accuracy.png": accuracy_against_bytes(rows)}
    layers = {
        name: {weight: mask.density for weight, mask in task.masks.items()}
        for name, task in tasks.items()
        if task.masks
    }
    if layers:
        figures["density.png"] = density_per_layer(layers)
    for name, figure in figures.items():
        _on_one_process(save_png, figure, out / name)
    return tuple(out / name for name in (*texts, *figures))


def _best(results: Sequence[TrainResult]) -> dict[str, TrainResult]:
    """For each task the run to keep: masks before head, then the best on val."""
    best: dict[str, TrainResult] = {}
    for result in results:
        if result.task is None:
            continue
        held = best.get(result.name)
        if held is None or _merit(result) > _merit(held):
            best[result.name] = result
    return best


def _merit(result: TrainResult) -> tuple[bool, float]:
    return result.bits_per_weight is not None, result.val_accuracy


def _keep_files(best: Mapping[str, TrainResult], folder: Path) -> dict[str, Path]:
    files = {}
    for name, result in best.items():
        if result.task is not None:
            files[name] = folder / f"{name}.safetensors"
            files[name].parent.mkdir(parents=True, exist_ok=True)
            _on_one_process(save_file, result.task, files[name])
    PartialState().wait_for_everyone()
    return files


def _on_one_process(write: Callable[..., None], *what: object) -> None:
    """Write a file, once, where several processes train together."""
    if PartialState().is_main_process:
        write(*what)


def _fingerprint(backbone: Backbone) -> str:
    return fingerprint(backbone.module, (), backbone.head)[0]
