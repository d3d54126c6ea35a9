"""Reports on outcomes of every kind, and pairs of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from piggyback.errors import InputError
from piggyback.lab.tables.report import _comparison
from piggyback.train.report import Outcome, compared, report_on


def outcome(kind: str, n: int = 80, noise: float = 1.0, seed: int = 0, name: str = "x") -> Outcome:
    """Answers that are right but for noise; the truth is the same for every seed."""
    truths, generator = np.random.default_rng(9), np.random.default_rng(seed)
    classes = ("a", "b", "c")
    if kind == "classification":
        truth = truths.integers(0, 3, n)
        logits = 2 * np.eye(3)[truth] + noise * generator.normal(size=(n, 3))
        answers = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    elif kind == "multilabel":
        truth = truths.random((n, 3)) < 0.4
        answers = 1 / (1 + np.exp(-4 * (truth - 0.5) - noise * generator.normal(size=(n, 3))))
    elif kind == "regression":
        truth = truths.normal(size=(n, 3)) * 5
        answers = truth + noise * generator.normal(size=(n, 3))
    else:
        truth, answers = (
            truths.integers(0, 40, (n, 3, 3)) + 100 * np.eye(3, dtype=int),
            np.zeros((n, 0)),
        )
    return Outcome(
        name, kind, classes, answers, truth, ("m", "", "s") if kind == "regression" else ()
    )


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "segmentation"])
def test_every_kind_has_numbers_with_intervals_and_a_row_per_class(kind: str) -> None:
    made = report_on(outcome(kind))
    assert list(made.rows) == ["a", "b", "c"]
    with_interval = [number for number in made.numbers.values() if number.interval]
    assert len(with_interval) >= 3
    for number in with_interval:
        low, high = number.interval
        assert low <= number.value <= high
    values = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert values["samples"] == 80


def test_the_surest_mistake_comes_first() -> None:
    made = report_on(outcome("classification", noise=2))
    answers, truth = made.outcome.answers, made.outcome.truth
    assert (answers[made.wrong].argmax(1) != truth[made.wrong]).all()
    assert len(made.wrong) == int((answers.argmax(1) != truth).sum())
    sure = answers[made.wrong].max(1)
    assert (np.diff(sure) <= 0).all()


def test_a_class_without_samples_is_null_and_not_nan() -> None:
    found = outcome("classification")
    some = found.truth != 2
    made = report_on(
        Outcome("x", "classification", found.classes, found.answers[some], found.truth[some])
    )
    assert made.to_json()["classes"]["c"]["recall"] is None


def test_regression_says_units_and_prefers_the_furthest_off() -> None:
    made = report_on(outcome("regression"))
    assert made.numbers["a mae"].unit == "m"
    assert made.numbers["a r2"].unit == "%"
    off = np.abs(made.outcome.answers - made.outcome.truth) / made.outcome.truth.std(0)
    assert made.wrong[0] == off.max(1).argmax()


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_the_better_of_two_is_told_from_chance(kind: str) -> None:
    one, worse = outcome(kind, 200, 0.5, name="one"), outcome(kind, 200, 2.5, seed=1, name="two")
    gap = compared(one, worse)
    assert gap["difference"]["low"] > 0
    assert gap["one"] - gap["two"] == pytest.approx(gap["difference"]["value"])
    same = compared(one, outcome(kind, 200, 0.5, name="again"))
    assert same["difference"] == {"value": 0, "low": 0, "high": 0}
    if kind == "classification":
        assert gap["mcnemar"]["p"] < 1e-3
        assert same["mcnemar"]["p"] == 1


def test_levels_that_few_answers_cannot_prove_are_left_out() -> None:
    told = {n: report_on(outcome("classification", n, noise=0.1)).sentences for n in (19, 50)}
    assert [line.split()[0] for line in told[19]] == ["90"]
    assert [line.split()[0] for line in told[50]] == ["98", "95", "90"]


@pytest.mark.parametrize("kind", ["multilabel", "regression", "tokens"])
def test_an_undefined_score_is_none_where_two_are_compared(kind: str) -> None:
    truth = np.zeros((9, 2, 3), int) if kind == "tokens" else np.zeros((9, 2))
    made = Outcome(
        "x", kind, ("a", "b"), np.zeros((9, 2)), truth > 0 if kind == "multilabel" else truth
    )
    gap = compared(made, replace(made, task="y"))
    assert gap["x"] is gap["y"] is gap["difference"]["value"] is gap["difference"]["low"] is None
    assert "- %" in _comparison(gap)


def test_what_cannot_be_reported_or_compared_is_refused() -> None:
    with pytest.raises(InputError, match="poetry"):
        report_on(Outcome("x", "poetry", (), np.zeros((1, 0)), np.zeros(1)))
    with pytest.raises(InputError, match="samples"):
        compared(outcome("regression", 10), outcome("regression", 11))
    with pytest.raises(InputError, match="multilabel"):
        compared(outcome("regression"), outcome("multilabel"))
    with pytest.raises(InputError, match="none"):
        report_on(outcome("classification", 0))
