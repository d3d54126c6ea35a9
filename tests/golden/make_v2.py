"""Wrote the golden files of format version 2 (python tests/golden/make_v2.py); never run again."""

from __future__ import annotations

from pathlib import Path

import torch

from piggyback.masks.bits import pack_mask
from piggyback.masks.rule import Form, MaskRule
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task, TaskInfo

FOLDER = Path(__file__).parent
SHAPES = {"stem.weight": (4, 3, 3, 3), "block.depthwise.weight": (6, 1, 3, 3), "fc.weight": (5, 7)}
KINDS = {"channel": "ternary", "affine": "binary"}


def mask_value(index: int, ternary: bool) -> int:
    """Whether the weight at ``index`` is kept, in a pattern."""
    if index % 7 == 3:
        return 0
    return -1 if ternary and index % 5 == 0 else 1


def coefficients(form: Form, shape: tuple[int, ...]) -> list[float]:
    """Numbers that float32 holds exactly, among them a zero and a negative one."""
    return [0.25, -0.5, 0.0, 1.5] if form == "affine" else [1 - i / 4 for i in range(shape[0])]


def task(form: Form) -> Task:
    """The task in the golden file of a form."""
    ternary = KINDS[form] == "ternary"
    masks = {}
    for name, shape in SHAPES.items():
        values = [mask_value(i, ternary) for i in range(torch.Size(shape).numel())]
        mask = torch.tensor(values, dtype=torch.int8).view(shape)
        masks[name] = pack_mask(mask if ternary else mask.bool())
    info = TaskInfo(
        classes=("stop", "go"),
        rule=MaskRule("ternary" if ternary else "binary", 0.005, form),
        backbone=BackboneInfo("timm:golden", "ab" * 32, dict.fromkeys(SHAPES, "cd" * 32)),
        provenance={"seed": 3},
    )
    head = {"weight": torch.arange(6, dtype=torch.float32).view(2, 3) / 8}
    numbers = {n: torch.tensor(coefficients(form, shape)) for n, shape in SHAPES.items()}
    return Task("golden", masks, head, {}, info, numbers)


if __name__ == "__main__":
    for form in ("channel", "affine"):
        path = FOLDER / f"v2-{form}.safetensors"
        if path.exists():
            raise SystemExit(f"{path} exists: a golden file is never written again")
        path.write_bytes(save(task(form)))
