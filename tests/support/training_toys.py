"""A network, images and recipes with which a training takes a second; fixtures of the tests of train and lab."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, Recipe, from_tensors


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
