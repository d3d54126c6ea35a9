"""Experiments run: every shipped one at toy size; resumed, side by side, and with cells that fail."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from piggyback.errors import DataError, InputError
from piggyback.lab.experiments.cost import costs
from piggyback.lab.experiments.jobs import CELL
from piggyback.lab.experiments.manifest import BackboneChoice, Manifest, load_manifest, shipped
from piggyback.lab.experiments.pictures import draw
from piggyback.lab.experiments.plan import trials
from piggyback.lab.experiments.results import table_of, write
from piggyback.lab.experiments.runner import run, standing
from piggyback.lab.experiments.sources import FromDisk
from piggyback.lab.experiments.toy import Toy, toy
from piggyback.lab.tables.experiment_tables import experiment_markdown
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData


@pytest.mark.parametrize("name", shipped())
def test_every_experiment_runs_at_toy_size(name: str, tmp_path: Path) -> None:
    whole = load_manifest(name)
    # At this size all tasks and seeds are alike; a score needs every task.
    tasks = None if whole.score else list(whole.tasks)[-2:]
    manifest = toy(whole.only(tasks, None, whole.seeds[:1]))
    outcome = run(manifest, Toy(), tmp_path)
    assert not outcome.failed
    assert not outcome.waiting
    planned = {(*names, seed) for names in outcome.planned for seed in manifest.seeds}
    assert {(r.backbone, r.task, r.label, r.seed) for r in outcome.rows} == planned
    table = experiment_markdown(table_of(outcome))
    assert all(method.label in table for method in manifest.methods)
    assert ("<br>published" in table) == (whole.published is not None)
    assert max(row.accuracy for row in outcome.rows) > 30  # the toys can be learned: three classes
    if manifest.score:
        assert all(line.score is not None for line in table_of(outcome).lines)


def small(labels: list[str], seeds: list[int] | None = None) -> Manifest:
    manifest = toy(load_manifest("gtsrb-lite0").only(["gtsrb", "dtd"], labels, seeds))
    methods = tuple(dataclasses.replace(method, max_bits=None) for method in manifest.methods)
    return dataclasses.replace(manifest, methods=methods)


def test_the_chosen_trial_is_repeated_with_the_other_seeds(tmp_path: Path) -> None:
    manifest = small(["masks"], [3, 4])
    outcome = run(manifest, Toy(), tmp_path)
    for task in ("gtsrb", "dtd"):
        tried = [row for row in outcome.tried if row.task == task]
        rows = [row for row in outcome.rows if row.task == task]
        assert [row.seed for row in tried] == [3, 3]
        assert [row.seed for row in rows] == [3, 4]
        assert rows[0].chosen == rows[1].chosen
        assert rows[0].val_accuracy == max(row.val_accuracy for row in tried)
        assert rows[0].trials == 2
    files = {path.name for path in write(outcome, tmp_path)}
    assert files >= {"table.md", "table.csv", "table.json", "trials.json", "error.png",
                     "accuracy.png", "density-per-task.png", "density-per-layer.png"}  # fmt: skip
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 4


def test_one_setting_for_all_tasks_shares_the_trainings(tmp_path: Path) -> None:
    manifest = small(["masks", "masks, one setting for all"], [3, 4])
    told: list[str] = []
    outcome = run(manifest, Toy(), tmp_path, told=told.append)
    each, together = (
        {(row.task, row.seed): row for row in outcome.rows if row.label == method.label}
        for method in manifest.methods
    )
    assert len({json.dumps(row.chosen) for row in together.values()}) == 1
    trials_of = {json.dumps(dict(trial)): 0.0 for trial in manifest.methods[0].trials}
    for row in outcome.tried:
        if row.label == "masks":
            trials_of[json.dumps(row.chosen)] += row.val_accuracy
    picked = json.dumps(next(iter(together.values())).chosen)
    assert trials_of[picked] == max(trials_of.values())
    for key, row in each.items():
        if row.chosen == together[key].chosen:
            assert row.accuracy == together[key].accuracy
    # two trials of two tasks once for both lines, then what the lines repeat
    assert len(told) == 4 + len({(row.task, json.dumps(row.chosen)) for row in outcome.rows})


def test_segmentation_is_drawn_with_the_truth_and_a_table_of_classes(tmp_path: Path) -> None:
    manifest = toy(load_manifest("camvid-lite0").only(labels=["head", "masks"]))
    outcome = run(manifest, Toy(), tmp_path)
    table, picture = draw(outcome, Toy(), tmp_path)
    text = table.read_text()
    assert "| class | head | masks |" in text
    for row in outcome.rows:
        assert f"{row.accuracy:.2f}" in text  # the same network, measured again
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert draw(run(small(["head"]), Toy(), tmp_path), Toy(), tmp_path) == ()


class Counting(Toy):
    """Counts how often images are asked for, and can refuse a task."""

    def __init__(self, refused: str = "") -> None:
        self.read: list[str] = []
        self.refused = refused

    def data(self, task: str) -> ImageData:
        self.read.append(task)
        if task == self.refused:
            raise DataError(f"{task}: the disk is on fire")
        return super().data(task)


def test_what_is_finished_stays_finished(tmp_path: Path) -> None:
    manifest = small(["head", "masks"])
    first = run(manifest, Toy(), tmp_path)
    for path in tmp_path.rglob(CELL):  # one that an older version wrote
        path.write_text(path.read_text().replace('"lora_rank"', '"form_lr": 0.001, "lora_rank"'))
    again = Counting()
    assert run(manifest, again, tmp_path).rows == first.rows
    assert again.read == []
    # another recipe is another job, and its folder says whose it is
    longer = load_manifest("gtsrb-lite0").only(["gtsrb"], ["head"])
    assert standing(longer, Toy(), tmp_path).rows == []


def test_a_cell_that_fails_does_not_end_the_others_and_is_tried_again(tmp_path: Path) -> None:
    manifest = small(["head", "PackNet"])
    told: list[str] = []
    outcome = run(manifest, Counting("dtd"), tmp_path, told=told.append)
    assert {(cell.task, cell.label) for cell in outcome.failed} == {
        ("dtd", "head"), ("gtsrb", "PackNet"), ("dtd", "PackNet"),
    }  # fmt: skip
    assert [(row.task, row.label) for row in outcome.rows] == [("gtsrb", "head")]
    assert any("the disk is on fire" in line for line in told)
    assert "the disk is on fire" in experiment_markdown(table_of(outcome))
    assert len(run(manifest, Toy(), tmp_path).rows) == 4


def test_side_by_side_gives_the_same_as_in_turn(tmp_path: Path) -> None:
    manifest = small(["masks, ternary"])
    alone = run(manifest, Toy(), tmp_path / "alone")
    told: list[str] = []
    beside = run(manifest, Toy(), tmp_path / "beside", workers=2, told=told.append)

    def results(outcome: Any) -> list[Any]:
        # Not the bytes of the whole file, which holds measured seconds of as many digits as there are.
        return [(r.task, r.label, r.seed, r.accuracy, r.bits_per_weight) for r in outcome.rows]

    assert results(alone) == results(beside)
    assert sorted(told) == ["dtd masks, ternary seed 0: done", "gtsrb masks, ternary seed 0: done"]
    with pytest.raises(InputError, match="workers 0: expected 1 or more"):
        run(manifest, Toy(), tmp_path, workers=0)


def test_a_changed_recipe_is_not_the_finished_one_and_says_what_to_do(tmp_path: Path) -> None:
    manifest = small(["head"]).only(["dtd"])
    rows = run(manifest, Toy(), tmp_path).rows
    changed = dataclasses.replace(manifest, recipe={**manifest.recipe, "label_smoothing": 0.3})
    assert standing(changed, Toy(), tmp_path).rows == []
    (failed,) = run(changed, Toy(), tmp_path).failed
    assert "recipe.label_smoothing is 0.1 there, 0.3 now" in failed.error
    assert "choose another folder, delete this one" in failed.error
    assert run(manifest, Toy(), tmp_path).rows == rows


def test_missing_data_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    manifest = load_manifest("places-imagenet")
    sources = FromDisk((tmp_path / "sets",))
    lacking = sources.missing(manifest)
    assert lacking.keys() == {*manifest.tasks, "resnet50-places"}
    with pytest.raises(DataError, match="resnet50_places365") as caught:
        run(manifest, sources, tmp_path / "out")
    for task in manifest.tasks:
        assert task in str(caught.value)
    assert str(tmp_path / "sets") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_images_are_prepared_as_the_data_set_asks_unless_the_manifest_differs() -> None:
    class Prepared(Toy):
        def prepared(self, task: str) -> Mapping[str, Any]:
            return {"image_size": 48, "augment.flip": True}

        def backbone(self, choice: BackboneChoice, image_size: int | None) -> Backbone:
            raise AssertionError

    manifest = load_manifest("gtsrb-lite0").only(["dtd"], ["head"])
    recipe = trials(manifest, {"dtd": Prepared().prepared("dtd")})[0].recipes["dtd"]
    assert recipe.image_size == 96
    assert recipe.augment.flip


def test_costs_count_trials_seeds_and_what_is_done(tmp_path: Path) -> None:
    manifest = small(["masks", "PackNet"], [0, 1])
    before = {cost.label: cost for cost in costs(manifest, Toy(), tmp_path)}
    images = Toy().train_images("gtsrb")
    # two tasks: two trials with the first seed, the chosen one with the second; two epochs
    assert (before["masks"].runs, before["masks"].images) == (6, 6 * 2 * images)
    # one sequence a seed; the first task is pruned and trained on for an epoch, the last is not
    assert (before["PackNet"].runs, before["PackNet"].images) == (2, 2 * (3 + 2) * images)
    assert before["masks"].hours is None
    outcome = run(manifest, Toy(), tmp_path)
    after = {cost.label: cost for cost in costs(manifest, Toy(), tmp_path)}
    assert after["masks"].done == after["masks"].runs
    assert after["masks"].hours == 0
    # one repeat is lost: a sixth is left, at the speed of this experiment
    repeat = next(job for job in outcome.repeated if job.tasks == ("dtd",))
    (tmp_path / repeat.folder / CELL).unlink()
    lost = {cost.label: cost for cost in costs(manifest, Toy(), tmp_path)}
    assert lost["masks"].done == 5
    assert 0 < (lost["masks"].hours or 0) < 1


def test_what_is_left_counts_the_epochs_of_the_chosen_trial(tmp_path: Path) -> None:
    manifest = small(["masks"], [0, 1]).only(["dtd"])
    trials_of = ({"epochs": 1}, {"epochs": 3, "mask_lr": 1e-9})
    method = dataclasses.replace(manifest.methods[0], trials=trials_of)
    manifest = dataclasses.replace(manifest, methods=(method,))
    run(manifest, Toy(), tmp_path)
    (cost,) = costs(manifest, Toy(), tmp_path)
    assert cost.hours == 0
    assert cost.images in {(1 + 3 + again) * Toy().train_images("dtd") for again in (1, 3)}
