"""What a task's answers to labelled samples come to: one outcome, and a report on it for each kind of task.

evaluate's images -> Outcome: probabilities or numbers, and the truth -> Report: plain JSON
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from piggyback.errors import InputError
from piggyback.kinds import metrics, score_name
from piggyback.kinds.classification import confidence
from piggyback.kinds.metrics import Calibration, Floats, Interval
from piggyback.kinds.tokens import types_of

SLOW_DRAWS = 200
"""Resamples where each has to sort all scores again."""
LEVELS = (0.99, 0.98, 0.95, 0.9)
"""Accuracies for which a report says how many answers may be given."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A task's answers to samples whose truth is known."""

    task: str
    kind: str
    classes: tuple[str, ...]
    answers: Floats
    """(n, classes): probabilities, or numbers in their units; of a segmentation and of tokens (n, 0)."""
    truth: NDArray[Any]
    """int64 (n,) classes, bool (n, classes) labels, float (n, classes) numbers; of a segmentation int64 (n, classes,
    classes), how many pixels of class i were called class j; of tokens int64 (n, types, 3), see ``Tokens.kept``."""
    units: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    least: float = 0.0
    """Confidence below which answers of a classification are marked as abstained; 0 where none are."""
    tags: Sequence[tuple[Sequence[str], Sequence[str]]] = ()
    """Of tokens: the tags that the words of each text have, and what they were called, O where words are cut off."""

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def given(self) -> NDArray[np.bool_]:
        """Of a multilabel task: which labels are given, (n, classes)."""
        return np.asarray(self.answers >= np.array(self.thresholds or (0.5,)))


@dataclass(frozen=True)
class Number:
    """A number and the 95 % interval that a bootstrap over the samples gives it."""

    value: float
    interval: Interval | None = None
    unit: str = "%"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, undefined numbers as null."""
        low, high = self.interval or (math.nan, math.nan)
        return {
            "value": _plain(self.value),
            "low": _plain(low),
            "high": _plain(high),
            "unit": self.unit,
        }


@dataclass(frozen=True, eq=False)
class Report:
    """The numbers of one outcome."""

    outcome: Outcome
    numbers: Mapping[str, Number]
    rows: Mapping[str, Mapping[str, float]]
    """Of each class, label or output: numbers by name, shares in percent."""
    wrong: Sequence[int]
    """Samples whose answers are wrong, the surest or the furthest off first."""
    counts: NDArray[np.int64] | None = None
    """The confusion matrix, where samples or pixels have one class."""
    calibration: Calibration | None = None
    coverage: tuple[Floats, Floats, Floats] | None = None
    confidence: Floats | None = None
    """(n,): of each answer of a classification, as task files and answers have it: 1 - entropy / log(classes)."""
    sentences: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON, undefined numbers as null."""
        found: dict[str, Any] = {
            "task": self.outcome.task,
            "kind": self.outcome.kind,
            "samples": len(self.outcome),
            "numbers": {name: number.to_json() for name, number in self.numbers.items()},
            "classes": {
                name: {key: _plain(value) for key, value in row.items()}
                for name, row in self.rows.items()
            },
        }
        if self.counts is not None:
            found["confusion"] = self.counts.tolist()
        if self.calibration is not None:
            bins = {**vars(self.calibration)}
            bins["probability"] = bins.pop("confidence")
            found["calibration"] = {
                key: list(map(_plain, value)) for key, value in bins.items() if key != "ece"
            }
        if self.coverage is not None:
            sure, share, right = (part[_thinned(len(part))].tolist() for part in self.coverage)
            found["coverage"] = {"confidence": sure, "coverage": share, "accuracy": right}
        return found


def report_on(outcome: Outcome) -> Report:
    """Return the report on an outcome; InputError for a kind that has none.

    >>> chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    >>> made = report_on(Outcome("x", "classification", ("a", "b"), chances, np.array([0, 1, 0])))
    >>> round(made.numbers["accuracy"].value, 2), made.wrong
    (66.67, [2])
    """
    if outcome.kind not in _REPORTS:
        raise InputError(
            f"a report on a task of kind {outcome.kind!r}: expected one of {', '.join(_REPORTS)}"
        )
    if not len(outcome):
        raise InputError(
            f"a report on task {outcome.task!r}: expected one sample or more, found none"
        )
    return _REPORTS[outcome.kind](outcome)


def _classification(outcome: Outcome) -> Report:
    called, truth = outcome.answers.argmax(1), outcome.truth
    right, sure = called == truth, outcome.answers.max(1)
    counts = metrics.confusion(truth, called, len(outcome.classes))
    intervals, found = metrics.bootstrap_counts(counts), metrics.overall(counts)
    numbers = {
        name: _percent(float(found[name]), intervals[name])
        for name in ("accuracy", "balanced_accuracy", "macro_f1")
    }
    calibration = metrics.calibration(sure, right)
    numbers["mean_probability"] = _percent(float(sure.mean()))
    numbers["calibration_error"] = _percent(calibration.ece)
    chances = np.maximum(outcome.answers[np.arange(len(truth)), truth], 1e-12)
    numbers["log_loss"] = Number(float(-np.log(chances).mean()), unit="")
    # Probabilities' logarithms are logits.
    logits = torch.from_numpy(np.log(np.maximum(outcome.answers, 1e-30)))
    certain = confidence(logits).double().numpy()
    curve = metrics.coverage(certain, right)
    if outcome.least:
        given = certain >= outcome.least
        numbers["answered"] = _percent(float(given.mean()))
        numbers["accuracy_of_answers"] = _percent(
            float(right[given].mean()) if given.any() else math.nan
        )
    return Report(
        outcome,
        numbers,
        _class_rows(outcome, counts, "precision", "recall", "f1"),
        [int(i) for i in np.argsort(-sure, kind="stable") if not right[i]],
        counts,
        calibration,
        curve,
        certain,
        _levels(curve, len(outcome)),
    )


def _multilabel(outcome: Outcome) -> Report:
    scores, truth, given = outcome.answers, outcome.truth, outcome.given

    def means(rows: NDArray[np.int64]) -> dict[str, float]:
        p, t, g = scores[rows], truth[rows], given[rows]
        both, true, called = (t & g).sum(0), t.sum(0), g.sum(0)
        f1 = metrics.ratios(both, true, called)["f1"]
        pairs = [
            (metrics.average_precision(a, b), metrics.auroc(a, b))
            for a, b in zip(p.T, t.T, strict=True)
        ]
        return {
            "mean_average_precision": _nanmean([ap for ap, _ in pairs]),
            "mean_auroc": _nanmean([area for _, area in pairs]),
            "macro_f1": _nanmean(f1),
            "micro_f1": float(metrics.ratios(both.sum(), true.sum(), called.sum())["f1"]),
            "all_labels_right": float((t == g).all(1).mean()),
        }

    everything = np.arange(len(outcome))
    intervals = metrics.bootstrap(means, len(outcome), draws=SLOW_DRAWS)
    numbers = {name: _percent(value, intervals[name]) for name, value in means(everything).items()}
    sure = np.where(given, scores, 1 - scores)
    calibration = metrics.calibration(scores.ravel(), truth.ravel())
    numbers["calibration_error"] = _percent(calibration.ece)
    counted = metrics.ratios((truth & given).sum(0), truth.sum(0), given.sum(0))
    rows = {}
    for i, name in enumerate(outcome.classes):
        rows[name] = {"samples": float(truth[:, i].sum())}
        rows[name] |= {key: 100 * float(counted[key][i]) for key in ("precision", "recall", "f1")}
        rows[name]["average precision"] = 100 * metrics.average_precision(scores[:, i], truth[:, i])
        rows[name]["auroc"] = 100 * metrics.auroc(scores[:, i], truth[:, i])
    worst = np.where(truth == given, 0.0, sure).max(1)
    wrong = [int(i) for i in np.argsort(-worst, kind="stable") if worst[i] > 0]
    return Report(outcome, numbers, rows, wrong, calibration=calibration)


def _regression(outcome: Outcome) -> Report:
    found, truth = outcome.answers, outcome.truth
    units = outcome.units or ("",) * len(outcome.classes)
    numbers: dict[str, Number] = {}
    rows: dict[str, dict[str, float]] = {}
    for i, (name, unit) in enumerate(zip(outcome.classes, units, strict=True)):

        def of(samples: NDArray[np.int64], i: int = i) -> dict[str, float]:
            return metrics.errors(found[samples, i], truth[samples, i])

        whole, intervals = of(np.arange(len(outcome))), metrics.bootstrap(of, len(outcome))
        prefix = "" if len(units) == 1 else f"{name} "
        for key, value in whole.items():
            share = key == "r2"
            numbers[prefix + key] = (
                _percent(value, intervals[key]) if share else Number(value, intervals[key], unit)
            )
        mean, low, high = truth[:, i].mean(), truth[:, i].min(), truth[:, i].max()
        rows[name] = {"mean": float(mean), "least": float(low), "most": float(high), **whole}
        rows[name]["r2"] *= 100
    spread = truth.std(0)
    off = np.abs(found - truth) / np.where(spread > 0, spread, 1)
    return Report(outcome, numbers, rows, [int(i) for i in np.argsort(-off.max(1), kind="stable")])


def _segmentation(outcome: Outcome) -> Report:
    counts, k = outcome.truth, len(outcome.classes)

    def of(images: NDArray[np.int64]) -> dict[str, float]:
        found = metrics.overall(counts[images].sum(0))
        return {name: float(found[name]) for name in ("mean_iou", "accuracy", "macro_f1")}

    whole, total = of(np.arange(len(outcome))), counts.sum(0).reshape(k, k)
    intervals = metrics.bootstrap(of, len(outcome), draws=SLOW_DRAWS)
    renamed = {"accuracy": "pixel_accuracy"}
    numbers = {renamed.get(name, name): _percent(v, intervals[name]) for name, v in whole.items()}
    right = counts.diagonal(axis1=1, axis2=2).sum(1) / np.maximum(counts.sum((1, 2)), 1)
    rows = _class_rows(outcome, total, "iou", "precision", "recall")
    rows = {name: {"pixels": row.pop("samples"), **row} for name, row in rows.items()}
    return Report(outcome, numbers, rows, [int(i) for i in np.argsort(right, kind="stable")], total)


def _tokens(outcome: Outcome) -> Report:
    counts, total = outcome.truth, outcome.truth.sum(0)

    def of(texts: NDArray[np.int64]) -> dict[str, float]:
        found = metrics.ratios(*counts[texts].sum((0, 1)))
        return {name: float(found[name]) for name in ("f1", "precision", "recall")}

    intervals = metrics.bootstrap(of, len(outcome))
    whole = of(np.arange(len(outcome)))
    by_type = metrics.ratios(*total.T)
    rows = {
        name: {
            "spans": float(total[i, 1]),
            **{key: 100 * float(by_type[key][i]) for key in ("precision", "recall", "f1")},
        }
        for i, name in enumerate(types_of(outcome.classes))
    }
    missed = (counts[..., 1] + counts[..., 2] - 2 * counts[..., 0]).sum(1)
    wrong = [int(i) for i in np.argsort(-missed, kind="stable") if missed[i]]
    numbers = {name: _percent(value, intervals[name]) for name, value in whole.items()}
    return Report(outcome, numbers, rows, wrong)


_REPORTS: dict[str, Callable[[Outcome], Report]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
    "segmentation": _segmentation,
    "tokens": _tokens,
}


# -- two tasks -------------------------------------------------------------------------------------


def compared(one: Outcome, other: Outcome) -> dict[str, Any]:
    """Return how two tasks differ on the same samples, as plain JSON: what each has, None where it is undefined.

    And a paired test: of a classification McNemar's exact test; of every kind the 95 % interval of the difference of a
    score, from resamples that both share. Raises InputError for tasks of other kinds or classes, or for other samples.
    """
    if (one.kind, one.classes) != (other.kind, other.classes):
        raise InputError(
            f"task {one.task!r} ({one.kind}, {len(one.classes)} classes) and {other.task!r} ({other.kind}, "
            f"{len(other.classes)} classes): expected the same kind and classes to compare them"
        )
    if len(one) != len(other):
        raise InputError(
            f"{len(one)} samples and {len(other)}: expected the same ones for both tasks"
        )

    def score(outcome: Outcome, rows: NDArray[np.int64]) -> float:
        return 100 * _SCORES[one.kind](outcome.answers[rows], outcome.truth[rows])

    def both(rows: NDArray[np.int64]) -> dict[str, float]:
        return {"difference": score(one, rows) - score(other, rows)}

    everything = np.arange(len(one))
    draws = metrics.DRAWS if one.kind == "classification" else SLOW_DRAWS
    low, high = metrics.bootstrap(both, len(one), draws=draws)["difference"]
    found: dict[str, Any] = {
        "score": score_name(one.kind),
        "samples": len(one),
        one.task: _plain(score(one, everything)),
        other.task: _plain(score(other, everything)),
        "difference": {
            "value": _plain(both(everything)["difference"]),
            "low": _plain(low),
            "high": _plain(high),
        },
    }
    if one.kind == "classification":
        right = [outcome.answers.argmax(1) == outcome.truth for outcome in (one, other)]
        only, others, p = metrics.mcnemar(*right)
        found["mcnemar"] = {"only_first_right": only, "only_second_right": others, "p": p}
    return found


def _mean_of(of: Callable[[Any, Any], float], answers: Floats, truth: NDArray[Any]) -> float:
    """The mean over labels or numbers of what each one's column comes to."""
    return _nanmean([of(a, t) for a, t in zip(answers.T, truth.T, strict=True)])


_SCORES: dict[str, Callable[[Floats, NDArray[Any]], float]] = {
    "classification": lambda answers, truth: float((answers.argmax(1) == truth).mean()),
    "multilabel": partial(_mean_of, metrics.average_precision),
    "regression": partial(_mean_of, lambda found, truth: metrics.errors(found, truth)["r2"]),
    "segmentation": lambda _, truth: float(metrics.overall(truth.sum(0))["mean_iou"]),
    "tokens": lambda _, truth: float(metrics.ratios(*truth.sum((0, 1)))["f1"]),
}
"""By kind: what two tasks are compared by, from the answers to some samples and their truth."""


# -- small things ----------------------------------------------------------------------------------


def _class_rows(
    outcome: Outcome, counts: NDArray[np.int64], *names: str
) -> dict[str, dict[str, float]]:
    found, true = metrics.by_class(counts), counts.sum(1)
    return {
        label: {"samples": float(true[i]), **{name: 100 * float(found[name][i]) for name in names}}
        for i, label in enumerate(outcome.classes)
    }


def _levels(curve: tuple[Floats, Floats, Floats], n: int) -> tuple[str, ...]:
    """For each accuracy that is asked for: how many answers may be given, and from which confidence.

    Not where they are so few that one more mistake would be too many.
    """
    sure, share, right = curve
    found = []
    for level in LEVELS:
        if len(good := np.flatnonzero(right >= level)):
            last = good[-1]
            if n * share[last] * (1 - level) < 1 - 1e-9:
                continue
            found.append(
                f"{100 * level:g} % of the surest {100 * share[last]:.1f} % of answers are right: those of "
                f"confidence {sure[last]:.3f} or more"
            )
    return tuple(found)


def _percent(value: float, interval: Interval | None = None) -> Number:
    return Number(100 * value, interval and (100 * interval[0], 100 * interval[1]))


def _nanmean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else round(value, 6)


def in_digits(value: float | None, how: str = ".2f") -> str:
    """Return a number of ``compared`` as text.

    >>> in_digits(2.5, "+.2f"), in_digits(None)
    ('+2.50', '-')
    """
    return "-" if value is None else format(value, how)


def _thinned(n: int, most: int = 200) -> NDArray[np.int64]:
    """At most so many of n places, evenly spaced, the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
