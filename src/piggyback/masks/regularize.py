"""Terms added to the scores' gradient: each is the gradient of a penalty, with the threshold straight-through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from piggyback.errors import check_number
from piggyback.masks.rule import MaskRule, mask_of

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Regularizer(Protocol):
    """Anything that adds to the gradient of a weight's scores."""

    def add_(self, grad: Tensor, scores: Tensor, rule: MaskRule) -> None:
        """Add the penalty's gradient with respect to ``scores`` to ``grad``, in place."""


@dataclass(frozen=True)
class PullToKeep:
    """Penalty strength * sum(max(0, level - s)): a steady pull of every score below ``level`` towards keeping.

    >>> import torch
    >>> grad = torch.zeros(2)
    >>> PullToKeep(strength=0.1, level=0.01).add_(grad, torch.tensor([0.0, 0.02]), MaskRule())
    >>> grad
    tensor([-0.1000,  0.0000])
    """

    strength: float
    level: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("strength", "level"):
            check_number(name, getattr(self, name), math.isfinite, "a finite number")

    def add_(self, grad: Tensor, scores: Tensor, rule: MaskRule) -> None:
        """Add -strength where s < level."""
        grad.sub_((scores < self.level).to(grad.dtype), alpha=self.strength)


@dataclass(frozen=True)
class TargetDensity:
    """Penalty strength * n * (d - density)^2 per weight tensor of n weights, where d is the fraction kept.

    >>> import torch
    >>> grad = torch.zeros(2)
    >>> TargetDensity(0.5, strength=1.0).add_(grad, torch.tensor([1.0, 1.0]), MaskRule())
    >>> grad
    tensor([1., 1.])
    """

    density: float
    strength: float

    def __post_init__(self) -> None:
        good = "0 to 1, the fraction to keep"
        check_number("density", self.density, lambda share: 0 <= share <= 1, good)
        check_number("strength", self.strength, math.isfinite, "a finite number")

    def add_(self, grad: Tensor, scores: Tensor, rule: MaskRule) -> None:
        """Add 2 * strength * (d - density), scaled by m's sign for a ternary mask."""
        density = (mask_of(scores, rule) != 0).float().mean()
        _push(grad, 2 * self.strength * (density - self.density), scores, rule)


@dataclass(frozen=True)
class EntropyPrice:
    """Penalty price * n * H(d): the bits that an entropy coder will spend on the weight tensor's mask.

    >>> import torch
    >>> grad = torch.zeros(4)
    >>> EntropyPrice(1.0).add_(grad, torch.tensor([1.0, 1.0, 1.0, 0.0]), MaskRule())
    >>> grad[0].item()  # log2((1 - d) / d) at d = 3/4: keeping one more saves bits
    -1.5849...
    """

    price: float
    """Loss per bit."""

    def __post_init__(self) -> None:
        check_number("price", self.price, math.isfinite, "a finite number")

    def add_(self, grad: Tensor, scores: Tensor, rule: MaskRule) -> None:
        """Add price * log2((1 - d) / d), with d held away from 0 and 1 by half a weight."""
        margin = 0.5 / max(scores.numel(), 1)
        density = (mask_of(scores, rule) != 0).float().mean().clamp(margin, 1 - margin)
        _push(grad, self.price * ((1 - density) / density).log() / math.log(2), scores, rule)


def _push(grad: Tensor, push: Tensor, scores: Tensor, rule: MaskRule) -> None:
    """Add a gradient of |m|: where a ternary score is below 0, |m| grows as the score falls."""
    grad.add_(push if rule.kind == "binary" else push * (1 - 2 * (scores < 0).float()))
