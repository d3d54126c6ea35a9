"""Fixtures and helpers of the tests of train and lab: a training takes a second with these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.taskfile.task import Task
from piggyback.train import (
    EpochRow,
    ImageData,
    Listener,
    Plan,
    Recipe,
    Step,
    TrainResult,
    from_tensors,
    train,
)


@pytest.fixture
def backbone() -> Backbone:
    """A random convolutional network with batch norm and dropout, for 16 x 16 images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(24, 10),
        )
        for norm in (module[1], module[4]):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.1, 0.3)
    return Backbone(module.eval(), "", Preprocessing(16), "9")


@pytest.fixture
def data() -> ImageData:
    """150 images of 16 x 16: red, green or blue ones under noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(150) % 3
    images = (torch.rand(150, 3, 16, 16, generator=generator) * 120).byte()
    images[torch.arange(150), labels] += 100
    return from_tensors("colours", ["blue", "green", "red"], (images, labels))


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Makes short recipes in float32, for runs that must repeat to the bit."""

    def make(method: str = "masks", **options: object) -> Recipe:
        settings = {
            "epochs": 3,
            "mask_lr": 2e-3,
            "head_lr": 2e-2,
            "amp": "no",
            "channels_last": "no",
        }
        return Recipe(method, **{**settings, **options})

    return make


class Killed(BaseException):
    """Stands for the end of the process, within the test's own."""


class Recorder(Listener):
    """Keeps what it is told; ends the run after ``kill_epoch``, if given."""

    def __init__(self, kill_epoch: int | None = None) -> None:
        self.kill_epoch = kill_epoch
        self.stages: list[str] = []
        self.plans: list[Plan] = []
        self.steps: list[Step] = []
        self.rows: list[EpochRow] = []
        self.notices: list[str] = []
        self.ended = 0

    def on_stage(self, text: str) -> None:
        self.stages.append(text)

    def on_start(self, plan: Plan) -> None:
        self.plans.append(plan)

    def on_step(self, step: Step) -> None:
        self.steps.append(step)

    def on_epoch(self, row: EpochRow) -> None:
        self.rows.append(row)
        if row.epoch == self.kill_epoch:
            raise Killed

    def on_notice(self, text: str) -> None:
        self.notices.append(text)

    def on_end(self) -> None:
        self.ended += 1


def interrupted(
    backbone: Backbone, data: object, name: str, recipe: Recipe, folder: Path, **options: object
) -> TrainResult:
    """The result of a run that was killed after its second epoch and goes on."""
    with pytest.raises(Killed):
        train(backbone, data, name, recipe, folder, listener=Recorder(2), **options)
    return train(backbone, data, name, recipe, folder, resume=True, **options)


def assert_same(one: Task | None, other: Task | None) -> None:
    """Two tasks with the same masks, head and normalisation, to the bit."""
    assert one is not None
    assert other is not None
    assert one.masks.keys() == other.masks.keys()
    for name, mask in one.masks.items():
        assert torch.equal(mask.keep, other.masks[name].keep), name
    for part in ("head", "norm"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
