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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from piggyback.errors import InputError, TrainingError
from piggyback.taskfile.disk import write_file
from piggyback.taskfile.task import Task
from piggyback.train.data.batches import steps_in_epoch
from piggyback.train.data.sets import ImageData
from piggyback.train.device import processes
from piggyback.train.events import Listener
from piggyback.train.recipe import SHORTEST, Recipe
from piggyback.train.result import TrainResult

TUNE = "tune.json"
"""The file in a run's folder that says what was tried."""

Train = Callable[..., TrainResult]
"""Called with ``data``, ``recipe`` and ``out``, as ``train`` has them."""


def settings_of(recipe: Recipe, start: Task | None = None) -> dict[str, dict[str, Any]]:
    """Return what is tried for a recipe, its fields by a label; the head alone, too, unless ``start`` has masks.

    >>> list(settings_of(Recipe("masks")))
    ['derived rate', 'a third of the rate', 'twice the rate', 'start with floor 1', 'head alone']
    >>> list(settings_of(Recipe("head")).values())
    [{'head_lr': 0.002}, {'head_lr': 0.0006666666666666666}, {'head_lr': 0.006}, {'head_lr': 0.02}]
    """
    if recipe.method == "masks":
        name = "mask_rate" if recipe.mask_lr is None else "mask_lr"
        rate = getattr(recipe, name)
        found: dict[str, dict[str, Any]] = {
            "derived rate" if recipe.mask_lr is None else "given rate": {},
            "a third of the rate": {name: rate / 3},
            "twice the rate": {name: 2 * rate},
        }
        if recipe.init.kind == "magnitude":
            found["start with floor 1"] = {"init": replace(recipe.init, floor=1.0)}
        if start is None or not start.masks:
            found["head alone"] = {"method": "head"}
        return found
    name = f"{recipe.method}_lr"
    if not hasattr(recipe, name):
        raise InputError(f"method {recipe.method!r} has no rate to tune: expected tune=False")
    base = getattr(recipe, name)
    rates = [base, base / 3, base * 3, base * 10]
    return {f"{name} {rate:g}": {name: rate} for rate in rates}


def tune(
    recipe: Recipe,
    data: ImageData,
    train: Train,
    folder: Path | None = None,
    listener: Listener | None = None,
    start: Task | None = None,
) -> Recipe:
    """Return ``recipe`` with the setting that is best on validation loss; ``train`` runs a trial, from ``start``.

    A trial whose loss is no number has lost. ``folder`` gets ``tune.json`` and the trials, so that a run that was
    stopped goes on.
    """
    listener = listener or Listener()
    plain = replace(recipe, tune=False, patience=None)
    settings = settings_of(recipe, start)
    part = replace(data, test=data.val)
    epoch = steps_in_epoch(data.train, recipe.batch_size, processes().num_processes)
    whole = recipe.epochs_for(len(data.train))
    epochs = min(-(-max(whole * epoch // len(settings), SHORTEST) // epoch), whole)
    listener.on_notice(
        f"tune: {len(settings)} settings, {epochs} epochs each, before the run itself"
    )
    losses: dict[str, float] = {}
    for label, fields in settings.items():
        listener.on_stage(f"trying {label}")
        trial = replace(plain, **fields, epochs=epochs, tracker="none")
        place = None if folder is None else folder / "tune" / label.replace(" ", "-")
        try:
            loss = train(data=part, recipe=trial, out=place).history[-1].val_loss
        except TrainingError as error:
            listener.on_notice(f"tune: {label}: {error}")
            loss = math.inf
        losses[label] = math.inf if math.isnan(loss) else loss
        listener.on_notice(f"tune: {label}: val loss {losses[label]:.3f}")
    given, best = next(iter(losses)), min(losses, key=losses.__getitem__)
    # Of models that agree on most samples, the difference of two mean losses is off by about this part of them.
    least = losses[given] * (1 - 1 / (2 * math.sqrt(len(data.val))))
    if recipe.method == "masks" and losses[best] > least:
        best = given
    listener.on_notice(f"tune chose: {best}")
    if folder is not None and processes().is_main_process:
        tried = [{"setting": label, "val_loss": loss} for label, loss in losses.items()]
        text = {"chosen": best, "epochs": epochs, "tried": tried}
        write_file(folder / TUNE, json.dumps(text, indent=1) + "\n")
    return replace(recipe, tune=False, **settings[best])
