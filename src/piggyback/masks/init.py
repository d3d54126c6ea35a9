"""Where scores start: the margin above the threshold that a weight's gradient has to use up before it is dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from piggyback.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

InitKind = Literal["magnitude", "constant", "uniform", "mean"]
GradScale = Literal["none", "mean", "weight"]
"""What a score's gradient is divided by: nothing, the layer's mean |W|, or each |W|."""
NEVER = 1.0
"""Margin of weights that are always kept: no rate that learns anything carries a score so far."""


@dataclass(frozen=True)
class ScoreInit:
    """How a weight's scores start.

    ``magnitude``: at tau + margin_i, with margin_i proportional to max(|W_i| / rms, ``floor``) ** ``power`` and
    ``value`` - tau in the mean of the layer, whose root mean square is rms. To mask a weight out costs about
    W^2 H / 2, so large weights have to show more evidence than small ones before they go. Weights below ``keep``
    times rms carry next to nothing, masked or not, and cost bits: they are always kept.
    ``constant``: at ``value``, as the paper has it. ``uniform``: in [-``value``, ``value``]. ``mean``: at the
    layer's mean |W|.

    >>> ScoreInit("uniform", seed=3).seed
    3
    """

    kind: InitKind = "magnitude"
    value: float = 1e-2
    """The paper's value for ``constant``, the layer's mean for ``magnitude``, half the width for ``uniform``; unused
    for ``mean``."""
    seed: int = 0
    """For ``uniform``; the numbers depend on it and the weight's position only, so all processes draw the same."""
    power: float = 1.0
    """For ``magnitude``: how fast the margin grows with |W|."""
    floor: float = 0.5
    """For ``magnitude``: weights below this part of rms have the margin of those at it."""
    keep: float = 0.2
    """For ``magnitude``: weights below this part of rms are always kept; 0 leaves all to the gradient."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(InitKind):
            kinds = ", ".join(map(repr, get_args(InitKind)))
            raise InputError(f"score init {self.kind!r}: expected one of {kinds}")
        for name in ("value", "power", "floor", "keep"):
            number = getattr(self, name)
            if not math.isfinite(number) or (name != "value" and number < 0):
                raise InputError(f"score init: {name} {number}: expected a finite number from 0")

    def margin(self, threshold: float) -> float:
        """Return how far above ``threshold`` scores start in the mean; InputError unless that is above 0.

        >>> round(ScoreInit().margin(5e-3), 6)
        0.005
        """
        if not 0 < self.value - threshold < math.inf:
            raise InputError(
                f"score init {self.kind!r}: value {self.value} with threshold {threshold}: expected a value above "
                "the threshold, so that weights are kept until their gradients speak against it"
            )
        return self.value - threshold


def initial_scores(
    weight: Tensor, init: ScoreInit, position: int = 0, threshold: float = 5e-3
) -> Tensor:
    """Return float32 scores of ``weight``'s shape, device and layout; ``position`` tells equal-shaped weights apart.

    ``threshold`` is the mask rule's tau. A layer of zeros starts at the same margin for all.

    >>> import torch
    >>> initial_scores(torch.tensor([1.0, -3.0]), ScoreInit("mean"))
    tensor([2., 2.])
    >>> initial_scores(torch.tensor([1.0, -3.0]), ScoreInit())
    tensor([0.0077, 0.0123])
    """
    import torch  # not above: a recipe and its help page need ScoreInit alone

    scores = torch.empty_like(weight, dtype=torch.float32, requires_grad=False)
    if init.kind == "constant":
        return scores.fill_(init.value)
    size = weight.detach().float().abs()
    if init.kind == "mean":
        return scores.fill_(size.mean())
    if init.kind == "magnitude":
        return scores.copy_(_margins(size, init, init.margin(threshold)).add_(threshold))
    generator = torch.Generator().manual_seed(init.seed * 1_000_003 + position)
    drawn = torch.rand(weight.shape, generator=generator).mul_(2 * init.value).sub_(init.value)
    if hasattr(scores, "placements"):  # FSDP's: each process keeps its part of the same numbers
        from torch.distributed.tensor import distribute_tensor

        like = cast(Any, scores)
        drawn = distribute_tensor(drawn.to(like.device), like.device_mesh, like.placements)
    return scores.copy_(drawn)


def _margins(size: Tensor, init: ScoreInit, margin: float) -> Tensor:
    """The margins of weights of these sizes |W|: ``margin`` in the mean, ``NEVER`` below ``keep`` times rms."""
    rms = math.sqrt(_number(size.square().mean()))
    if rms == 0:  # a layer of zeros has no weight that matters more than another
        return size.clone().fill_(margin)
    relative = size / rms
    made = relative.clamp_min(init.floor).pow_(init.power)
    made = made * (margin / _number(made.mean()))
    return made.masked_fill_(relative < init.keep, NEVER)


def _number(one: Tensor) -> float:
    """A tensor of one element as a number; of a sharded weight's, over all its shards."""
    return float(cast(Any, one).full_tensor() if hasattr(one, "full_tensor") else one)
