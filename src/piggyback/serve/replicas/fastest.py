"""Which of several builds of one network is fastest on this machine: measured, in a few seconds at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

BATCHES = (1, 8)
"""Images in a batch that are tried; each counts the same."""
ROUNDS = 7
BUDGET = 2.5
"""Seconds for all of it; a network too slow for them is measured on single images, fewer times."""


@dataclass(frozen=True)
class Build:
    """A network made ready in one way."""

    module: nn.Module
    dtype: torch.dtype
    pointwise: int = 0
    """1x1 convolutions that run as matrix products."""
    handicap: float = 1.0
    """Its time counts for so many times what it is: what speaks against it besides time."""


def fastest(builds: Sequence[Build], inputs: Callable[[int], Tensor]) -> Build:
    """Return the fastest of ``builds``, handicaps included; ``inputs(n)`` gives a batch of n in float32.

    >>> net = nn.Linear(4, 4)
    >>> fastest([Build(net, torch.float32), Build(net, torch.float32, handicap=1e9)], lambda n: torch.ones(n, 4))
    Build(module=Linear(in_features=4, out_features=4, bias=True), dtype=torch.float32, pointwise=0, handicap=1.0)
    """
    if len(builds) == 1:
        return builds[0]
    scores = [build.handicap for build in builds]
    end, single = time.perf_counter() + BUDGET, 0.0
    for batch in BATCHES:
        left = end - time.perf_counter()
        if batch > 1 and 2 * batch * single > left:
            break
        x = inputs(batch)
        times = _race(builds, x, time.perf_counter() + left / 2)
        single = single or sum(times)
        scores = [score * taken for score, taken in zip(scores, times, strict=True)]
    return min(zip(builds, scores, strict=True), key=lambda scored: scored[1])[0]


@torch.inference_mode()
def _race(builds: Sequence[Build], x: Tensor, end: float) -> list[float]:
    """Seconds that each build takes: the best of some rounds, in which they take turns; of one where time is short."""
    best = [inf] * len(builds)
    for turn in range(ROUNDS + 1):
        for index, build in enumerate(builds):
            start = time.perf_counter()
            build.module(x.to(build.dtype))
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            taken = time.perf_counter() - start
            # The first run sets up kernels and memory.
            best[index] = taken if turn == 1 else min(best[index], taken)
        if turn and time.perf_counter() > end:
            break
    return best
