"""Numbers that say how good answers are, from NumPy arrays alone; every kind of task takes what it needs.

    counts of truth and answer    precision, recall, F1, IoU of each class; accuracy, balanced accuracy, macro means
    scores of one label           AUROC, average precision
    numbers                       MAE, RMSE, R2
    confidence, right or wrong    calibration, coverage against accuracy
    two tasks, the same samples   McNemar's test, the interval of their difference

Undefined numbers are NaN: the recall of a class without samples. Where scikit-learn has the same number it is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
BINS = 15
"""Of equal width, by which calibration is measured, as is usual."""
DRAWS = 1000
"""Resamples of a bootstrap."""


# -- from counts ---------------------------------------------------------------------------------


def confusion(
    truth: NDArray[np.int64], called: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return how often class i was called class j, int64 (classes, classes).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.bincount(truth * classes + called, minlength=classes * classes)
    return np.asarray(cells.reshape(classes, classes))


def by_class(counts: NDArray[np.int64]) -> dict[str, Floats]:
    """Return precision, recall, F1 and IoU of each class from counts (..., classes, classes), each (..., classes).

    NaN where a class occurs in neither truth nor answers; a class that is never called has precision 0.

    >>> by_class(np.array([[3, 1], [0, 4]]))["recall"].tolist()
    [0.75, 1.0]
    """
    right = counts.diagonal(axis1=-2, axis2=-1)
    return ratios(right, counts.sum(-1), counts.sum(-2))


def ratios(right: Any, true: Any, called: Any) -> dict[str, Floats]:
    """Return precision, recall, F1 and IoU from how many are right, are truly of a class, and are called it.

    >>> float(ratios(np.array(3), np.array(4), np.array(3))["recall"])
    0.75
    """
    right, true, called = (np.asarray(part, dtype=float) for part in (right, true, called))
    either = true + called

    def share(part: Floats, whole: Floats, empty: float = math.nan) -> Floats:
        out = np.full(part.shape, empty)
        np.divide(part, whole, out=out, where=whole > 0)
        return out

    return {
        "precision": np.where(either > 0, share(right, called, 0.0), math.nan),
        "recall": share(right, true),
        "f1": share(2 * right, either),
        "iou": share(right, either - right),
    }


def overall(counts: NDArray[np.int64]) -> dict[str, Floats]:
    """Return accuracy, balanced accuracy (the mean recall) and the mean F1 and IoU of counts (..., k, k), each (...).

    >>> {name: round(float(value), 3) for name, value in overall(np.array([[3, 1], [0, 4]])).items()}
    {'accuracy': 0.875, 'balanced_accuracy': 0.875, 'macro_f1': 0.873, 'mean_iou': 0.775}
    """
    found = by_class(counts)
    right = counts.diagonal(axis1=-2, axis2=-1).sum(-1)
    return {
        "accuracy": np.asarray(right / np.maximum(counts.sum((-2, -1)), 1)),
        "balanced_accuracy": _mean(found["recall"]),
        "macro_f1": _mean(found["f1"]),
        "mean_iou": _mean(found["iou"]),
    }


def _mean(values: Floats) -> Floats:
    """The mean over the last axis of the numbers that are defined."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1))


def bootstrap_counts(counts: NDArray[np.int64], seed: int = 0) -> dict[str, Interval]:
    """Return the 95 % interval of each number of ``overall`` over resamples of the samples.

    To resample n samples and to count them is one draw from a multinomial distribution over the cells.

    >>> low, high = bootstrap_counts(np.array([[30, 10], [0, 40]]))["accuracy"]
    >>> 0.75 < low < 0.875 < high < 0.96
    True
    """
    generator, n = np.random.default_rng(seed), int(counts.sum())
    rows, columns = np.nonzero(counts)
    parts: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        drawn = np.zeros_like(counts)
        drawn[rows, columns] = generator.multinomial(n, counts[rows, columns] / n)
        for name, value in overall(drawn).items():
            parts.setdefault(name, []).append(float(value))
    return {name: _interval(np.array(values)) for name, values in parts.items()}


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Mapping[str, float]],
    n: int,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Interval]:
    """Return the 95 % interval of each number that ``statistic`` gives for indices of samples, n drawn with repetition.

    >>> values = np.arange(100.0)
    >>> low, high = bootstrap(lambda rows: {"mean": values[rows].mean()}, 100)["mean"]
    >>> 40 < low < 49.5 < high < 60
    True
    """
    generator = np.random.default_rng(seed)
    found = [statistic(generator.integers(0, n, n)) for _ in range(draws)]
    return {name: _interval(np.array([one[name] for one in found])) for name in found[0]}


def _interval(values: Floats) -> Interval:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


# -- from scores of one label ----------------------------------------------------------------------


def auroc(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: how often a sample with the label scores higher than one without.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    yes, no = int(truth.sum()), int((~truth).sum())
    if not yes or not no:
        return math.nan
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * no))


def average_precision(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Return the mean precision over the samples that have the label, by falling score; NaN without any.

    >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 4)
    0.8333
    """
    if not truth.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(truth[order])
    last = np.append(
        np.diff(scores[order]) != 0, True
    )  # samples of one score are told apart by nothing
    right, seen = right[last], (np.arange(len(scores)) + 1)[last]
    return float((np.diff(right, prepend=0) * right / seen).sum() / right[-1])


# -- from numbers ----------------------------------------------------------------------------------


def errors(found: Floats, truth: Floats) -> dict[str, float]:
    """Return MAE, RMSE and R2 of numbers (n,), in their units; R2 is NaN where the truth is one number.

    >>> errors(np.array([2.0, 4.0]), np.array([1.0, 5.0]))
    {'mae': 1.0, 'rmse': 1.0, 'r2': 0.75}
    """
    off = found - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    return {
        "mae": float(np.abs(off).mean()),
        "rmse": math.sqrt(float((off**2).mean())),
        "r2": 1 - float((off**2).sum()) / spread if spread else math.nan,
    }


# -- from confidence -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """How often answers of a confidence are right."""

    ece: float
    """Expected calibration error: the mean distance of confidence and accuracy over the bins, by their samples."""
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    """Mean of each bin; NaN for an empty one, as in ``accuracy``."""
    accuracy: tuple[float, ...]


def calibration(confidence: Floats, right: NDArray[np.bool_], bins: int = BINS) -> Calibration:
    """Return how often answers are right by their confidence (n,), in bins of equal width over 0 to 1.

    >>> calibration(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False])).ece
    0.15
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(place, confidence, bins) / counts
        hits = np.bincount(place, right.astype(float), bins) / counts
    ece = float(np.nansum(counts * np.abs(sure - hits)) / max(counts.sum(), 1))
    return Calibration(
        round(ece, 12), tuple(counts.tolist()), tuple(sure.tolist()), tuple(hits.tolist())
    )


def coverage(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Return thresholds, and the share of answers from each upwards and how many of these are right, coverage rising.

    >>> coverage(np.array([0.9, 0.6, 0.9, 0.8]), np.array([True, False, True, False]))[1:]
    (array([0.5 , 0.75, 1.  ]), array([1.        , 0.66666667, 0.5       ]))
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    last = np.append(np.diff(sure) != 0, True)  # one threshold cannot part equal ones
    seen = (np.arange(len(sure)) + 1)[last]
    return sure[last], seen / max(len(sure), 1), hits[last] / seen


# -- two tasks on the same samples -----------------------------------------------------------------


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return how many samples only ``one`` has right, how many only ``other``, and the exact two-sided p.

    >>> mcnemar(np.array([True] * 9 + [False]), np.array([False] * 9 + [True]))
    (9, 1, 0.021484375)
    """
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    n, fewer = first + second, min(first, second)
    term = total = 1
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        total += term
    return first, second, min(1.0, (2 * total) / (1 << n))
