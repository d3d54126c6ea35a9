"""Rows of an imaginary experiment."""

from __future__ import annotations

from collections.abc import Sequence

from piggyback.lab.tables.rows import Row

METHODS = (
    ("head", "head", -30.0, None, 250_000, None),
    ("finetune", "finetune", 0.0, None, 13_600_000, None),
    ("masks", "masks", -1.0, 0.3, 640_000, 0.875),
    ("masks ternary", "masks", 1.0, 0.6, 1_100_000, 0.8),
    ("packnet", "packnet", -4.0, None, 13_700_000, None),
)
"""Label, method, gain over fine-tuning, bits per weight, bytes, density."""


def rows(
    tasks: Sequence[str] = ("signs", "letters"),
    seeds: Sequence[int] = (0, 1),
    backbones: Sequence[str] = ("lite0",),
) -> list[Row]:
    """Of all methods: fine-tuning has 90% on the first task and 10 less on each next."""
    return [
        Row(
            backbone, task, label, method, seed, 90.0 - 10 * at + gain - 2 * seed, 91.0, bits,
            size + 1000 * at, 60.5, density, 3, {"mask_lr": 1e-4},
        )
        for backbone in backbones
        for at, task in enumerate(tasks)
        for label, method, gain, bits, size, density in METHODS
        for seed in seeds
    ]  # fmt: skip
