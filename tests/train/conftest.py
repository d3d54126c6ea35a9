"""Small networks and images that a training finishes on in a second."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.train import ImageData, Recipe, from_tensors


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))


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
            "tensorboard": False,
        }
        return Recipe(method, **{**settings, **options})

    return make


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Writes a noise image and returns its path."""

    def make(path: Path, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return make


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """train/ and test/ with classes cat and dog, 10 and 4 images each."""
    root = tmp_path / "pets"
    for split, count in (("train", 10), ("test", 4)):
        for name in ("cat", "dog"):
            for i in range(count):
                save_image(root / split / name / f"{i:02d}.png", seed=i)
    return root


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shared traffic signs unpacked; skips where there are none."""
    packed = Path(__file__).parents[3] / "shared" / "data" / "gtsrb.tar"
    if not packed.exists():
        pytest.skip("needs the image sets in ../shared/data")
    folder = tmp_path_factory.mktemp("shared")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder
