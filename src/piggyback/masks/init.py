"""Where scores start (the paper's section 4 and the authors' options)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from piggyback.errors import InputError


@dataclass(frozen=True)
class ScoreInit:
    """How a weight's scores start: ``constant`` at ``value``, ``uniform`` in [-value, value], or at the layer's
    ``mean`` |W|.

    >>> ScoreInit("uniform", value=1e-2, seed=3)
    ScoreInit(kind='uniform', value=0.01, seed=3)
    """

    kind: Literal["constant", "uniform", "mean"] = "constant"
    value: float = 1e-2
    """The paper's value for ``constant``; half the width for ``uniform``; unused for ``mean``."""
    seed: int = 0
    """For ``uniform``; the numbers depend on it and the weight's position only, so all processes draw the same."""

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "uniform", "mean"):
            raise InputError(f"score init {self.kind!r}: expected 'constant', 'uniform' or 'mean'")


def initial_scores(weight: Tensor, init: ScoreInit, position: int = 0) -> Tensor:
    """Return float32 scores of ``weight``'s shape, device and layout; ``position`` tells equal-shaped weights apart.

    >>> initial_scores(torch.tensor([1.0, -3.0]), ScoreInit("mean"))
    tensor([2., 2.])
    """
    scores = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
    if init.kind == "constant":
        return scores.fill_(init.value)
    if init.kind == "mean":
        return scores.fill_(weight.detach().float().abs().mean())
    generator = torch.Generator().manual_seed(init.seed * 1_000_003 + position)
    drawn = torch.rand(weight.shape, generator=generator).mul_(2 * init.value).sub_(init.value)
    if hasattr(scores, "placements"):  # FSDP's: each process keeps its part of the same numbers
        from torch.distributed.tensor import distribute_tensor

        like = cast(Any, scores)
        drawn = distribute_tensor(drawn.to(like.device), like.device_mesh, like.placements)
    return scores.copy_(drawn)
