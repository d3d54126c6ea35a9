"""Where scores start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from piggyback.errors import InputError
from piggyback.masks.optimizer import NEVER, MaskOptimizer, initial_scores
from piggyback.masks.rule import MaskRule, ScoreInit

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


def test_larger_weights_start_further_from_the_threshold_and_small_ones_never_go():
    weight = torch.tensor([0.01, 0.5, -1.0, 2.0])
    small, half, one, two = (initial_scores(weight, ScoreInit()) - 5e-3).tolist()
    assert small == pytest.approx(NEVER)
    assert 0 < half < one < two
    assert two == pytest.approx(2 * one, rel=1e-4)


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


def test_a_margin_of_nothing_is_refused_before_the_first_step():
    group = [{"params": [nn.Linear(2, 2).weight], "masked": True, "lr": 1e-3}]
    with pytest.raises(InputError, match=r"value 0\.01 with threshold 0\.01"):
        MaskOptimizer(group, rule=MaskRule(threshold=1e-2))
