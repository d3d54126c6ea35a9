"""Experiments run: every shipped one at toy size; resumed, side by side, and with cells that fail."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from piggyback.errors import CheckpointError, DataError
from piggyback.lab.experiments.manifest import Manifest, load_manifest, shipped
from piggyback.lab.experiments.report import costs, draw, table_of, write
from piggyback.lab.experiments.runner import CELL, Experiment
from piggyback.lab.experiments.sources import Sources, Toy, toy
from piggyback.lab.tables.formats import table_markdown
from piggyback.train import ImageData
from piggyback.train.result import RESULT


def ran(
    manifest: Manifest, out: Path, sources: Sources | None = None, **options: Any
) -> Experiment:
    experiment = Experiment(manifest, sources or Toy(), out)
    experiment.run(**options)
    return experiment


@pytest.mark.parametrize("name", shipped())
def test_every_experiment_runs_at_toy_size(name, tmp_path):
    whole = load_manifest(name)
    # At this size all tasks and seeds are alike; a score needs every task.
    tasks = None if whole.score else list(whole.tasks)[-2:]
    manifest = toy(whole.only(tasks, None, whole.seeds[:1]))
    experiment = ran(manifest, tmp_path)
    assert not experiment.failed
    assert not experiment.waiting
    planned = set(product(manifest.backbones, manifest.tasks, manifest.methods, manifest.seeds))
    assert {(r.backbone, r.task, r.label, r.seed) for r in experiment.rows} == planned
    table = table_markdown(table_of(experiment))
    assert all(label in table for label in manifest.methods)
    assert ("<br>published" in table) == (whole.published is not None)
    assert max(row.accuracy for row in experiment.rows) > 30  # of three classes: it has learned
    if manifest.score:
        assert all(line.score is not None for line in table_of(experiment).lines)


def small(labels: list[str], seeds: list[int] | None = None) -> Manifest:
    manifest = toy(load_manifest("gtsrb-lite0").only(["gtsrb", "dtd"], labels, seeds))
    methods = {
        label: method.model_copy(update={"max_bits": None})
        for label, method in manifest.methods.items()
    }
    return manifest.model_copy(update={"methods": methods})


def test_the_chosen_trial_is_repeated_with_the_other_seeds(tmp_path):
    manifest = small(["masks"], [3, 4])
    experiment = ran(manifest, tmp_path)
    for task in ("gtsrb", "dtd"):
        tried = [row for row in experiment.tried if row.task == task]
        rows = [row for row in experiment.rows if row.task == task]
        assert [row.seed for row in tried] == [3, 3]
        assert [row.seed for row in rows] == [3, 4]
        assert rows[0].chosen == rows[1].chosen
        assert rows[0].val_accuracy == max(row.val_accuracy for row in tried)
        assert rows[0].trials == 2
    assert draw(experiment) == ()  # no segmentation
    files = {path.name for path in write(experiment)}
    assert files >= {"table.md", "table.csv", "table.json", "trials.json", "error.png",
                     "accuracy.png", "density-per-task.png", "density-per-layer.png"}  # fmt: skip
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 4


def test_one_setting_for_all_tasks_shares_the_trainings(tmp_path):
    manifest = small(["masks", "masks, one setting for all"], [3, 4])
    told: list[str] = []
    experiment = ran(manifest, tmp_path, log=told.append)
    each, together = (
        {(row.task, row.seed): row for row in experiment.rows if row.label == label}
        for label in manifest.methods
    )
    assert len({json.dumps(row.chosen) for row in together.values()}) == 1
    trials_of = {json.dumps(dict(trial)): 0.0 for trial in manifest.methods["masks"].trials}
    for row in experiment.tried:
        if row.label == "masks":
            trials_of[json.dumps(row.chosen)] += row.val_accuracy
    picked = json.dumps(next(iter(together.values())).chosen)
    assert trials_of[picked] == max(trials_of.values())
    for key, row in each.items():
        if row.chosen == together[key].chosen:
            assert row.accuracy == together[key].accuracy
    # two trials of two tasks once for both lines, then what the lines repeat
    assert len(told) == 4 + len({(row.task, json.dumps(row.chosen)) for row in experiment.rows})


class Counting(Toy):
    """Counts how often images are asked for, and can refuse a task."""

    def __init__(self, refused: str = "") -> None:
        super().__init__()
        self.read: list[str] = []
        self.refused = refused

    def data(self, task: str) -> ImageData:
        self.read.append(task)
        if task == self.refused:
            raise DataError(f"{task}: the disk is on fire")
        return super().data(task)


def test_what_is_finished_stays_finished(tmp_path):
    manifest = small(["head", "masks"])
    first = ran(manifest, tmp_path)
    for path in tmp_path.rglob(CELL):  # one that an older version wrote
        path.write_text(path.read_text().replace('"lora_rank"', '"form_lr": 0.001, "lora_rank"'))
    again = Counting()
    assert ran(manifest, tmp_path, again).rows == first.rows
    assert again.read == []
    # another recipe is another job, and its folder says whose it is
    longer = load_manifest("gtsrb-lite0").only(["gtsrb"], ["head"])
    assert Experiment(longer, Toy(), tmp_path).rows == []


@pytest.mark.parametrize("damage", [lambda t: t[:200], lambda t: t.replace('"history"', '"h"')])
def test_a_damaged_result_is_one_line(damage, tmp_path):
    experiment = ran(small(["head"]), tmp_path)
    place = next(tmp_path.rglob(RESULT))
    place.write_text(damage(place.read_text()))
    with pytest.raises(CheckpointError, match=r"result\.json' is damaged"):
        write(experiment)


def test_a_cell_that_fails_does_not_end_the_others_and_is_tried_again(tmp_path):
    manifest = small(["head", "PackNet"])
    told: list[str] = []
    experiment = ran(manifest, tmp_path, Counting("dtd"), log=told.append)
    assert {(cell.task, cell.label) for cell in experiment.failed} == {
        ("dtd", "head"), ("gtsrb", "PackNet"), ("dtd", "PackNet"),
    }  # fmt: skip
    assert [(row.task, row.label) for row in experiment.rows] == [("gtsrb", "head")]
    assert any("the disk is on fire" in line for line in told)
    assert "the disk is on fire" in table_markdown(table_of(experiment))
    assert len(ran(manifest, tmp_path).rows) == 4


def test_side_by_side_gives_the_same_as_in_turn(tmp_path):
    manifest = small(["masks, ternary"])
    alone = ran(manifest, tmp_path / "alone")
    told: list[str] = []
    beside = ran(manifest, tmp_path / "beside", workers=2, log=told.append)

    def results(experiment: Experiment) -> list[Any]:
        # Not the bytes of the whole file, which holds measured seconds of as many digits as there are.
        return [(r.task, r.label, r.seed, r.accuracy, r.bits_per_weight) for r in experiment.rows]

    assert results(alone) == results(beside)
    assert sorted(told) == ["dtd masks, ternary seed 0: done", "gtsrb masks, ternary seed 0: done"]


def test_a_changed_recipe_is_not_the_finished_one_and_says_what_to_do(tmp_path):
    manifest = small(["head"]).only(["dtd"])
    rows = ran(manifest, tmp_path).rows
    changed = manifest.model_copy(update={"recipe": manifest.recipe | {"label_smoothing": 0.3}})
    assert Experiment(changed, Toy(), tmp_path).rows == []
    (failed,) = ran(changed, tmp_path).failed
    assert "recipe.label_smoothing is 0.1 there, 0.3 now" in failed.error
    assert "choose another folder, delete this one" in failed.error
    assert ran(manifest, tmp_path).rows == rows


def test_missing_data_is_told_before_anything_is_trained(tmp_path):
    manifest = load_manifest("places-imagenet")
    sources = Sources((tmp_path / "sets",))
    lacking = sources.missing(manifest)
    assert lacking.keys() == {*manifest.tasks, "resnet50-places"}
    with pytest.raises(DataError, match="resnet50_places365") as caught:
        ran(manifest, tmp_path / "out", sources)
    for task in manifest.tasks:
        assert task in str(caught.value)
    assert str(tmp_path / "sets") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_costs_count_trials_seeds_and_what_is_done(tmp_path):
    manifest = small(["masks", "PackNet"], [0, 1])
    before = {cost.label: cost for cost in costs(Experiment(manifest, Toy(), tmp_path))}
    images = Toy().train_images("gtsrb")
    # two tasks: two trials with the first seed, the chosen one with the second; four epochs
    assert (before["masks"].runs, before["masks"].images) == (6, 6 * 4 * images)
    # one sequence a seed; the first task is pruned and trained on for two epochs, the last is not
    assert (before["PackNet"].runs, before["PackNet"].images) == (2, 2 * (6 + 4) * images)
    assert before["masks"].hours is None
    experiment = ran(manifest, tmp_path)
    after = {cost.label: cost for cost in costs(Experiment(manifest, Toy(), tmp_path))}
    assert after["masks"].done == after["masks"].runs
    assert after["masks"].hours == 0
    # one repeat is lost: a sixth is left, at the speed of this experiment
    repeat = next(job for job in experiment.repeats if job.tasks == ("dtd",))
    (tmp_path / repeat.folder / CELL).unlink()
    lost = {cost.label: cost for cost in costs(Experiment(manifest, Toy(), tmp_path))}
    assert lost["masks"].done == 5
    assert 0 < (lost["masks"].hours or 0) < 1


def test_what_is_left_counts_the_epochs_of_the_chosen_trial(tmp_path):
    manifest = small(["masks"], [0, 1]).only(["dtd"])
    trials_of = ({"epochs": 1}, {"epochs": 3, "mask_lr": 1e-9})
    method = manifest.methods["masks"].model_copy(update={"trials": trials_of})
    manifest = manifest.model_copy(update={"methods": {"masks": method}})
    ran(manifest, tmp_path)
    (cost,) = costs(Experiment(manifest, Toy(), tmp_path))
    assert cost.hours == 0
    assert cost.images in {(1 + 3 + again) * Toy().train_images("dtd") for again in (1, 3)}
