"""What each task costs, layer by layer: density, entropy, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from piggyback.masks.bits import PackedMask
from piggyback.taskfile.task import Task

NOTHING = 1e-4
"""Masks that drop a smaller share of the weights mask nothing."""


def masks_verdict(density: float) -> str:
    """Return what is wrong with masks that keep this share of the weights; empty where they mask something.

    >>> masks_verdict(0.9), masks_verdict(1.0)[:14]
    ('', 'masked nothing')
    """
    if 1 - density >= NOTHING:
        return ""
    return "masked nothing: this is the head alone; train for more steps or at a higher mask rate"


def mask_entropy(mask: PackedMask) -> float:
    """Return the bits per weight of a mask by its values' frequencies: H(density) for a binary one.

    >>> from piggyback.masks.bits import pack_mask
    >>> import torch
    >>> mask_entropy(pack_mask(torch.tensor([True, False])))
    1.0
    """
    negative = 0 if mask.negative is None else PackedMask(mask.shape, mask.negative).kept
    counts = (mask.numel - mask.kept, mask.kept - negative, negative)
    return sum(-c / mask.numel * math.log2(c / mask.numel) for c in counts if c)


@dataclass(frozen=True)
class SummaryRow:
    """One weight tensor of one task."""

    task: str
    weight: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    entropy_bits: float
    """Bits per weight by the mask's value frequencies."""

    @property
    def density(self) -> float:
        """Fraction kept."""
        return self.kept / self.weights if self.weights else 1.0


@dataclass(frozen=True)
class Summary:
    """Tasks by name, weight by weight; ``str`` gives a table."""

    tasks: Mapping[str, Task] = field(repr=False)

    @cached_property
    def rows(self) -> tuple[SummaryRow, ...]:
        """One for each masked weight of each task."""
        return tuple(
            SummaryRow(task, name, mask.shape, mask.numel, mask.kept, mask_entropy(mask))
            for task, found in self.tasks.items()
            for name, mask in found.masks.items()
        )

    @property
    def nbytes(self) -> dict[str, int]:
        """The bytes that each task holds in memory."""
        return {name: task.nbytes for name, task in self.tasks.items()}

    def __str__(self) -> str:
        wide = max([len("weight"), *(len(row.weight) for row in self.rows)])
        lines = []
        for name, task in self.tasks.items():
            rows = [row for row in self.rows if row.task == name]
            total = sum(row.weights for row in rows)
            density = sum(row.kept for row in rows) / total if total else 1.0
            form = "" if task.info.rule.form == "plain" else f"{task.info.rule.form} form, "
            lines.append(
                f"task {name}: {len(rows)} masked tensors, {total:,} weights, density {density:.4f}, "
                f"{form}{task.nbytes:,} bytes in memory"
            )
            said = task.info.provenance.get("verdict")  # by training
            verdict = said if isinstance(said, str) else ""
            if verdict := verdict or (masks_verdict(density) if rows else ""):
                lines.append(f"  {verdict}")
            if rows:
                lines.append(f"  {'weight':<{wide}} {'shape':>18} {'weights':>10} density  bits")
            lines += [
                f"  {row.weight:<{wide}} {'x'.join(map(str, row.shape)):>18} {row.weights:>10,} "
                f"{row.density:>7.4f} {row.entropy_bits:5.3f}"
                for row in rows
            ]
        return "\n".join(lines) if lines else "no tasks"
