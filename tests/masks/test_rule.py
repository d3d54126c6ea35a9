"""The threshold, where scores start, and how fast they move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from piggyback.errors import InputError
from piggyback.masks.optimizer import MaskOptimizer, warmup_cosine
from piggyback.masks.rule import (
    NEVER,
    MaskRule,
    ScoreInit,
    Z,
    check_learnable,
    initial_scores,
    lr_factor,
    mask_lr,
    mask_of,
    masked_weight,
)

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "quaternary"}, "expected 'binary' or 'ternary'"),
        ({"kind": "ternary", "threshold": -0.1}, "expected >= 0"),
        ({"threshold": math.nan}, "expected a finite number"),
        ({"threshold": math.inf}, "expected a finite number"),
        ({"form": "rows"}, "form 'rows': expected one of plain, channel, affine"),
        ({"kind": "ternary", "form": "affine"}, "expected a binary one"),
    ],
)
def test_rules_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MaskRule(**options)


def test_no_form_is_learned():
    check_learnable(MaskRule("ternary"))
    with pytest.raises(InputError, match="form 'channel'"):
        MaskOptimizer([torch.nn.Parameter(torch.ones(2))], rule=MaskRule(form="channel"))


def test_a_binary_threshold_may_be_negative():
    assert mask_of(torch.tensor([-0.5, 0.0]), MaskRule(threshold=-0.1)).tolist() == [False, True]


def test_schedules_start_peak_and_end_where_they_say() -> None:
    cosine = [lr_factor("cosine", step, 100, 0.1) for step in range(100)]
    assert cosine[0] == pytest.approx(0.04)
    assert cosine[10] == 1.0 == max(cosine)
    assert cosine[:11] == sorted(cosine[:11])
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0 < cosine[-1] < 0.01
    assert lr_factor("cosine", 0, 1, 0.0) == 1.0
    assert lr_factor("cosine", 250, 100, 0.1) == 0.0  # a loop that runs on does not warm up again
    assert {lr_factor("step", step, 30, 0.1) for step in range(15)} == {1.0}
    assert {lr_factor("step", step, 30, 0.1) for step in range(15, 30)} == {0.1}
    assert lr_factor("constant", 99, 100, 0.1) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("steps", [100, 400])
def test_noise_masks_out_the_share_that_z_says(schedule: str, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.full((20_000,), 5e-3, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=mask_lr(steps, schedule, z=1.0))
    peak = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * lr_factor(schedule, step, steps, 0.3)
        scores.grad = torch.randn(scores.shape, generator=generator)
        optimizer.step()
    masked = (scores <= 0).float().mean().item()
    assert masked == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.012)


def test_the_rate_is_the_rule_of_the_formula_for_long_runs() -> None:
    for steps in (100, 1000, 20_000):
        assert mask_lr(steps, z=1.0) == pytest.approx(5e-3 / math.sqrt(3 * steps / 8), rel=0.01)
        assert mask_lr(steps) == pytest.approx(mask_lr(steps, z=1.0) / Z)
        assert mask_lr(steps, margin=1e-2) == pytest.approx(mask_lr(steps) * 2)
        assert mask_lr(steps, "constant", z=1.0) == pytest.approx(5e-3 / math.sqrt(steps))
        # A score whose gradient keeps its sign moves by the sum of the rates.
        way = sum(lr_factor("cosine", t, steps, 0.3) for t in range(steps))
        assert way * mask_lr(steps, reach=4.0) == pytest.approx(4 * 5e-3)


def test_numbers_that_make_a_rate_of_zero_or_infinity_are_refused() -> None:
    for name, value, margin in (("z", 1e308, 5e-3), ("reach", 1e-320, 5e-3), ("reach", 1e308, 5.0)):
        with pytest.raises(InputError, match=name):
            mask_lr(**{"steps": 100, "margin": margin, name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, -1, 2.5]),
        ("margin", [0.0, -1.0, math.nan, math.inf]),
        ("z", [0.0, -1.0, math.nan, math.inf]),
        ("warmup", [-0.1, 1.0, math.nan]),
        ("schedule", ["linear"]),
    ],
)
def test_what_makes_no_rate_is_refused(name, values) -> None:
    for value in values:
        with pytest.raises(InputError, match=name):
            mask_lr(**{"steps": 100, name: value})


def test_the_scheduler_gives_every_group_its_part_of_its_own_peak() -> None:
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    scheduler = warmup_cosine(optimizer, steps=20, warmup=0.25)
    for step in range(20):
        factor = lr_factor("cosine", step, 20, 0.25)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [factor, factor / 10]
        )
        optimizer.step()
        scheduler.step()
    with pytest.raises(InputError, match="steps"):
        warmup_cosine(optimizer, steps=0)


KINDS = ["magnitude", "constant", "uniform", "mean"]


def twin(weight: torch.Tensor, init: ScoreInit, threshold: float) -> np.ndarray:
    """The magnitude start weight by weight, in float64, as the docstring has it."""
    sizes = np.abs(weight.detach().double().numpy())
    rms = math.sqrt((sizes**2).sum() / sizes.size)
    raw = np.array([max(w / rms, init.floor) ** init.power for w in sizes.flat])
    margins = raw / raw.mean() * (init.value - threshold)
    kept = sizes.reshape(-1) < init.keep * rms
    return np.where(kept, NEVER, margins).reshape(sizes.shape) + threshold


def layers() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "depthwise": nn.Conv2d(8, 8, 3, groups=8).weight,
        "linear": nn.Linear(16, 5).weight,
        "embedding": nn.Embedding(11, 4).weight,
        "heavy tail": torch.randn(20, 20) ** 3,
        "bf16": torch.randn(6, 6).bfloat16(),
        "channels last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("name", list(layers()))
@pytest.mark.parametrize(
    "options",
    [{}, {"power": 2.0, "floor": 1.0}, {"floor": 0.1, "keep": 0.0}, {"keep": 0.1, "value": 2e-2}],
    ids=str,
)
def test_the_magnitude_start_is_its_readable_twin(name, options):
    weight, init, threshold = layers()[name], ScoreInit(**options), 3e-3
    scores = initial_scores(weight, init, threshold=threshold)
    expected = torch.from_numpy(twin(weight, init, threshold)).float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(3, 3), (0, 4)])
def test_a_layer_of_zeros_starts_at_one_margin(shape):
    scores = initial_scores(torch.zeros(shape), ScoreInit())
    assert scores.shape == shape
    torch.testing.assert_close(scores, torch.full(shape, 1e-2))


def test_weights_below_keep_are_never_masked_out_by_training():
    torch.manual_seed(0)
    net = nn.Linear(64, 64, bias=False)
    base = net.weight.detach().clone()
    optimizer = MaskOptimizer([{"params": [net.weight], "masked": True, "lr": 1e-3}])
    for _ in range(50):
        optimizer.zero_grad()
        net(torch.randn(8, 64)).square().sum().backward()  # 0 everywhere is best
        optimizer.step()
    small = base.abs() < 0.2 * base.square().mean().sqrt()
    assert 0.05 < small.float().mean() < 0.3
    assert torch.equal(net.weight[small], base[small])
    assert (net.weight[~small] == 0).float().mean() > 0.9


def test_constant_and_mean_start_a_layer_at_one_value():
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    assert initial_scores(weight, ScoreInit("constant")).unique().tolist() == [pytest.approx(1e-2)]
    assert initial_scores(weight, ScoreInit("mean")).unique().tolist() == [2.0]


def test_uniform_fills_its_interval_evenly():
    scores = initial_scores(torch.empty(100, 100), ScoreInit("uniform", value=0.02))
    assert -0.02 <= scores.min() < -0.0199
    assert 0.0199 < scores.max() <= 0.02
    assert scores.mean().abs() < 4e-4
    assert scores.abs().mean() == pytest.approx(0.01, rel=0.05)


def test_uniform_depends_on_seed_and_position_alone():
    weight = torch.randn(8, 8)
    torch.manual_seed(1)
    first = initial_scores(weight, ScoreInit("uniform"), position=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(initial_scores(weight * 2, ScoreInit("uniform"), position=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (
        initial_scores(weight, ScoreInit("uniform"), position=4),
        initial_scores(weight, ScoreInit("uniform", seed=1), position=3),
    ):
        assert not torch.equal(other, first)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_are_float32_leaves_in_the_weights_layout(kind, dtype):
    weight = nn.Parameter(
        torch.randn(4, 3, 2, 2, dtype=dtype).to(memory_format=torch.channels_last)
    )
    scores = initial_scores(weight, ScoreInit(kind))
    assert scores.dtype == torch.float32
    assert scores.stride() == weight.stride()
    assert not scores.requires_grad
    assert not isinstance(scores, nn.Parameter)
    plain = initial_scores(weight.detach().contiguous(), ScoreInit(kind))
    torch.testing.assert_close(scores, plain)


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "ones"), ("value", math.nan), ("power", -1.0), ("floor", math.inf), ("keep", -0.1)],
)
def test_a_start_that_is_none_is_refused(field, value):
    with pytest.raises(InputError, match=str(value)):
        ScoreInit(**{field: value})


def test_a_power_that_would_mask_weights_before_the_first_step_is_refused():
    with pytest.raises(InputError, match="power 12"):
        initial_scores(torch.randn(1000), ScoreInit(power=12.0))


def test_a_margin_of_nothing_is_refused_before_the_first_step():
    group = [{"params": [nn.Linear(2, 2).weight], "masked": True, "lr": 1e-3}]
    with pytest.raises(InputError, match=r"value 0\.01 with threshold 0\.01"):
        MaskOptimizer(group, rule=MaskRule(threshold=1e-2))
