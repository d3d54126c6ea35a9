"""What each task costs, layer by layer: density, entropy, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from piggyback.masks.packing import PackedMask
from piggyback.tasks.task import Task


def mask_entropy(mask: PackedMask) -> float:
    """Return the bits per weight of a mask by its values' frequencies: H(density) for a binary one.

    >>> from piggyback.masks.packing import pack
    >>> import torch
    >>> mask_entropy(pack(torch.tensor([True, False])))
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
    """Per layer rows, and per task the bytes held in memory; ``str`` gives a table."""

    rows: tuple[SummaryRow, ...]
    nbytes: Mapping[str, int]
    forms: Mapping[str, str] = field(default_factory=dict)
    """The form of a task's mask rule, where it is not the plain one."""

    def __str__(self) -> str:
        wide = max([len("weight"), *(len(row.weight) for row in self.rows)])
        lines = []
        for task, nbytes in self.nbytes.items():
            rows = [row for row in self.rows if row.task == task]
            total = sum(row.weights for row in rows)
            kept = sum(row.kept for row in rows)
            density = kept / total if total else 1.0
            form = f"{self.forms[task]} form, " if task in self.forms else ""
            lines.append(
                f"task {task}: {len(rows)} masked tensors, {total:,} weights, density {density:.4f}, "
                f"{form}{nbytes:,} bytes in memory"
            )
            if rows:
                lines.append(f"  {'weight':<{wide}} {'shape':>18} {'weights':>10} density  bits")
            lines += [
                f"  {row.weight:<{wide}} {'x'.join(map(str, row.shape)):>18} {row.weights:>10,} "
                f"{row.density:>7.4f} {row.entropy_bits:5.3f}"
                for row in rows
            ]
        return "\n".join(lines) if lines else "no tasks"


def summarize(tasks: Mapping[str, Task]) -> Summary:
    """Return the summary of ``tasks``."""
    rows = tuple(
        SummaryRow(task.name, name, mask.shape, mask.numel, mask.kept, mask_entropy(mask))
        for task in tasks.values()
        for name, mask in task.masks.items()
    )
    forms = {n: t.info.rule.form for n, t in tasks.items() if t.info.rule.form != "plain"}
    return Summary(rows, {name: task.nbytes for name, task in tasks.items()}, forms)
