"""Wrote the golden files of format version 1 (python tests/golden/make_v1.py); never run again."""

from __future__ import annotations

from pathlib import Path

import torch

from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.bits import pack_mask
from piggyback.masks.rule import MaskRule
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task, TaskInfo

FOLDER = Path(__file__).parent
SHAPES = {
    "stem.weight": (8, 3, 3, 3),
    "block.expand.weight": (96, 40, 1, 1),
    "block.depthwise.weight": (96, 1, 3, 3),
    "block.project.weight": (40, 96, 1, 1),
    "gate.weight": (1,),
    "whole.weight": (5, 7),
    "none.weight": (4, 4),
}


def value(index: int) -> int:
    """A number in 0..999 that looks random, by integer arithmetic alone."""
    x = (index * 2654435761 + 12345) % 2**32
    x = ((x ^ (x >> 15)) * 2246822519) % 2**32
    return (x ^ (x >> 13)) % 1000


def mask_value(name: str, index: int, ternary: bool) -> int:
    """Whether a weight is kept: rows of one layer and columns of another differ in density."""
    if name == "whole.weight":
        return 1
    if name == "none.weight":
        return 0
    shape = SHAPES[name]
    dropped = 50
    if name == "block.expand.weight":
        dropped = 200 if (index // shape[1]) % 4 == 0 else 8
    if name == "block.project.weight":
        dropped = 200 if (index % shape[1]) % 4 == 0 else 8
    number = value(index + 100_000 * list(SHAPES).index(name))
    if number < dropped:
        return 0
    return -1 if ternary and number % 5 == 0 else 1


def mask(name: str, ternary: bool) -> torch.Tensor:
    count = torch.Size(SHAPES[name]).numel()
    values = torch.tensor([mask_value(name, i, ternary) for i in range(count)], dtype=torch.int8)
    values = values.view(SHAPES[name])
    return values if ternary else values.bool()


def task(ternary: bool) -> Task:
    """The task in the golden file."""
    head = {
        "weight": torch.arange(12, dtype=torch.float32).view(3, 4) / 8,
        "bias": torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16),
    }
    norm = {} if ternary else {"bn.running_mean": torch.arange(4, dtype=torch.float64) / 4}
    digests = {name: f"{value(i):064x}" for i, name in enumerate(SHAPES)}
    info = TaskInfo(
        kind="classification",
        classes=("stop", "Vorfahrt gewähren", "止まれ"),
        rule=MaskRule("ternary", 0.005) if ternary else MaskRule(),
        head_kind="linear",
        preprocessing=Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125), "bicubic", 0.875),
        backbone=BackboneInfo("timm:golden", "ab" * 32, digests),
        provenance={"seed": 3, "recipe": {"epochs": 6, "lr": 0.0002}, "note": None, "ok": True},
    )
    masks = {name: pack_mask(mask(name, ternary)) for name in SHAPES}
    return Task("golden", masks, head, norm, info)


if __name__ == "__main__":
    for kind in ("binary", "ternary"):
        path = FOLDER / f"v1-{kind}.safetensors"
        if path.exists():
            raise SystemExit(f"{path} exists: a golden file is never written again")
        path.write_bytes(save(task(kind == "ternary")))
    head_only = Task("golden-head", {}, {"weight": torch.ones(2, 2)})
    (FOLDER / "v1-head.safetensors").write_bytes(save(head_only))
