"""The guard: masks that collapse are taken back, and a run says what its masks came to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from piggyback.masks.regularize import TargetDensity
from piggyback.network.backbone import Backbone
from piggyback.taskfile.file import load_file
from piggyback.taskfile.header import read_header
from piggyback.train import EpochRow, ImageData, Recipe, Step, checkpoint, from_tensors, train
from piggyback.train import guard as guard_module
from piggyback.train.checkpoint import CHECKPOINT
from piggyback.train.guard import MARKS, TRIES, Guard
from support.training_toys import Killed, Recorder, assert_same

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def easy() -> ImageData:
    """Images that a head alone tells apart on random features: colours without noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(240) % 3
    images = (torch.rand(240, 3, 16, 16, generator=generator) * 20).byte()
    images[torch.arange(240), labels] += 200
    return from_tensors("colours", ["blue", "green", "red"], (images, labels))


def wild(recipe: MakeRecipe, **options: object) -> Recipe:
    """Nearly all weights are dropped within a few steps, when the rate has risen."""
    made = {"mask_lr": 2e-2, "epochs": 12, "batch_size": 16, "warmup": 0.5}
    return recipe(**{**made, "regularizers": (TargetDensity(0.0, 1e3),), **options})


def test_a_collapse_is_told_and_taken_back_at_most_twice(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    told = Recorder()
    result = train(backbone, easy, "a", wild(recipe), listener=told)
    back = [line for line in told.notices if "collapsed (" in line]
    assert 1 <= len(back) <= TRIES
    assert f"rate {result.provenance['peak_lr'][0]:.2g} (" in back[-1]
    assert result.provenance["peak_lr"][0] <= 2e-2 * 0.5 ** len(back)


def test_a_run_that_learns_is_left_alone(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    told = Recorder()
    result = train(backbone, easy, "a", recipe(epochs=12, mask_lr=None), listener=told)
    assert result.accuracy == 100.0
    assert not [line for line in told.notices if "collapsed" in line]


def test_a_run_that_stays_collapsed_gives_the_head_that_was_trained_first(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(guard_module, "TRIES", 0)
    made = wild(recipe, mask_lr=0.5, epochs=4)
    with pytest.raises(Killed):
        train(backbone, easy, "a", made, tmp_path, listener=Recorder(2))
    result = train(backbone, easy, "a", made, tmp_path, resume=True)
    assert result.task is not None
    assert (result.task.density, result.accuracy) == (1.0, 100.0)
    assert result.verdict.startswith("collapsed")
    assert (result.provenance["best_epoch"], result.val_accuracy) == (0, 100.0)


def test_patience_does_not_end_a_run_before_it_is_taken_back(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    told = Recorder()
    made = wild(recipe, mask_lr=0.5, epochs=40, patience=3)
    assert train(backbone, easy, "a", made, listener=told).accuracy == 100.0
    assert any("starting over" in line for line in told.notices)


def test_masks_of_an_epoch_before_a_collapse_are_kept_without_a_verdict() -> None:
    guard = Guard([0.5] * MARKS, guess=math.log(3), mark=MARKS, last=2.0, alone={"val_loss": 0.4})
    guard.kept = 0.45
    assert not guard.lost(val_loss=0.5)
    assert guard.verdict(ended(0.7)) == ""


def test_a_collapse_falls_back_to_the_derived_rate_whatever_the_multiple(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    told = Recorder()
    train(backbone, easy, "a", wild(recipe, mask_lr=None, mask_rate=100.0), listener=told)
    first, back = told.notices[0], next(line for line in told.notices if "collapsed (" in line)
    most, times = float(first.split()[-6].rstrip(",")), " 100 times the derived one"
    assert first.endswith(times)
    assert f"rate {most / 100:.2g} (1 of" in back


def test_many_short_epochs_write_a_checkpoint_now_and_then(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe, tmp_path: Path, monkeypatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(
        checkpoint, "write", lambda _, saved: written.append(saved.progress["epoch"])
    )
    train(backbone, easy, "a", recipe("head", epochs=90, batch_size=240), tmp_path)
    assert written == list(range(3, 91, 3))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 90


def test_masks_that_masked_nothing_say_so_everywhere(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe, tmp_path: Path
) -> None:
    told = Recorder()
    result = train(backbone, easy, "a", recipe(mask_lr=1e-7), tmp_path, listener=told)
    assert result.verdict.startswith("masked nothing")
    assert told.notices[-1] == result.verdict
    assert result.path is not None
    assert read_header(result.path).info.provenance["verdict"] == result.verdict


def test_a_head_and_masks_that_learned_have_no_verdict(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    for made in (recipe("head"), recipe(epochs=10)):
        result = train(backbone, easy, "a", made)
        assert result.verdict == ""
        assert "verdict" not in result.provenance


class KillAfterStepBack(Recorder):
    """Ends the run some steps after the first step back, when a checkpoint has been written."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def on_step(self, step: Step) -> None:
        if any("collapsed (" in line for line in self.notices):
            self.left -= 1
            if not self.left:
                raise Killed


@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_kill_around_a_step_back_resumes_to_the_same_bits(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe, tmp_path: Path, after: int
) -> None:
    made = wild(recipe, checkpoint_minutes=0)
    whole = train(backbone, easy, "a", made, tmp_path / "whole")
    with pytest.raises(Killed):
        train(backbone, easy, "a", made, tmp_path / "cut", listener=KillAfterStepBack(after))
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    again = train(backbone, easy, "a", made, tmp_path / "cut", resume=True)
    assert again.provenance["peak_lr"] == whole.provenance["peak_lr"]
    assert_same(*(load_file(tmp_path / name / "a.safetensors") for name in ("whole", "cut")))


def test_a_far_task_gets_a_higher_rate_than_a_near_one(
    backbone: Backbone, easy: ImageData, recipe: MakeRecipe
) -> None:
    # In runs of fewer than 300 steps all tasks have the same rate.
    made = recipe(mask_lr=None, batch_size=4, epochs=8)
    near = train(backbone, easy, "a", made).provenance
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (240,), generator=generator)
    noise = (torch.rand(240, 3, 16, 16, generator=generator) * 255).byte()
    random = from_tensors("noise", easy.classes, (noise, labels))
    told = Recorder()
    far = train(backbone, random, "a", made, listener=told).provenance
    halved = sum("collapsed (" in line for line in told.notices)
    assert near["feature_skill"] > 0.9
    assert far["feature_skill"] < 0.2
    longer = near["steps_per_epoch"] / far["steps_per_epoch"]
    wanted = 2 * 0.5**halved * near["peak_lr"][0] * math.sqrt(longer)
    assert far["peak_lr"][0] == pytest.approx(wanted, rel=0.01)
    told = Recorder()
    rate = near["peak_lr"][0] / 10
    given = train(backbone, easy, "a", replace(made, mask_lr=rate), listener=told).provenance
    assert given["peak_lr"][0] == rate
    assert [line for line in told.notices if f"1/10 of the derived one, {10 * rate:.2g}" in line]


def ended(density: float) -> EpochRow:
    """The best epoch of a run, 2.5 on val."""
    return EpochRow(9, 2.5, 10.0, 2.5, 10.0, density, 1e-3, 10.0, 1.0, best=True)


class Still:
    """A learner whose masks have dropped a share of the weights, and which does nothing."""

    def __init__(self, share: float) -> None:
        weight = torch.nn.Parameter((torch.arange(1000) >= 1000 * share).float())
        groups = [{"params": [weight], "masked": True, "peak_lr": 1.0, "lr": 1.0}]
        self.optimizer = torch.optim.SGD(groups)
        self.head = None

    def live(self) -> dict[str, torch.Tensor]:
        return {}


class Masks(Still):
    """A learner whose scores are a number, as checkpoints have it."""

    def live(self) -> dict[str, torch.Tensor]:
        (weight,) = self.optimizer.param_groups[0]["params"]
        return {"weight": weight.data}


def test_an_early_collapse_starts_over_and_a_late_one_goes_back_to_the_last_mark() -> None:
    learner = Masks(0.3)
    start = {"live/weight": learner.live()["weight"].clone()}
    guard = Guard([0.5] * MARKS, guess=math.log(10), derived=0.4, good=start)
    (weight,) = learner.optimizer.param_groups[0]["params"]

    def pass_mark(mark: int, loss: float) -> str | None:
        weight.data[-1] = mark + 1
        return guard.watch(learner, 20 * loss, 20, 5 * mark, 5 * MARKS)

    said = [pass_mark(mark, 2.5 if mark in (5, 6) else 0.3) for mark in range(1, 7)]
    assert [line is None for line in said] == [True] * 5 + [False]
    assert (guard.began, weight[-1].item()) == (30, 1.0)  # the start's, where all of these are 1
    assert learner.optimizer.param_groups[0]["peak_lr"] == pytest.approx(0.4)  # the derived one
    assert [pass_mark(mark, 2.0) for mark in (7, 8)] == [None, None]  # nothing is expected yet
    said = [pass_mark(mark, 2.5 if mark in (17, 18) else 0.3) for mark in range(9, 19)]
    assert "last good state" in str(said[-1])
    assert (guard.began, weight[-1].item()) == (30, 17.0)
    assert learner.optimizer.param_groups[0]["peak_lr"] == pytest.approx(0.2)
    again, older = Masks(0.3), Masks(0.3)
    Guard.from_json({"head_loss": [], "guess": 1.0, "halved": 2}, {}).resume(older)
    assert older.optimizer.param_groups[0]["peak_lr"] == pytest.approx(0.25)
    Guard.from_json(guard.to_json(), guard.good).resume(again)
    assert again.optimizer.param_groups[0]["peak_lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("every", [1, 5])
def test_a_run_that_collapses_late_does_not_start_over_and_says_so(every: int) -> None:
    learner = Masks(0.3)
    good = {"live/weight": learner.live()["weight"].clone()}
    guard = Guard([0.5] * MARKS, guess=math.log(10), derived=0.4, good=good)
    guard.alone, guard.kept = {"val_loss": 0.6}, 2.5
    said = []
    for mark in range(every, MARKS + 1, every):  # few steps pass several marks at once
        loss = 0.3 if mark < 10 else 2.5
        said.append(guard.watch(learner, 20 * loss, 20, mark, MARKS))
    assert guard.began_mark <= MARKS - 6
    assert len([line for line in said if line]) <= TRIES
    assert "collapsed" in guard.verdict(ended(0.7))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_only_masks_that_drop_weights_can_have_collapsed(share: float) -> None:
    guard = Guard([0.5] * MARKS, guess=math.log(10), alone={"val_loss": 0.6})
    learner = Still(share)
    for mark in range(1, MARKS + 1):
        guard.watch(learner, 20 * math.log(10), 20, mark, MARKS)
    assert (guard.behind > 0) == (share > 0)
    assert ("collapsed" in guard.verdict(ended(1 - share))) == (share > 0)
    assert ("masked nothing" in guard.verdict(ended(1 - share))) == (share == 0)
