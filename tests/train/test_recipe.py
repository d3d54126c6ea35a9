"""Recipes: their fields explain themselves, survive JSON, and refuse nonsense."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
from itertools import pairwise
from typing import Any

import pytest

from piggyback.errors import InputError
from piggyback.masks.regularize import TargetDensity
from piggyback.masks.rule import MaskRule, ScoreInit, mask_lr
from piggyback.train import Augment, Recipe


@pytest.mark.parametrize("kind", [Recipe, Augment])
def test_every_field_has_its_help_below_it(kind: type) -> None:
    explained = {
        node.target.id
        for part in filter(dataclasses.is_dataclass, kind.__mro__)
        for node, following in pairwise(ast.parse(inspect.getsource(part)).body[0].body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
    assert explained == {field.name for field in dataclasses.fields(kind)}


def test_json_round_trip_of_everything() -> None:
    recipe = Recipe(
        "masks",
        select=("re:conv", "fc1"),
        rule=MaskRule("ternary", 0.01),
        init=ScoreInit("uniform", seed=4),
        regularizers=(TargetDensity(0.9, strength=0.1),),
        augment=Augment(flip=True, crop=0.5),
        patience=3,
    )
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_recipes_of_older_versions_are_read() -> None:
    values = {**Recipe().to_json(), "form_lr": 2e-3, "tensorboard": True}
    del values["tracker"]
    assert Recipe.from_json(values) == Recipe()
    values["rule"]["form"] = "channel"
    assert Recipe.from_json(values).rule == MaskRule(form="channel")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(InputError, match="learning_rate"):
        Recipe.from_json({**Recipe().to_json(), "learning_rate": 1})
    with pytest.raises(InputError, match="rule"):
        Recipe.from_json({"method": "masks"})


def test_the_rate_of_a_short_run_rises_with_its_steps_and_that_of_others_does_not_change() -> None:
    rates = [Recipe().derived_mask_lr(steps, 0.35, False) for steps in (7, 70, 140, 240)]
    assert rates == sorted(rates)
    assert rates[1] < 2.5e-4  # 5e-4 collapsed on eight traffic signs, 2.5e-4 did not
    assert Recipe().derived_mask_lr(240, None, False) == mask_lr(240)
    assert Recipe().derived_mask_lr(480, 0.35, False) == mask_lr(480, z=0.5)


def test_a_rate_and_a_factor_of_the_derived_one_are_refused_together() -> None:
    with pytest.raises(InputError, match="mask_rate 3"):
        Recipe(mask_lr=1e-3, mask_rate=3)


def test_a_regulariser_that_no_file_can_name() -> None:
    class Own:
        def add_(self, grad: Any, scores: Any, rule: Any) -> None: ...

    with pytest.raises(InputError, match="expected one of PullToKeep"):
        Recipe(regularizers=(Own(),)).to_json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", True),
        ("epochs", 10**7),
        ("mask_lr", "1e-3"),  # as YAML reads it
        ("batch_size", 1.5),
        ("accumulate", -1),
        ("mask_lr", 0.0),
        ("mask_lr", float("inf")),
        ("head_lr", float("nan")),
        ("clip", -1.0),
        ("warmup", 1.0),
        ("label_smoothing", 1.0),
        ("patience", 0),
        ("schedule", "linear"),
        ("norm", "froze"),
        ("amp", "fp8"),
        ("crop_pct", 0.0),
        ("workers", -1),
        ("finetune_optimizer", "adam"),
        ("tracker", "tensorbord"),
        ("tune", "yes"),
        ("loss", 3),
        ("select", "conv1"),
        ("sampling", "even"),
        ("seed", -1),
        ("seed", 10**39),
        ("seed", 1.5),
        ("mixup", 0.0),
        ("cutmix", -1.0),
        ("method", 3),
        ("rule", "binary"),
        ("init", "uniform"),
        ("augment", None),
        ("regularizers", ("x",)),
        ("image_size", "224"),
        ("workers", 1.5),
    ],
)
def test_wrong_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field} .*expected"):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    "options", [{"shift": 1.0}, {"shift": -0.1}, {"crop": 0.0}, {"policy": "best"}]
)
def test_wrong_augmentation(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Augment(**options)


def test_identity_leaves_out_how_a_run_goes_about() -> None:
    assert Recipe(workers=0).identity() == Recipe(workers=4, checkpoint_minutes=0).identity()
    assert Recipe(seed=1).identity() != Recipe(seed=2).identity()


def test_the_identity_of_runs_stays_what_it_was() -> None:
    """Results that were computed by older versions are found again only while this holds."""
    mirror = Recipe(augment=Augment(border="mirror"))  # as all had it before there was a choice
    text = json.dumps(mirror.identity(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("a04385cab2cfff62")
    assert Recipe.from_json(mirror.identity() | {"epochs": 3}).augment == mirror.augment


@pytest.mark.parametrize(
    ("images", "epochs"), [(8, 480), (32, 480), (256, 60), (800, 32), (3770, 7), (50_000, 5)]
)
def test_a_run_is_as_long_as_its_images_ask_for(images: int, epochs: int) -> None:
    steps = epochs * max(images // 32, 1)
    assert steps >= 480
    assert steps <= 920 or epochs == 5
    assert Recipe().epochs_for(images) == epochs
    assert Recipe(epochs=2).epochs_for(images) == 2
