"""The rate of a run's scores: what noise does to them, and the schedule that both are made for."""

from __future__ import annotations

import math

import pytest
import torch

from piggyback.errors import InputError
from piggyback.masks.optimizer import warmup_cosine
from piggyback.masks.rule import Z, lr_factor, mask_lr


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


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_number_of_steps_that_is_none_is_refused(steps) -> None:
    with pytest.raises(InputError, match="steps"):
        mask_lr(steps)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["z", "margin"])
def test_a_margin_or_z_that_is_not_finite_and_positive_is_refused(name, value) -> None:
    with pytest.raises(InputError, match=name):
        mask_lr(100, **{name: value})


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
def test_a_warmup_that_is_no_part_of_the_run_is_refused(warmup) -> None:
    with pytest.raises(InputError, match="warmup"):
        mask_lr(10, warmup=warmup)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="linear"):
        mask_lr(10, "linear")


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
