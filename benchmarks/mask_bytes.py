"""Bytes of coded masks on disk against their entropy: the sum over layers of N H(density) / 8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from math import log2
from pathlib import Path

from benchmarks.command import main
from benchmarks.measure import Row, Settings
from benchmarks.networks import add_task, network
from piggyback import MultiTaskModel, PackedMask
from piggyback.taskfile.header import read_header

AIM = 1.01


def rows(settings: Settings) -> list[Row]:
    """Return rows for masks whose rows are alike, which no code can beat, and whose rows differ, as learned ones do."""
    found = []
    for name in settings.networks:
        model = MultiTaskModel(network(name, settings))
        for kind, spread in (("even", 0.0), ("uneven", 0.9)):
            add_task(model, kind, 0, spread)
            found.append(_row(f"mask bytes {kind} {name}", model, kind))
    return found


def _row(name: str, model: MultiTaskModel, task: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.safetensors"
        model.save_task(task, path)
        coded = read_header(path).bytes_masks
    bound = entropy_bytes(model.get_task(task).masks.values())
    note = f"density {model.get_task(task).density:.3f}, rows {task}"
    return Row(name, coded / bound, AIM, coded / 1e3, bound / 1e3, "kB", note=note)


def entropy_bytes(masks: Iterable[PackedMask]) -> float:
    """Return the sum over masks of N H(density) / 8.

    >>> from piggyback import pack_mask
    >>> from torch import tensor
    >>> entropy_bytes([pack_mask(tensor([True, False] * 8))])
    2.0
    """
    return sum(mask.numel * _entropy(mask.density) / 8 for mask in masks)


def _entropy(p: float) -> float:
    return sum(-q * log2(q) for q in (p, 1 - p) if q)


if __name__ == "__main__":
    main("mask_bytes")
