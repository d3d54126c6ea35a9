"""How fast scores move: the learning rate of a run, and how it rises and falls over its steps.

Adam moves a score by about the rate a step while its gradient keeps its sign, and by a random walk where the gradient
is noise. After T steps at rates lr f_t noise alone has spread scores by N = lr sqrt(sum f_t^2), which is
lr sqrt(3 T / 8) for a warm-up and a cosine. Scores start at a margin above the threshold, so noise masks out the share
Phi(-z) of the weights, z = margin / N. Signal grows with lr T, noise with lr sqrt(T): a short run needs a higher rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from piggyback.errors import InputError

if TYPE_CHECKING:
    import torch

Schedule = Literal["cosine", "step", "constant"]
MARGIN = 5e-3
"""The paper's: scores from 1e-2, threshold 5e-3."""
Z = 0.7
"""The margin in standard deviations of what noise does to a score, where nothing is known of the task: see
docs/RECIPES.md."""
HEAD_LR = 2e-3
"""Peak rate of the classifier, and of normalisation where a task trains it."""


def mask_lr(
    steps: int,
    schedule: Schedule = "cosine",
    warmup: float = 0.3,
    *,
    margin: float = MARGIN,
    z: float = Z,
) -> float:
    """Return the peak learning rate of the scores for a run of ``steps`` steps of Adam.

    ``margin``: where scores start above the threshold, in the mean. ``z``: that margin in standard deviations of
    what noise does to a score in the whole run; a smaller one moves more weights. Use the same ``schedule`` and
    ``warmup`` as in ``warmup_cosine`` or ``lr_factor``; "constant" is for a loop without a scheduler.

    Raises InputError for steps below 1, a warmup outside 0 to 1, and for a margin or z that is not finite and above 0.

    >>> [round(mask_lr(steps), 6) for steps in (240, 1000, 5000)]
    [0.00075, 0.000367, 0.000164]
    >>> round(mask_lr(240, "constant"), 6)
    0.000461
    """
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps {steps!r}: expected a whole number from 1")
    if not 0 <= warmup < 1:
        raise InputError(f"warmup {warmup!r}: expected from 0 to below 1")
    for name, value in (("margin", margin), ("z", z)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} {value!r}: expected a finite number above 0")
    squares = math.fsum(lr_factor(schedule, t, steps, warmup) ** 2 for t in range(steps))
    return margin / (z * math.sqrt(squares))


def z_for(skill: float, steps: int) -> float:
    """Return the z for a task whose classes the frozen features tell apart by ``skill``, from 0 to 1.

    ``feature_skill`` measures it. Where it is low, a run of few steps learns more with more movement, and longer ones
    learn enough with less; where it is high, movement only harms.

    >>> [round(z_for(skill, 480), 2) for skill in (0.1, 0.55, 0.66, 1.0)]
    [0.5, 0.7, 0.81, 1.0]
    >>> [round(z_for(0.3, steps), 2) for steps in (480, 650, 5000)]
    [0.5, 0.6, 0.7]
    """
    least = 0.5 + 0.2 * min(max((steps - 500) / 300, 0.0), 1.0)
    return min(max(0.15 + skill, least), 1.0)


def lr_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the fraction of the peak learning rate at ``step`` (from 0) of ``steps``.

    cosine: from 1/25 up to 1 over the first ``warmup`` of the steps, then down to 0, both along a
    half cosine. step: 1, and a tenth from half-way on (the paper: after epoch 15 of 30). constant:
    1. A pure function of the step, so that a resumed run needs no scheduler state.

    >>> [round(lr_factor("cosine", step, 10, warmup=0.2), 2) for step in (0, 2, 6, 9)]
    [0.04, 1.0, 0.5, 0.04]
    >>> [lr_factor("step", step, 30, warmup=0.0) for step in (14, 15)]
    [1.0, 0.1]
    """
    if schedule not in get_args(Schedule):
        raise InputError(f"schedule {schedule!r}: expected one of {', '.join(get_args(Schedule))}")
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if step < steps / 2 else 0.1
    rising = warmup * steps
    if step < rising:
        low = 1 / 25
        return low + (1 - low) * _half_cosine(step / rising)
    return 1 - _half_cosine(min((step - rising) / max(steps - rising, 1), 1.0))


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.3
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a scheduler that warms all of an optimizer's rates up and brings them to 0 over ``steps`` steps.

    Call its ``step()`` after each of the optimizer's.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> warmup_cosine(optimizer, steps=10).get_last_lr()
    [0.04]
    """
    from torch.optim.lr_scheduler import LambdaLR

    if steps < 1:
        raise InputError(f"steps {steps!r}: expected a whole number from 1")
    return LambdaLR(optimizer, lambda step: lr_factor("cosine", step, steps, warmup))


def _half_cosine(x: float) -> float:
    """From 0 at x = 0 to 1 at x = 1, flat at both ends."""
    return (1 - math.cos(math.pi * x)) / 2
