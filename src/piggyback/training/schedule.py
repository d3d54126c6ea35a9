"""Learning rates as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def lr_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the fraction of the peak learning rate at ``step`` (from 0) of ``steps``.

    cosine: from 1/25 up to 1 over the first ``warmup`` of the steps, then down to 0, both along a
    half cosine. step: 1, and a tenth from half-way on (the paper: after epoch 15 of 30). constant:
    1.

    >>> [round(lr_factor("cosine", step, 10, warmup=0.2), 2) for step in (0, 2, 6, 9)]
    [0.04, 1.0, 0.5, 0.04]
    >>> [lr_factor("step", step, 30, warmup=0.0) for step in (14, 15)]
    [1.0, 0.1]
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if step < steps / 2 else 0.1
    rising = warmup * steps
    if step < rising:
        low = 1 / 25
        return low + (1 - low) * _half_cosine(step / rising)
    return 1 - _half_cosine((step - rising) / max(steps - rising, 1))


def _half_cosine(x: float) -> float:
    """From 0 at x = 0 to 1 at x = 1, flat at both ends."""
    return (1 - math.cos(math.pi * x)) / 2
