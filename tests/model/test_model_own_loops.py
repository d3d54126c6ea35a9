"""Loops of one's own: rates and schedule from the number of steps, and a word where masks learned nothing."""

from __future__ import annotations

import gc
import math
import warnings

import pytest
import torch
from torch import nn

from piggyback import MultiTaskModel, ScoreInit, mask_lr, warmup_cosine
from piggyback.errors import InputError, PiggybackWarning
from piggyback.masks.rule import FAR_REACH, HEAD_LR, REACH
from support.nets import Attention, Convolutions, seeded


def started(**options) -> MultiTaskModel:
    model = MultiTaskModel(seeded(Convolutions))
    model.start_task("a", 3, **options)
    return model.train()


def step(model: MultiTaskModel, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def test_steps_give_every_group_its_rate() -> None:
    optimizer = started(norm="affine").optimizer(steps=500)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [mask_lr(500), HEAD_LR, HEAD_LR]
    assert optimizer.init == ScoreInit()


def test_the_rate_follows_the_margin_of_the_start() -> None:
    wide = started().optimizer(steps=500, init=ScoreInit(value=2.5e-2))
    assert wide.param_groups[0]["lr"] == pytest.approx(4 * mask_lr(500))


def test_rates_that_are_given_count() -> None:
    optimizer = started().optimizer(torch.optim.SGD, steps=100, head_lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [mask_lr(100), 0.5]
    optimizer = started().optimizer(lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_transformers_have_a_rate_of_their_own() -> None:
    model = MultiTaskModel(seeded(Attention))
    model.start_task("a", 3)
    optimizer = model.optimizer(steps=500)
    assert optimizer.param_groups[0]["lr"] == mask_lr(500, reach=REACH)
    torch.manual_seed(0)
    tokens, labels = torch.randint(17, (60, 6)), torch.arange(60) % 3
    far = model.optimizer(steps=500, batches=[(tokens, labels)])
    assert far.param_groups[0]["lr"] == mask_lr(500, reach=FAR_REACH)
    assert not MultiTaskModel(seeded(Convolutions)).transformer


@pytest.mark.parametrize(
    "options", [{}, {"steps": 10, "lr": 0.1}, {"steps": 0}, {"lr": 0.1, "batches": []}]
)
def test_steps_or_a_rate_are_needed(options) -> None:
    with pytest.raises(InputError, match="steps"):
        started().optimizer(**options)


@pytest.mark.parametrize("rate", ["lr", "head_lr", "norm_lr"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-3])
def test_a_rate_that_is_no_number_is_refused(rate: str, value: float) -> None:
    """By NaN every score would be one, and every weight be masked out without a word."""
    with pytest.raises(InputError, match=f"{rate} {value}"):
        started().optimizer(**{"lr": 0.1, rate: value})


def test_batches_tell_how_far_the_task_is() -> None:
    model = started()
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    near = torch.randn(60, 3, 8, 8) + 5 * nn.functional.one_hot(labels)[:, :, None, None]
    rates = []
    for images in (near, torch.randn(60, 3, 8, 8)):
        pairs = list(zip(images.split(20), labels.split(20), strict=True))
        rates.append(model.optimizer(steps=100, batches=pairs).param_groups[0]["lr"])
    assert mask_lr(100, z=1.0) <= rates[0] < 0.8 * rates[1]
    assert rates[1] <= mask_lr(100, z=0.5)
    assert model.training
    with pytest.raises(InputError, match="batches"):
        model.optimizer(steps=100, batches=[])


@pytest.mark.parametrize(
    "batch",
    [
        torch.randn(6, 3, 8, 8),
        (torch.randn(6, 3, 8, 8), [0, 1, 2, 0, 1, 2]),
        (torch.randn(6, 3, 8, 8), torch.rand(6)),
        (torch.randn(6, 3, 8, 8), torch.randint(0, 2, (6, 3))),
        (torch.randn(6, 3, 8, 8), torch.tensor([-1, 0, 1, 0, 1, 0])),
        (torch.randn(6, 3, 8, 8), torch.arange(5)),
        (torch.full((6, 3, 8, 8), math.nan), torch.arange(6) % 3),
        (torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])),
        (torch.randn(6, 3, 8, 8), torch.ones(6, dtype=torch.int64)),
    ],
    ids=[
        "no pair",
        "list",
        "floats",
        "multi-hot",
        "negative",
        "fewer",
        "nan",
        "beyond",
        "one class",
    ],
)
def test_batches_that_have_no_classes_are_refused(batch) -> None:
    model = started()
    with pytest.raises(InputError, match="batches"):
        model.optimizer(steps=100, batches=[batch])
    assert model.training


def test_an_iterator_is_not_used_up() -> None:
    batches = iter([(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)] * 3)
    with pytest.raises(InputError, match="batches: an iterator"):
        started().optimizer(steps=100, batches=batches)
    assert len(list(batches)) == 3


def test_a_loop_of_as_many_steps_as_it_said_masks_something() -> None:
    model = started()
    optimizer = model.optimizer(steps=20)
    schedule = warmup_cosine(optimizer, steps=20)
    for _ in range(20):
        step(model, optimizer)
        schedule.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = model.finish_task()
    assert 0.3 < task.density < 0.99


@pytest.mark.parametrize("gone", [False, True], ids=["optimizer held", "optimizer gone"])
def test_masks_that_were_trained_and_mask_nothing_are_told(gone) -> None:
    model = started()
    optimizer = model.optimizer(lr=1e-9)
    for _ in range(5 if gone else 1):
        step(model, optimizer)
    optimizer.zero_grad()
    if gone:
        del optimizer
        gc.collect()
    with pytest.warns(PiggybackWarning, match="'a'.*masked nothing"):
        model.finish_task()
    assert "masked nothing" in str(model.summary())


@pytest.mark.parametrize("masks", [True, False])
def test_a_task_that_was_not_trained_is_not_told(masks) -> None:
    model = started(masks=masks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isclose(model.finish_task().density, 1.0)
