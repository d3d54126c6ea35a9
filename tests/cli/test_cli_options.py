"""Options of training are the recipe's fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from piggyback.cli.options import field_docs, options_of
from piggyback.masks.regularize import EntropyPrice, TargetDensity
from piggyback.train import Recipe
from piggyback.train.recipe import Augment
from support.cli_toys import Command


class StopError(Exception):
    """Raised in place of training."""


@pytest.fixture
def recipe_of(piggyback: Command, toy: str, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the recipe that ``piggyback train`` makes of some options."""

    def make(*options: str) -> Recipe:
        seen: list[Recipe] = []

        def instead(
            backbone: object, data: object, name: str, recipe: Recipe, *_: object, **__: object
        ) -> None:
            seen.append(recipe)
            raise StopError

        monkeypatch.setattr("piggyback.train.train", instead)
        with pytest.raises(StopError):
            piggyback("train", "--data", colours, "--backbone", f"{toy}:build", *options)
        return seen[0]

    return make


def test_no_options_give_the_default_recipe(recipe_of):
    assert recipe_of() == Recipe()


def test_options_reach_the_recipe(recipe_of):
    made = recipe_of(
        *("--method", "head", "--epochs", "3", "--image-size", "32", "--mask-lr", "1e-4"),
        *("--schedule", "step", "--clip", "1.5", "--rule-kind", "ternary", "--init-value", "0.02"),
        *("--augment-flip", "--augment-policy", "trivial", "--select", "0.*", "--select", "3.*"),
        *("--tracker", "wandb", "--grad-scale", "mean"),
    )
    assert (made.method, made.epochs, made.image_size, made.mask_lr) == ("head", 3, 32, 1e-4)
    assert (made.schedule, made.clip, made.rule.kind, made.init.value) == (
        "step",
        1.5,
        "ternary",
        0.02,
    )
    assert made.augment == Augment(flip=True, policy="trivial")
    assert (made.select, made.tracker, made.grad_scale) == (("0.*", "3.*"), "wandb", "mean")


def test_regularizers_are_given_by_kind_and_numbers(recipe_of):
    made = recipe_of(
        *("--regularizer", "EntropyPrice:price=1e-5"),
        *("--regularizer", "TargetDensity:density=0.9,strength=1"),
    )
    assert made.regularizers == (EntropyPrice(1e-5), TargetDensity(0.9, 1.0))


@pytest.mark.parametrize("text", ["Entropy:price=1", "EntropyPrice", "EntropyPrice:price=x", " "])
def test_a_wrong_regularizer_says_what_is_right(piggyback, text):
    piggyback("train", "--data", "x", "--regularizer", text).refuses("EntropyPrice:price=")


def test_a_wrong_value_is_refused_by_the_recipe(piggyback):
    piggyback("train", "--data", "x", "--epochs", "0").refuses("epochs 0", "an integer from 1")


def test_every_field_has_an_option_and_a_help_text():
    options = dict(options_of(Recipe))
    assert {path[0] for path in options} == {field.name for field in dataclasses.fields(Recipe)}
    assert {option.name for option in options.values()} >= {"rule_kind", "rule_threshold"}
    assert all(option.annotation.__metadata__[0].help for option in options.values())
    assert field_docs(Recipe)["batch_size"] == "Images per step, over all processes together."


def test_help_shows_what_matters_first(piggyback):
    lines = piggyback("train", "--help").out.splitlines()
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[:2] == ["Options:", "Training:"]
    first = next(line for line in lines if line.startswith("  --"))
    assert first.split()[0] == "--data"
    assert lines.index("Training:") < lines.index("Method masks:") < lines.index("Method lora:")


@pytest.mark.parametrize("option", ["--rule-form", "--form-lr"])
def test_no_option_asks_for_a_form(piggyback, option):
    for command in ("train", "compare"):
        ran = piggyback(command, "--data", "x", option, "1")
        assert ran.code == 2
        assert option in ran.err
