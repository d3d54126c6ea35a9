"""Recipes: their fields explain themselves, survive JSON, and refuse nonsense."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from itertools import pairwise
from typing import Any

import pytest

from piggyback.errors import InputError
from piggyback.masks.init import ScoreInit
from piggyback.masks.regularize import TargetDensity
from piggyback.masks.rule import MaskRule
from piggyback.training import Augment, Recipe, derive_mask_lr
from piggyback.training.schedule import lr_factor


@pytest.mark.parametrize("kind", [Recipe, Augment])
def test_every_field_has_its_help_below_it(kind: type) -> None:
    body = ast.parse(inspect.getsource(kind)).body[0].body
    explained = {
        node.target.id
        for node, following in pairwise(body)
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
    values = {**Recipe().to_json(), "form_lr": 2e-3}
    assert Recipe.from_json(values) == Recipe()
    values["rule"]["form"] = "channel"
    assert Recipe.from_json(values).rule == MaskRule(form="channel")


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(InputError, match="learning_rate"):
        Recipe.from_json({**Recipe().to_json(), "learning_rate": 1})
    with pytest.raises(InputError, match="rule"):
        Recipe.from_json({"method": "masks"})


def test_a_regulariser_that_no_file_can_name() -> None:
    class Own:
        def add_(self, grad: Any, scores: Any, rule: Any) -> None: ...

    with pytest.raises(InputError, match="expected one of PullToKeep"):
        Recipe(regularizers=(Own(),)).to_json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("accumulate", -1),
        ("mask_lr", 0.0),
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
    ],
)
def test_wrong_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{field} "):
        Recipe(**{field: value})


def test_identity_leaves_out_how_a_run_goes_about() -> None:
    assert Recipe(workers=0).identity() == Recipe(workers=4, checkpoint_minutes=0).identity()
    assert Recipe(seed=1).identity() != Recipe(seed=2).identity()


def test_the_mask_rate_is_highest_for_runs_of_about_a_thousand_steps() -> None:
    rates = [derive_mask_lr(steps) for steps in (1, 30, 300, 1000, 5000, 10**6)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert all(0 < rate <= 2.5e-4 for rate in rates)


def test_schedules_start_peak_and_end_where_they_say() -> None:
    cosine = [lr_factor("cosine", step, 100, 0.1) for step in range(100)]
    assert cosine[0] == pytest.approx(0.04)
    assert cosine[10] == 1.0 == max(cosine)
    assert cosine[:11] == sorted(cosine[:11])
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0 < cosine[-1] < 0.01
    assert lr_factor("cosine", 0, 1, 0.0) == 1.0
    assert {lr_factor("step", step, 30, 0.1) for step in range(15)} == {1.0}
    assert {lr_factor("step", step, 30, 0.1) for step in range(15, 30)} == {0.1}
    assert lr_factor("constant", 99, 100, 0.1) == 1.0
