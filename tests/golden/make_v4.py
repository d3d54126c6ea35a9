"""Wrote the golden file of format version 4 (python tests/golden/make_v4.py); never run again."""

from __future__ import annotations

from pathlib import Path

import torch

from piggyback.masks.bits import pack_mask
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task, TaskInfo
from piggyback.texts.preprocessing import TextPreprocessing

PLACE = Path(__file__).parent / "v4-text.safetensors"
SHAPES = {"query.weight": (6, 4), "dense.weight": (4, 6)}


def task() -> Task:
    """The task in the golden file: one on texts, with the digest of its tokenizer."""
    masks = {}
    for name, shape in SHAPES.items():
        kept = torch.tensor([i % 5 != 2 for i in range(torch.Size(shape).numel())])
        masks[name] = pack_mask(kept.view(shape))
    head = {"weight": torch.tensor([[0.1, -0.2, 0.3, 0.7], [1.0, 2.0, 3.0, 5.0]])}
    info = TaskInfo(
        classes=("bad", "good"),
        preprocessing=TextPreprocessing("ef" * 32, max_length=96, pad=1, family="roberta"),
        backbone=BackboneInfo("transformers:golden", "ab" * 32, dict.fromkeys(SHAPES, "cd" * 32)),
        provenance={"seed": 4},
    )
    return Task("golden", masks, head, {}, info)


if __name__ == "__main__":
    if PLACE.exists():
        raise SystemExit(f"{PLACE} exists: a golden file is never written again")
    PLACE.write_bytes(save(task()))
