"""Wrote the golden file of format version 3 (python tests/golden/make_v3.py); never run again."""

from __future__ import annotations

from pathlib import Path

import torch

from piggyback.masks.bits import pack_mask
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task, TaskInfo

PLACE = Path(__file__).parent / "v3-short.safetensors"
SHAPES = {"stem.weight": (4, 3, 3, 3), "fc.weight": (5, 7)}
SCALES = (0.5, 2.0**-10, 0.0)
CODES = ((127, -3, 0, 5), (-127, 1, 2, 3), (0, 0, 0, 0))


def task() -> Task:
    """The task in the golden file: a head of int8 rows, one of zeros, and normalisation in float16 and float32."""
    masks = {}
    for name, shape in SHAPES.items():
        kept = torch.tensor([i % 7 != 3 for i in range(torch.Size(shape).numel())])
        masks[name] = pack_mask(kept.view(shape))
    rows = [[s * k for k in codes] for s, codes in zip(SCALES, CODES, strict=True)]
    head = {"weight": torch.tensor(rows), "bias": torch.tensor([0.1, -0.2, 0.3])}
    norm = {
        "bn.running_mean": torch.tensor([0.5, -1.25, 3.0]),
        "bn.running_var": torch.tensor([0.1, 1e-9, 7.0]),
    }
    info = TaskInfo(
        classes=("stop", "go", "yield"),
        backbone=BackboneInfo("timm:golden", "ab" * 32, dict.fromkeys(SHAPES, "cd" * 32)),
        provenance={"seed": 3},
    )
    return Task("golden", masks, head, norm, info)


if __name__ == "__main__":
    if PLACE.exists():
        raise SystemExit(f"{PLACE} exists: a golden file is never written again")
    PLACE.write_bytes(save(task()))
