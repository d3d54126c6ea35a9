"""Confidence that means something: a temperature, and the confidence from which answers are given, both found on val.

logits / T -> softmax -> probabilities that are as often right as they say      (Guo et al. 2017)
1 - entropy / log(classes) < least -> abstained
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piggyback.errors import InputError

if TYPE_CHECKING:  # a recipe, whose target is checked here, needs no torch
    from torch import Tensor

FEWEST = 50
"""Samples below which nothing is fitted: a temperature from fewer can be off by more than it mends."""
COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature."""


@dataclass(frozen=True)
class AbstainAt:
    """What the threshold is to reach on val: an accuracy of the answers given, or a share of answers that are given.

    >>> AbstainAt.of("accuracy=0.98")
    AbstainAt(what='accuracy', value=0.98)
    """

    what: str
    value: float

    def __str__(self) -> str:
        return f"{self.what}={self.value:g}"

    @staticmethod
    def of(text: str) -> AbstainAt:
        """Return what ``text`` says; InputError unless it is accuracy=NUMBER or coverage=NUMBER."""
        what, _, number = str(text).partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if what.strip() not in ("accuracy", "coverage") or not 0 < value < 1:
            raise InputError(
                f"abstain_at {text!r}: expected accuracy=NUMBER or coverage=NUMBER, such as accuracy=0.98"
            )
        return AbstainAt(what.strip(), value)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that makes ``logits`` (n, classes) say how likely ``labels``, int64 (n,), are.

    It minimises the mean cross-entropy, with one label more that could be any class: where all answers are right, no
    finite temperature would be the best. That is convex in 1 / T, so its slope is searched for zero.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])  # 98 % sure, right in three of four
    >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 1)
    4.7
    """
    z, n = logits.double(), len(labels)
    own = z.gather(1, labels[:, None])[:, 0]
    wanted = (own.sum() + z.mean()) / (n + 1)

    def slope(inverse: float) -> float:
        expected = ((z * inverse).softmax(1) * z).sum(1)
        return float((expected.sum() + expected.mean()) / (n + 1) - wanted)

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return round(1 / math.sqrt(low * high), 4)


def threshold_for(confidence: Tensor, right: Tensor, at: AbstainAt) -> float | None:
    """Return the lowest confidence from which answers reach the target; None where no threshold does.

    ``confidence`` (n,) and whether the answer is ``right``, bool (n,). For an accuracy, one mistake more than were seen
    has to fit as well, so few samples promise little: 98 % needs 49 right answers. The accuracy on other images is
    about the target, as often a little below as above; ask for more than is needed.

    >>> import torch
    >>> sure = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    >>> threshold_for(sure, torch.tensor([True, True, True, False, True]), AbstainAt("accuracy", 0.7))
    0.699999
    """
    order = confidence.argsort(descending=True, stable=True)
    sure, wrong = confidence[order], (~right[order]).cumsum(0)
    given = right.long().new_ones(len(order)).cumsum(0)
    if at.what == "coverage":
        good = given >= at.value * len(order)
        return _below(sure[good][0])
    last = right.new_ones(len(order))
    last[:-1] = sure.diff() != 0  # one threshold cannot part equal ones
    good = last & ((wrong + 1) / (given + 1) <= 1 - at.value + 1e-9)
    return _below(sure[good][-1]) if bool(good.any()) else None


def _below(value: Tensor) -> float:
    """A short number that is not above ``value``."""
    return math.floor(float(value) * 1e6) / 1e6
