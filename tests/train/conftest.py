"""Small networks and images that a training finishes on in a second."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.text_toys import encoder, reader, reviews, tagged  # noqa: F401
from support.training_toys import backbone, data, recipe  # noqa: F401


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))


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
