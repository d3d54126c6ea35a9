"""What each task costs, layer by layer: density, entropy, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """Per layer rows, and per task the bytes held in memory; ``str`` gives a table."""

    rows: tuple[SummaryRow, ...]
    nbytes: Mapping[str, int]
    forms: Mapping[str, str] = field(default_factory=dict)
    """The form of a task's mask rule, where it is not the plain one."""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """What training said of masks that did not learn, by task."""

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
            if verdict := self.verdicts.get(task) or (masks_verdict(density) if rows else ""):
                lines.append(f"  {verdict}")
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
    told = {name: task.info.provenance.get("verdict") for name, task in tasks.items()}
    verdicts = {name: text for name, text in told.items() if isinstance(text, str)}
    return Summary(rows, {name: task.nbytes for name, task in tasks.items()}, forms, verdicts)
