"""Wrote the golden file of format version 5 (python tests/golden/make_v5.py); never run again."""

from __future__ import annotations

from pathlib import Path

import torch

from piggyback.masks.bits import pack_mask
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task, TaskInfo

PLACE = Path(__file__).parent / "v5-packed.safetensors"
CODES = [[-15, -14, -8, -1, 0, 1, 7, 15], [0, 3, -15, 2, 2, -2, 9, 1]]
SCALES = [0.25, 0.0625]


def task() -> Task:
    """The task in the golden file: a head in codes of five bits."""
    kept = torch.tensor([i % 3 != 1 for i in range(24)]).view(8, 3)
    head = {
        "weight": torch.tensor(CODES).float() * torch.tensor(SCALES)[:, None],
        "bias": torch.tensor([0.1, -0.2]),
    }
    info = TaskInfo(
        classes=("bad", "good"),
        backbone=BackboneInfo("timm:golden", "ab" * 32, {"fc.weight": "cd" * 32}),
        provenance={"seed": 5},
    )
    return Task("golden", {"fc.weight": pack_mask(kept)}, head, {}, info)


if __name__ == "__main__":
    if PLACE.exists():
        raise SystemExit(f"{PLACE} exists: a golden file is never written again")
    PLACE.write_bytes(save(task()))
