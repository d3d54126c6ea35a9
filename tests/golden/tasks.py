"""The task in each golden file, ``golden/v*``, which the first release of its version wrote and no later one writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.bits import PackedMask, pack_mask
from piggyback.masks.rule import Form, MaskRule
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.task import Task, TaskInfo
from piggyback.texts.preprocessing import TextPreprocessing

Shapes = Mapping[str, tuple[int, ...]]

SHAPES_1: Shapes = {
    "stem.weight": (8, 3, 3, 3),
    "block.expand.weight": (96, 40, 1, 1),
    "block.depthwise.weight": (96, 1, 3, 3),
    "block.project.weight": (40, 96, 1, 1),
    "gate.weight": (1,),
    "whole.weight": (5, 7),
    "none.weight": (4, 4),
}
SHAPES_2: Shapes = {
    "stem.weight": (4, 3, 3, 3),
    "block.depthwise.weight": (6, 1, 3, 3),
    "fc.weight": (5, 7),
}
SCALES_3, CODES_3 = (0.5, 2.0**-10, 0.0), ((127, -3, 0, 5), (-127, 1, 2, 3), (0, 0, 0, 0))
SCALES_5 = (0.25, 0.0625)
CODES_5 = ((-15, -14, -8, -1, 0, 1, 7, 15), (0, 3, -15, 2, 2, -2, 9, 1))


def value(index: int) -> int:
    """A number in 0..999 that looks random, by integer arithmetic alone."""
    x = (index * 2654435761 + 12345) % 2**32
    x = ((x ^ (x >> 15)) * 2246822519) % 2**32
    return (x ^ (x >> 13)) % 1000


def values_1(name: str, ternary: bool) -> list[int]:
    """A mask of version 1: rows of one layer and columns of another differ in density."""
    shape, found = SHAPES_1[name], []
    for index in range(torch.Size(shape).numel()):
        dropped = 50
        if name == "block.expand.weight":
            dropped = 200 if (index // shape[1]) % 4 == 0 else 8
        if name == "block.project.weight":
            dropped = 200 if (index % shape[1]) % 4 == 0 else 8
        number = value(index + 100_000 * list(SHAPES_1).index(name))
        found.append(0 if number < dropped else -1 if ternary and number % 5 == 0 else 1)
    constant = {"whole.weight": 1, "none.weight": 0}
    return [constant[name]] * len(found) if name in constant else found


def values_2(name: str, ternary: bool) -> list[int]:
    """A mask of version 2, in a pattern."""
    indices = range(torch.Size(SHAPES_2[name]).numel())
    return [0 if i % 7 == 3 else -1 if ternary and i % 5 == 0 else 1 for i in indices]


def coefficients(form: Form, shape: tuple[int, ...]) -> list[float]:
    """Numbers that float32 holds exactly, among them a zero and a negative one."""
    return [0.25, -0.5, 0.0, 1.5] if form == "affine" else [1 - i / 4 for i in range(shape[0])]


def rows(scales: Iterable[float], codes: Iterable[Iterable[int]]) -> list[list[float]]:
    """A head's rows out of the codes and scales that its file holds."""
    return [[s * k for k in row] for s, row in zip(scales, codes, strict=True)]


def packed(values: list[int], shape: tuple[int, ...], ternary: bool) -> PackedMask:
    mask = torch.tensor(values, dtype=torch.int8).view(shape)
    return pack_mask(mask if ternary else mask.bool())


def patterned(shapes: Shapes, every: int, hole: int) -> dict[str, PackedMask]:
    """Binary masks that drop one weight in ``every``."""
    sizes = {name: range(torch.Size(shape).numel()) for name, shape in shapes.items()}
    values = {name: [int(i % every != hole) for i in size] for name, size in sizes.items()}
    return {name: packed(values[name], shape, False) for name, shape in shapes.items()}


def info(masks: Iterable[str], classes: tuple[str, ...], seed: int, **more: object) -> TaskInfo:
    backbone = BackboneInfo("timm:golden", "ab" * 32, dict.fromkeys(masks, "cd" * 32))
    return TaskInfo(classes=classes, **{"backbone": backbone, "provenance": {"seed": seed}, **more})


def task_1(ternary: bool) -> Task:
    """``v1-binary`` and ``v1-ternary``."""
    masks = {name: packed(values_1(name, ternary), s, ternary) for name, s in SHAPES_1.items()}
    head = {
        "weight": torch.arange(12, dtype=torch.float32).view(3, 4) / 8,
        "bias": torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16),
    }
    norm = {} if ternary else {"bn.running_mean": torch.arange(4, dtype=torch.float64) / 4}
    digests = {name: f"{value(i):064x}" for i, name in enumerate(SHAPES_1)}
    about = TaskInfo(
        classes=("stop", "Vorfahrt gewähren", "止まれ"),
        rule=MaskRule("ternary" if ternary else "binary", 0.005),
        preprocessing=Preprocessing(64, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125), "bicubic", 0.875),
        backbone=BackboneInfo("timm:golden", "ab" * 32, digests),
        provenance={"seed": 3, "recipe": {"epochs": 6, "lr": 0.0002}, "note": None, "ok": True},
    )
    return Task("golden", masks, head, norm, about)


def task_2(form: Form) -> Task:
    """``v2-channel``, ternary, and ``v2-affine``: masks with coefficients."""
    ternary = form == "channel"
    masks = {name: packed(values_2(name, ternary), s, ternary) for name, s in SHAPES_2.items()}
    rule = MaskRule("ternary" if ternary else "binary", 0.005, form)
    head = {"weight": torch.arange(6, dtype=torch.float32).view(2, 3) / 8}
    numbers = {n: torch.tensor(coefficients(form, shape)) for n, shape in SHAPES_2.items()}
    return Task("golden", masks, head, {}, info(masks, ("stop", "go"), 3, rule=rule), numbers)


def task_3() -> Task:
    """``v3-short``: a head of int8 rows, one of zeros, and normalisation in float16 and float32."""
    masks = patterned({"stem.weight": (4, 3, 3, 3), "fc.weight": (5, 7)}, 7, 3)
    head = {"weight": torch.tensor(rows(SCALES_3, CODES_3)), "bias": torch.tensor([0.1, -0.2, 0.3])}
    norm = {
        "bn.running_mean": torch.tensor([0.5, -1.25, 3.0]),
        "bn.running_var": torch.tensor([0.1, 1e-9, 7.0]),
    }
    return Task("golden", masks, head, norm, info(masks, ("stop", "go", "yield"), 3))


def task_4() -> Task:
    """``v4-text``: one on texts, with the digest of its tokenizer."""
    masks = patterned({"query.weight": (6, 4), "dense.weight": (4, 6)}, 5, 2)
    head = {"weight": torch.tensor([[0.1, -0.2, 0.3, 0.7], [1.0, 2.0, 3.0, 5.0]])}
    prepared = TextPreprocessing("ef" * 32, max_length=96, pad=1, family="roberta")
    backbone = BackboneInfo("transformers:golden", "ab" * 32, dict.fromkeys(masks, "cd" * 32))
    about = info(masks, ("bad", "good"), 4, preprocessing=prepared, backbone=backbone)
    return Task("golden", masks, head, {}, about)


def task_5() -> Task:
    """``v5-packed``: a head in codes of five bits."""
    masks = patterned({"fc.weight": (8, 3)}, 3, 1)
    head = {"weight": torch.tensor(rows(SCALES_5, CODES_5)), "bias": torch.tensor([0.1, -0.2])}
    return Task("golden", masks, head, {}, info(masks, ("bad", "good"), 5))
