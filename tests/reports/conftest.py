"""Folders of images that people have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.encoded_pictures import noise


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes small images of noise, each another, into a folder and returns their paths."""
    made = 0

    def write(folder: str, count: int = 6, suffix: str = ".png") -> list[Path]:
        nonlocal made
        paths = [tmp_path / folder / f"{i:02d}{suffix}" for i in range(count)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(made).save(path)
            made += 1
        return paths

    return write
