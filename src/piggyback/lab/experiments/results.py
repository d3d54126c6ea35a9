"""What an experiment leaves: its table in four forms, its plots, all its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from piggyback.lab.experiments.decathlon import decathlon_scores
from piggyback.lab.experiments.published import published
from piggyback.lab.experiments.runner import Outcome
from piggyback.lab.tables.cells import cell_means
from piggyback.lab.tables.experiment_plots import (
    density_per_layer_by_method,
    density_per_task,
    error_per_task,
    experiment_accuracy_against_bytes,
    learning_curves,
)
from piggyback.lab.tables.experiment_table import ExperimentTable, Names, experiment_table
from piggyback.lab.tables.experiment_tables import (
    experiment_csv,
    experiment_json,
    experiment_markdown,
)
from piggyback.lab.tables.plots import save_png
from piggyback.taskfile.header import read_header
from piggyback.train.logs import write_text
from piggyback.train.result import RESULT


def table_of(outcome: Outcome) -> ExperimentTable:
    """Return an experiment's table, beside the published numbers that its manifest names."""
    manifest = outcome.manifest
    scores = {}
    if manifest.score == "decathlon":
        scores = decathlon_scores(cell_means(outcome.rows))
    return experiment_table(
        outcome.rows,
        planned=outcome.planned,
        failed=outcome.failed,
        published=_published(outcome),
        scores=scores,
        reference=manifest.reference or "finetune",
    )


def write(outcome: Outcome, out: Path) -> tuple[Path, ...]:
    """Return the tables and plots of an experiment after writing them into ``out``."""
    table = table_of(outcome)
    told = [
        f"\n{row.task} {row.label} seed {row.seed}: {row.verdict}\n"
        for row in outcome.rows
        if row.verdict
    ]
    texts = {
        "table.md": f"# {outcome.manifest.title}\n\n{experiment_markdown(table)}{''.join(told)}",
        "table.csv": experiment_csv(table),
        "table.json": experiment_json(table),
        "trials.json": json.dumps([row.to_json() for row in outcome.tried], indent=1) + "\n",
    }
    for name, text in texts.items():
        write_text(out / name, text)
    figures = {}
    kinds = {outcome.manifest.kind(task) for task in outcome.manifest.tasks}
    measure = "mean IoU" if kinds == {"segmentation"} else "accuracy"
    if outcome.rows:
        figures["error.png"] = error_per_task(table, measure)
        figures["accuracy.png"] = experiment_accuracy_against_bytes(table, measure)
    if any(row.density is not None for row in outcome.rows):
        figures["density-per-task.png"] = density_per_task(table)
    if layers := _layers(outcome, out):
        figures["density-per-layer.png"] = density_per_layer_by_method(layers)
    if curves := _curves(outcome, out):
        figures["curves.png"] = learning_curves(curves, measure)
    for name, figure in figures.items():
        save_png(figure, out / name)
    return tuple(out / name for name in (*texts, *figures))


def _published(outcome: Outcome) -> dict[Names, float]:
    manifest = outcome.manifest
    if manifest.published is None:
        return {}
    found = {}
    for backbone, task, label in outcome.planned:
        method = next(m for m in manifest.methods if m.label == label)
        value = None
        if method.published is not None:
            value = published(manifest.published, backbone, task, method.published)
        if value is not None:
            found[backbone, task, label] = value
    return found


def _curves(outcome: Outcome, out: Path) -> Mapping[tuple[str, str], Mapping[int, float]]:
    """Val accuracy by steps of each task and method, of the first seed."""
    found = {}
    for job in outcome.chosen:
        place = out / job.folder / RESULT
        if job.seed != outcome.manifest.seeds[0] or len(job.tasks) > 1 or not place.exists():
            continue
        result = json.loads(place.read_text(encoding="utf-8"))["result"]
        steps = result["provenance"]["steps_per_epoch"]
        several = len(outcome.manifest.backbones) > 1
        task = f"{job.backbone.name}, {job.tasks[0]}" if several else job.tasks[0]
        found[task, job.method.label] = {
            row["epoch"] * steps: row["val_accuracy"] for row in result["history"]
        }
    return found


def _layers(outcome: Outcome, out: Path) -> Mapping[tuple[str, str], Mapping[str, float]]:
    """Density by layer of each task and method, of the first seed's task files."""
    found = {}
    for job in outcome.chosen:
        if job.seed != outcome.manifest.seeds[0] or len(job.tasks) > 1:
            continue
        file = out / job.folder / f"{job.tasks[0]}.safetensors"
        if file.exists() and (layers := read_header(file).layers):
            several = len(outcome.manifest.backbones) > 1
            task = f"{job.backbone.name}, {job.tasks[0]}" if several else job.tasks[0]
            found[task, job.method.label] = {
                layer.name: layer.kept / max(layer.numel, 1) for layer in layers
            }
    return found
