"""Choice by validation: short trainings of a few settings, the better half longer, the best in full.

    round 1    every setting, together half the steps of the training itself
    round 2    the two best, a quarter of these steps each
    then       the best, trained as if it had been asked for

So choosing costs at most as many steps as training. A trial is a whole run of fewer steps, warm-up and cosine
included, whose mask rate follows from its own length; it is judged by its loss on val, which tells more of few images
than accuracy does. Where val is too small to judge by, train and val are halved, and each half is judged by what was
learned on the other. Test is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from piggyback.errors import InputError
from piggyback.masks.rule import ScoreInit
from piggyback.taskfile.disk import write_file
from piggyback.train.data.batches import steps_in_epoch
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import ImageData
from piggyback.train.device import processes
from piggyback.train.events import Listener
from piggyback.train.hashing import shuffled
from piggyback.train.recipe import Recipe
from piggyback.train.result import TrainResult

TUNE = "tune.json"
"""The file in a run's folder that says what was tried."""
FEWEST = 100
"""Val images from which a loss on them is worth more than that of two halves of everything."""
_STREAM = 0x7E57

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
            Setting("derived rate", {}),
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
    if not isinstance(data.train, LabelledSet):
        raise InputError(f"{data.name}: tune with label maps: expected samples with a class each")
    listener = listener or Listener()
    plain = replace(recipe, tune=False, patience=None)
    parts = _folds(data, recipe.seed)
    settings = settings_of(recipe)
    whole = recipe.epochs_for(len(data.train)) * _epoch(data, recipe)
    tried: list[dict[str, Any]] = []
    for number, share in ((1, 1 / (2 * len(settings))), (2, 1 / 4)):
        losses = []
        for setting in settings:
            loss = 0.0
            for fold, part in enumerate(parts):
                steps = max(round(whole * share / len(parts)), 1)
                place = f"round-{number}-{setting.label.replace(' ', '-')}-{fold}"
                epochs = max(round(steps / _epoch(part, plain)), 1)
                trial = replace(plain, **setting.fields, epochs=epochs, tracker="none")
                result = train(part, trial, None if folder is None else folder / "tune" / place)
                loss += result.history[-1].val_loss / len(parts)
            losses.append(loss)
            tried.append({"round": number, "setting": setting.label, "val_loss": loss})
            listener.on_notice(f"tune, round {number}: {setting.label}: val loss {loss:.3f}")
        order = sorted(range(len(settings)), key=lambda i: losses[i])
        settings = [settings[i] for i in order[: 2 if number == 1 else 1]]
    (best,) = settings
    listener.on_notice(f"tune chose: {best.label}")
    if folder is not None and processes().is_main_process:
        text = {"chosen": best.label, "tried": tried}
        write_file(folder / TUNE, json.dumps(text, indent=1) + "\n")
    return replace(plain, **best.fields)


def _epoch(data: ImageData, recipe: Recipe) -> int:
    return steps_in_epoch(data.train, recipe.batch_size, processes().num_processes)


def _folds(data: ImageData, seed: int) -> Sequence[ImageData]:
    """The data to try on: as it is, or two halves of train and val, each judged by the other; test is left out."""
    train, val = data.train, data.val
    if not isinstance(train, LabelledSet) or not isinstance(val, LabelledSet):
        return [replace(data, test=val)]
    if train.kind != "classification" or len(val) >= FEWEST:
        return [replace(data, test=val)]
    labels = torch.cat([train.labels, val.labels])
    first = torch.zeros(len(labels), dtype=torch.bool)
    order = shuffled(seed, _STREAM, len(labels))
    for label in range(len(data.classes)):
        members = order[labels[order] == label]
        first[members[: -(-len(members) // 2)]] = True
    if any(not (labels[~first] == label).any() for label in range(len(data.classes))):
        return [replace(data, test=val)]  # a class of one image cannot be in both halves
    both = train.joined(val)  # type: ignore[arg-type]  # ImageData has sets of one type
    one, other = (both.subset(mask.nonzero()[:, 0]) for mask in (first, ~first))
    return [replace(data, train=a, val=b, test=b) for a, b in ((one, other), (other, one))]
