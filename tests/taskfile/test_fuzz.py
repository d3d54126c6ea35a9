"""Mutated task files: a clear error or the very same task, never a crash, a hang or much memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from piggyback.errors import TaskFileError
from piggyback.masks.bits import pack_mask, unpack_mask
from piggyback.masks.rule import MaskRule
from piggyback.taskfile.file import load, save
from piggyback.taskfile.rounding import round_rows
from piggyback.taskfile.task import Task, TaskInfo
from support.damage import damaged

TABLES = 1 << 20
"""Bytes for decoding tables of densities that the genuine file does not have; they are cached."""


def original(ternary: bool) -> Task:
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, shape, density in (("a", (24, 40), 0.95), ("b", (24, 1, 3, 3), 0.9), ("c", (9,), 1)):
        mask = torch.rand(shape, generator=generator) < density
        if ternary:
            sign = torch.where(torch.rand(shape, generator=generator) < 0.2, -1, 1)
            masks[name] = pack_mask(mask.to(torch.int8) * sign.to(torch.int8))
        else:
            masks[name] = pack_mask(mask)
    info = TaskInfo(classes=("x", "y"), rule=MaskRule("ternary" if ternary else "binary"))
    return Task("fuzz", masks, {"weight": torch.ones(2, 3)}, info=info)


def formed() -> Task:
    """A file of version 2, with coefficients."""
    task = original(ternary=True)
    numbers = {name: torch.rand(mask.shape[0]) for name, mask in task.masks.items()}
    rule = MaskRule("ternary", form="channel")
    return replace(task, info=replace(task.info, rule=rule), coefficients=numbers)


def short() -> Task:
    """A file of version 5, with heads of five bits and of a byte, and float16 normalisation."""
    torch.manual_seed(1)
    head = {"weight": round_rows(torch.randn(4, 24)), "odd": round_rows(torch.randn(4, 20))}
    return replace(original(ternary=False), head=head, norm={"bn.weight": torch.ones(5)})


def sealed(bad: bytes, header: int, rng: np.random.Generator) -> bytes:
    """The mutated file as an attacker would send it: header length and checksum made to fit."""
    if len(bad) < 48:
        return bad
    if rng.random() < 0.5:
        bad = max(0, header).to_bytes(8, "little") + bad[8:]
    return bad[:-32] + hashlib.sha256(bad[:-32]).digest()


def run(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [original(False), original(True), formed(), short()]
    files = [save(task) for task in tasks]
    texts = [int.from_bytes(data[:8], "little") for data in files]
    refused = 0
    tracemalloc.start()
    needs = [need(data) for data in files]
    for step in range(count):
        which = step % len(files)
        bad = damaged(files[which], rng)
        honest = step % (2 * len(files)) < len(files)
        if not honest:
            bad = sealed(bad, texts[which] + len(bad) - len(files[which]), rng)
        found, peak = measured(bad)
        if found is None:
            refused += 1
            assert peak <= 2 * needs[which] + TABLES, bad
            if peak > 2 * needs[which]:  # a table for another density was made, and is kept
                assert measured(bad)[1] <= 2 * needs[which], bad
            continue
        if honest:  # the checksum held, so nothing may differ
            assert bad == files[which]
        for name, mask in found.masks.items():
            again = pack_mask(unpack_mask(mask))
            assert again.keep.equal(mask.keep), name
            assert mask.kept <= mask.numel
        assert all(numbers.isfinite().all() for numbers in found.coefficients.values())
        assert which < 3 or all(tensor.isfinite().all() for tensor in found.head.values())
    tracemalloc.stop()
    assert refused > 0.9 * count


def measured(data: bytes) -> tuple[Task | None, int]:
    """The task, None if it is refused, and the bytes that loading took at its peak."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        found = load(data)
    except TaskFileError:
        found = None
    return found, tracemalloc.get_traced_memory()[1] - before


def need(data: bytes) -> int:
    """Bytes that loading the genuine file takes at its peak, its tables already made."""
    load(data)
    return measured(data)[1]


def test_two_thousand_mutations() -> None:
    run(2_000, seed=0)


@pytest.mark.slow
def test_hundred_thousand_mutations() -> None:
    run(100_000, seed=1)
