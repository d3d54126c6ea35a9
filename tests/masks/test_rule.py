"""The threshold, and W * m."""

from __future__ import annotations

import math

import pytest
import torch

from piggyback.errors import InputError
from piggyback.masks.optimizer import keep_above_
from piggyback.masks.rule import MaskRule, mask_of, masked_weight

TAU = torch.tensor(5e-3)
"""The threshold as float32 scores are compared with it."""


def test_a_score_at_the_threshold_is_masked_out_and_the_next_float_is_kept():
    above = torch.nextafter(TAU, torch.tensor(1.0))
    below = torch.nextafter(TAU, torch.tensor(-1.0))
    assert mask_of(torch.stack([below, TAU, above]), MaskRule(threshold=TAU.item())).tolist() == [
        False,
        False,
        True,
    ]


def test_a_ternary_rule_negates_below_zero_only():
    scores = torch.tensor([-1.0, -1e-30, -0.0, 0.0, 4e-3, 6e-3])
    mask = mask_of(scores, MaskRule("ternary"))
    assert mask.dtype == torch.int8
    assert mask.tolist() == [-1, -1, 0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_a_score_that_is_not_a_number_masks_out(kind):
    assert not mask_of(torch.tensor([math.nan]), MaskRule(kind)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_masked_weights_have_exact_zeros_whatever_the_weight(dtype):
    base = torch.tensor([-2.0, math.inf, math.nan, -0.0, 3.0], dtype=dtype)
    gone = masked_weight(base, torch.zeros(5, dtype=torch.bool))
    assert gone.dtype == dtype
    assert not gone.signbit().any()
    assert (gone == 0).all()
    kept = masked_weight(base, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(kept, base, rtol=0, atol=0, equal_nan=True)
    assert kept.signbit()[3]
    turned = masked_weight(base, torch.tensor([-1, -1, 0, -1, 1], dtype=torch.int8))
    assert turned.tolist() == [2.0, -math.inf, 0.0, 0.0, 3.0]


def test_keep_above_is_the_rule_in_one_pass():
    scores = torch.randn(3, 50)
    base = torch.randn(3, 50)
    out = torch.full_like(base, 7.0)
    keep_above_(out, base, scores, 0.1)
    assert torch.equal(out, masked_weight(base, mask_of(scores, MaskRule(threshold=0.1))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "quaternary"}, "expected 'binary' or 'ternary'"),
        ({"kind": "ternary", "threshold": -0.1}, "expected >= 0"),
        ({"threshold": math.nan}, "expected a finite number"),
        ({"threshold": math.inf}, "expected a finite number"),
    ],
)
def test_rules_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MaskRule(**options)


def test_a_binary_threshold_may_be_negative():
    assert mask_of(torch.tensor([-0.5, 0.0]), MaskRule(threshold=-0.1)).tolist() == [False, True]
