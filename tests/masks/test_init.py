"""Where scores start."""

from __future__ import annotations

import pytest
import torch

from piggyback.errors import InputError
from piggyback.masks.init import ScoreInit, initial_scores


def test_constant_and_mean_start_a_layer_at_one_value():
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    assert initial_scores(weight, ScoreInit()).unique().tolist() == [pytest.approx(1e-2)]
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


@pytest.mark.parametrize("kind", ["constant", "uniform", "mean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_are_float32_leaves_in_the_weights_layout(kind, dtype):
    weight = torch.nn.Parameter(
        torch.randn(4, 3, 2, 2, dtype=dtype).to(memory_format=torch.channels_last)
    )
    scores = initial_scores(weight, ScoreInit(kind))
    assert scores.dtype == torch.float32
    assert scores.stride() == weight.stride()
    assert not scores.requires_grad
    assert not isinstance(scores, torch.nn.Parameter)
    plain = initial_scores(weight.detach().contiguous(), ScoreInit(kind))
    torch.testing.assert_close(scores, plain)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'ones': expected 'constant', 'uniform' or 'mean'"):
        ScoreInit("ones")
