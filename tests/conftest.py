"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("piggyback", deadline=None, derandomize=True)
hypothesis.settings.load_profile("piggyback")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
        pytest.skip(f"needs the image sets in {SHARED_DATA}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
