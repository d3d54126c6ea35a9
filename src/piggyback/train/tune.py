"""Choice by validation: a training of each of a few settings, then the best in full.

A trial is a whole run, warm-up and cosine included, whose mask rate follows from its own length. All trials together
take the steps of the training itself, but each as many as the shortest default run, or the training itself: masks that
have had fewer steps say nothing of their setting, and the head alone would win. They are judged by their loss on val,
which tells more of few images than accuracy does; the derived rate of masks gives way only to a setting that is better
by more than chance. Test is not looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from piggyback.errors import InputError
from piggyback.masks.rule import ScoreInit
from piggyback.taskfile.disk import write_file
from piggyback.train.data.batches import steps_in_epoch
from piggyback.train.data.sets import ImageData
from piggyback.train.device import processes
from piggyback.train.events import Listener
from piggyback.train.recipe import SHORTEST, Recipe
from piggyback.train.result import TrainResult

TUNE = "tune.json"
"""The file in a run's folder that says what was tried."""

Train = Callable[[ImageData, Recipe, "Path | None"], TrainResult]


@dataclass(frozen=True)
class Setting:
    """One setting to try."""

    label: str
    fields: Mapping[str, Any]
    """Recipe fields."""


def settings_of(recipe: Recipe) -> list[Setting]:
    """Return what is tried for a recipe: as many settings for every method, masks also against the head alone.

    >>> [setting.label for setting in settings_of(Recipe("masks"))]
    ['derived rate', 'a third of the rate', 'twice the rate', 'start with floor 1', 'head alone']
    >>> [setting.fields for setting in settings_of(Recipe("head"))]
    [{'head_lr': 0.002}, {'head_lr': 0.0006666666666666666}, {'head_lr': 0.006}, {'head_lr': 0.02}]
    """
    if recipe.method == "masks":
        name = "mask_rate" if recipe.mask_lr is None else "mask_lr"
        rate = getattr(recipe, name)
        return [
            Setting("derived rate" if recipe.mask_lr is None else "given rate", {}),
            Setting("a third of the rate", {name: rate / 3}),
            Setting("twice the rate", {name: 2 * rate}),
            Setting("start with floor 1", {"init": ScoreInit(floor=1.0)}),
            Setting("head alone", {"method": "head"}),
        ]
    name = f"{recipe.method}_lr"
    if not hasattr(recipe, name):
        raise InputError(f"method {recipe.method!r} has no rate to tune: expected tune=False")
    base = getattr(recipe, name)
    rates = [base, base / 3, base * 3, base * 10]
    return [Setting(f"{name} {rate:g}", {name: rate}) for rate in rates]


def tune(
    recipe: Recipe,
    data: ImageData,
    train: Train,
    folder: Path | None = None,
    listener: Listener | None = None,
) -> Recipe:
    """Return ``recipe`` with the setting that is best on validation loss; ``train`` runs a trial.

    ``folder`` gets ``tune.json`` and the trials, so that a run that was stopped goes on.
    """
    listener = listener or Listener()
    plain = replace(recipe, tune=False, patience=None)
    settings = settings_of(recipe)
    part = replace(data, test=data.val)
    epoch = steps_in_epoch(data.train, recipe.batch_size, processes().num_processes)
    whole = recipe.epochs_for(len(data.train))
    epochs = min(-(-max(whole * epoch // len(settings), SHORTEST) // epoch), whole)
    listener.on_notice(
        f"tune: {len(settings)} settings, {epochs} epochs each, before the run itself"
    )
    losses = []
    for setting in settings:
        listener.on_stage(f"trying {setting.label}")
        trial = replace(plain, **setting.fields, epochs=epochs, tracker="none")
        place = None if folder is None else folder / "tune" / setting.label.replace(" ", "-")
        losses.append(train(part, trial, place).history[-1].val_loss)
        listener.on_notice(f"tune: {setting.label}: val loss {losses[-1]:.3f}")
    at = min(range(len(settings)), key=lambda i: losses[i])
    # Of models that agree on most samples, the difference of two mean losses is off by about this part of them.
    chance = losses[0] / (2 * math.sqrt(len(data.val)))
    if recipe.method == "masks" and losses[at] > losses[0] - chance:
        at = 0
    best = settings[at]
    listener.on_notice(f"tune chose: {best.label}")
    if folder is not None and processes().is_main_process:
        tried = [
            {"setting": setting.label, "val_loss": loss}
            for setting, loss in zip(settings, losses, strict=True)
        ]
        text = {"chosen": best.label, "epochs": epochs, "tried": tried}
        write_file(folder / TUNE, json.dumps(text, indent=1) + "\n")
    return replace(recipe, tune=False, **best.fields)
