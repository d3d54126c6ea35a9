"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import piggyback

SOURCE = Path(piggyback.__file__).parent
NAMES = (".".join(p.relative_to(SOURCE.parent).with_suffix("").parts) for p in SOURCE.rglob("*.py"))
MODULES = sorted(name.removesuffix(".__init__") for name in NAMES)


@pytest.mark.parametrize("name", [m for m in MODULES if not m.endswith(".__main__")])
def test_examples(name):
    module = importlib.import_module(name)
    before = torch.get_rng_state()
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    torch.set_rng_state(before)
    assert not failed, "see the captured output"
