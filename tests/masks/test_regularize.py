"""Each regularizer is the gradient of the penalty that its docstring names, the threshold taken as straight-through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from masks.test_optimizer import StraightThrough
from piggyback.errors import InputError
from piggyback.masks.regularize import EntropyPrice, PullToKeep, TargetDensity
from piggyback.masks.rule import MaskRule

SCORES = torch.tensor([-0.02, -0.001, 0.0, 0.004, 0.006, 0.02, 0.03])


def density_of(scores: Tensor, rule: MaskRule) -> Tensor:
    """The mean of |m|; where m is 0, |m| grows with s upwards, and downwards below 0."""
    mask = StraightThrough.apply(scores, rule)
    return (mask * torch.where(scores < 0, -1.0, 1.0) if rule.kind == "ternary" else mask).mean()


def pull(scores, rule):
    return 0.1 * (0.01 - scores).clamp_min(0).sum()


def target(scores, rule):
    return 0.3 * scores.numel() * (density_of(scores, rule) - 0.7) ** 2


def price(scores, rule):
    d = density_of(scores, rule)
    entropy = -(d * d.log2() + (1 - d) * (1 - d).log2())
    return 0.2 * scores.numel() * entropy


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize(
    ("regularizer", "penalty"),
    [
        (PullToKeep(0.1), pull),
        (TargetDensity(0.7, strength=0.3), target),
        (EntropyPrice(0.2), price),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_gradient_is_the_penaltys(regularizer, penalty, kind):
    rule = MaskRule(kind)
    scores = SCORES.clone().requires_grad_()
    penalty(scores, rule).backward()
    grad = torch.ones_like(SCORES)
    regularizer.add_(grad, SCORES, rule)
    torch.testing.assert_close(grad, 1 + scores.grad)


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_the_price_of_a_mask_of_one_value_stays_finite(kept):
    grad = torch.zeros(8)
    EntropyPrice(1.0).add_(grad, torch.full((8,), kept), MaskRule())
    expected = math.log2(15) * (1 if kept == 0.0 else -1)
    torch.testing.assert_close(grad, torch.full((8,), expected))


@pytest.mark.parametrize(
    "regularizer", [PullToKeep(1.0), TargetDensity(0.5, 1.0), EntropyPrice(1.0)]
)
def test_a_weight_tensor_without_weights_is_left_alone(regularizer):
    grad = torch.zeros(0)
    regularizer.add_(grad, torch.zeros(0), MaskRule())
    assert grad.shape == (0,)


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_a_density_outside_of_0_to_1_is_refused(density):
    with pytest.raises(InputError, match="expected 0 to 1"):
        TargetDensity(density, strength=1.0)
