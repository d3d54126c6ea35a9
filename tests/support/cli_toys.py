"""What the tests of the command line share besides fixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from piggyback.cli import main

BACKBONE = """
import torch
from torch import nn

from piggyback.images.preprocessing import Preprocessing


def build(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    return net, Preprocessing(16)


def other():
    return build(1)


def large():
    return build()[0], Preprocessing(224)


def nudged():
    net, preprocessing = build()
    net[1].bias.data += 1
    return net, preprocessing


def deeper():
    net, preprocessing = build()
    net[3] = nn.Sequential(net[3], nn.Conv2d(24, 24, 1))
    return net, preprocessing
"""

FAST = (
    *("--epochs", "3", "--mask-lr", "2e-3", "--head-lr", "2e-2", "--batch-size", "16"),
    *("--amp", "no", "--channels-last", "no"),
)
"""A recipe that finishes in a second."""

COLOURS = ("blue", "green", "red")


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def refuses(self, *told: str) -> None:
        """Assert that the command gave one line of error, with the words ``told``, and nothing else."""
        assert (self.code, self.out) == (1, ""), self
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        for words in told:
            assert words in self.err, self.err


Command = Callable[..., Ran]


def train(*arguments: object) -> None:
    """Run ``piggyback train``, for fixtures that outlive a test."""
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments)])
    assert ended.value.code == 0
