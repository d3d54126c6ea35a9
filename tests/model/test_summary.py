"""What tasks cost."""

from __future__ import annotations

import math

import pytest
import torch

from piggyback.masks.bits import pack
from piggyback.model.summary import mask_entropy, summarize
from piggyback.taskfile.task import Task


def test_entropy_by_the_frequencies_of_a_masks_values():
    quarter = torch.arange(100) % 4 == 0
    assert mask_entropy(pack(quarter)) == pytest.approx(
        -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    )
    thirds = (torch.arange(99) % 3 - 1).to(torch.int8)
    assert mask_entropy(pack(thirds)) == pytest.approx(math.log2(3))
    for same in (torch.ones(5), torch.zeros(5), torch.ones(0)):
        assert mask_entropy(pack(same.bool())) == 0


def test_rows_tell_each_weight_of_each_task():
    half = pack(torch.arange(12).view(3, 4) % 2 == 0)
    tasks = {
        "a": Task("a", {"conv": half, "fc": pack(torch.ones(8, dtype=torch.bool))}, {}),
        "b": Task("b", {}, {"weight": torch.zeros(2, 3)}),
    }
    summary = summarize(tasks)
    assert [(r.task, r.weight, r.shape, r.weights, r.kept) for r in summary.rows] == [
        ("a", "conv", (3, 4), 12, 6),
        ("a", "fc", (8,), 8, 8),
    ]
    assert summary.rows[0].density == 0.5
    assert summary.rows[0].entropy_bits == 1.0
    assert summary.nbytes == {"a": 3, "b": 24}
    lines = str(summary).splitlines()
    assert lines[0] == "task a: 2 masked tensors, 20 weights, density 0.7000, 3 bytes in memory"
    assert lines[2].split() == ["conv", "3x4", "12", "0.5000", "1.000"]
    assert lines[-1] == "task b: 0 masked tensors, 0 weights, density 1.0000, 24 bytes in memory"
