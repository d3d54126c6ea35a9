"""Mask forms of task files: the live weights are those of the formula, and none is learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from piggyback.errors import InputError
from piggyback.masks.bits import pack
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import MaskRule, coefficient_shape, mask_of
from piggyback.masks.switch import LiveWeights, formed_weight
from support.nets import Convolutions, assert_same_state, seeded, state_of

RULES = [MaskRule(form="channel"), MaskRule("ternary", form="channel"), MaskRule(form="affine")]
MASKED = [
    "stem.0.weight",
    "body.grouped.weight",
    "body.depthwise.weight",
    "body.up.weight",
    "neck.weight",
]


def formula(base, m, k, rule):
    """W' as the papers write it."""
    m = m.to(base.dtype)
    if rule.form == "channel":
        return torch.einsum("o,o...->o...", k, base * m)
    return k[0] * base + k[1] + k[2] * m + k[3] * (base * m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_computed_in_float32_or_wider_and_rounded_once(dtype):
    base, mask = torch.randn(5, 7, dtype=dtype), torch.rand(5, 7) < 0.5
    k = torch.randn(4)
    made = formed_weight(base, mask, k, "affine")
    wide = torch.promote_types(dtype, torch.float32)
    w, m, k = base.to(wide), mask.to(wide), k.to(wide)
    assert made.dtype == dtype
    assert torch.equal(made, (((w * k[0] + k[1]) + m * k[2]) + (w * m) * k[3]).to(dtype))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.form}-{r.kind}")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_live_weights_are_those_of_the_formula(rule, layout):
    """Grouped, depthwise, transposed convolutions and a linear layer among the weights."""
    net = seeded(Convolutions).to(memory_format=layout)
    base = state_of(net)
    live = LiveWeights(net.requires_grad_(False), MASKED)
    masks = {n: mask_of(torch.randint(-1, 2, base[n].shape), rule) for n in MASKED}
    numbers = {n: torch.randn(coefficient_shape(rule.form, tuple(base[n].shape))) for n in MASKED}
    live.write_(live.to_memory_order({n: pack(m) for n, m in masks.items()}), numbers, rule.form)
    for name in MASKED:
        wanted = formula(base[name], masks[name], numbers[name], rule)
        torch.testing.assert_close(net.get_parameter(name).detach(), wanted)
    live.write_({})
    assert_same_state(net, base)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskRule(form="rows"), "form 'rows': expected one of plain, channel, affine"),
        (
            lambda: MaskRule("ternary", form="affine"),
            "'affine' with a ternary rule: expected a bin",
        ),
        (
            lambda: MaskOptimizer([nn.Parameter(torch.ones(2))], rule=RULES[0]),
            "form 'channel': expected 'plain'; forms can be read from task files, not learned",
        ),
    ],
)
def test_what_cannot_be_or_be_learned_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
