"""Choice by validation: what is tried, within which budget, and that test is not looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from piggyback import MaskRule, ScoreInit, pack_mask
from piggyback.errors import InputError, TrainingError
from piggyback.taskfile.task import Task
from piggyback.train import ImageData, Recipe, from_tensors, train
from piggyback.train.data.batches import steps_in_epoch
from piggyback.train.tune import TUNE, settings_of, tune

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def large() -> ImageData:
    """Enough val images to judge by."""
    labels = torch.arange(1500) % 3
    images = torch.randint(0, 255, (1500, 3, 8, 8), dtype=torch.uint8)
    return from_tensors("colours", ["blue", "green", "red"], (images, labels))


class Trials:
    """Stands for training: a loss for each recipe, and what was asked for."""

    def __init__(self, loss: Callable[[Recipe], float]) -> None:
        self.loss = loss
        self.asked: list[tuple[ImageData, Recipe]] = []

    def __call__(self, data: ImageData, recipe: Recipe, out: Path | None) -> object:
        self.asked.append((data, recipe))
        return SimpleNamespace(history=[SimpleNamespace(val_loss=self.loss(recipe))])

    @property
    def steps(self) -> int:
        return sum(
            r.epochs_for(len(d.train)) * steps_in_epoch(d.train, r.batch_size)
            for d, r in self.asked
        )


@pytest.mark.parametrize("method", ["masks", "finetune", "head", "lora"])
def test_trials_together_take_the_steps_of_a_long_training(large, method):
    recipe = Recipe(method, tune=True, epochs=100)
    trials = Trials(lambda r: 1.0)
    chosen = tune(recipe, large, trials)
    assert trials.steps <= 1.05 * 100 * steps_in_epoch(large.train, 32)
    assert len(trials.asked) == len(settings_of(recipe))
    assert not any(r.tune for _, r in trials.asked)
    assert chosen.epochs_for(len(large.train)) == 100


def test_no_trial_is_shorter_than_masks_need(large, data):
    trials = Trials(lambda r: 1.0)
    tune(Recipe(tune=True), large, trials)
    epoch = steps_in_epoch(large.train, 32)
    assert {-(-480 // epoch)} == {r.epochs for _, r in trials.asked}
    trials = Trials(lambda r: 1.0)
    tune(Recipe(tune=True, epochs=3), data, trials)
    assert {3} == {r.epochs for _, r in trials.asked}


def test_the_derived_rate_gives_way_only_to_a_clearly_better_setting(large, data):
    trials = Trials(lambda r: 0.95 if r.mask_rate == 2 else 1.0)
    assert tune(Recipe(tune=True), large, trials).mask_rate == 2
    assert len(data.val) < 100
    assert tune(Recipe(tune=True), data, trials).mask_rate == 1
    higher = Trials(lambda r: 0.95 if r.finetune_lr > 2e-3 else 1.0)
    assert tune(Recipe("finetune", tune=True), data, higher).finetune_lr > 2e-3


def test_rates_are_tried_as_factors_of_what_follows_from_the_run(large):
    trials = Trials(lambda r: r.mask_rate)
    chosen = tune(Recipe("masks", tune=True, epochs=40, mask_rate=1.5), large, trials)
    assert [r.mask_rate for _, r in trials.asked[:3]] == [1.5, 0.5, 3.0]
    assert (chosen.mask_rate, chosen.mask_lr) == (0.5, None)
    given = tune(Recipe("masks", tune=True, mask_lr=3e-4), large, Trials(lambda r: r.mask_lr or 1))
    assert given.mask_lr == pytest.approx(1e-4)


def test_the_head_alone_may_win(large):
    chosen = tune(
        Recipe(tune=True, epochs=20), large, Trials(lambda r: 0.1 if r.method == "head" else 1.0)
    )
    assert chosen.method == "head"


def test_test_images_are_not_looked_at(large):
    trials = Trials(lambda r: 1.0)
    tune(Recipe(tune=True, epochs=10), large, trials)
    assert all(data.test is large.val for data, _ in trials.asked)


def test_a_tuned_training_keeps_what_was_tried(backbone, data, recipe, tmp_path):
    made = replace(recipe(mask_lr=None), tune=True, epochs=20, batch_size=16)
    result = train(backbone, data, "a", made, tmp_path)
    tried = json.loads((tmp_path / TUNE).read_text())
    assert tried["chosen"] in {row["setting"] for row in tried["tried"]}
    assert result.provenance["epochs"] == 20
    again = train(backbone, data, "a", made, tmp_path, resume=True)
    assert (again.accuracy, again.history) == (result.accuracy, result.history)


def test_a_method_without_a_rate_is_refused(large):
    with pytest.raises(InputError, match="packnet"):
        settings_of(Recipe("packnet", tune=True))


@pytest.mark.parametrize("spoiled", [float("nan"), TrainingError("the loss is not a number")])
def test_a_trial_without_a_loss_has_lost(large, spoiled):
    def loss(recipe: Recipe) -> float:
        if recipe.mask_rate != 1 or recipe.method == "head" or recipe.init.floor == 1:
            return 0.5 if recipe.mask_rate == 2 else 1.0
        if isinstance(spoiled, Exception):
            raise spoiled
        return spoiled

    assert tune(Recipe("masks", tune=True), large, Trials(loss)).mask_rate == 2


def test_settings_keep_the_start_that_was_given_and_the_masks_of_a_task_gone_on_from():
    given = Recipe("masks", rule=MaskRule(threshold=0.02), init=ScoreInit(value=0.03))
    assert settings_of(given)["start with floor 1"]["init"] == ScoreInit(value=0.03, floor=1.0)
    assert "start with floor 1" not in settings_of(replace(given, init=ScoreInit("constant", 0.03)))
    masked = Task("a", {"w": pack_mask(torch.ones(3, dtype=torch.bool))}, {})
    assert "head alone" not in settings_of(given, masked)
