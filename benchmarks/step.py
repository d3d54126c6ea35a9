"""A training step of masks against one of full fine-tuning: same network, batch, optimizer and normalisation."""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import batch, finetune_side, masks_side, network

AIM = 1.05
SIDES = {"resnet50": 128, "efficientnet_lite0": 64}
"""Pixels; the smaller the images, the larger the optimizer's share of a step."""


def rows(settings: Settings) -> list[Row]:
    """Return a row for each network, at the image size that its training images a second are quoted for."""
    return [_row(name, settings) for name in settings.networks]


def _row(name: str, settings: Settings) -> Row:
    backbone = network(name, settings)
    side = SIDES.get(name, 64)
    x, y = batch(settings, 32, side)
    masks, whole = masks_side(backbone, fused=True), finetune_side(backbone)
    pair = compare(lambda: masks.step(x, y), lambda: whole.step(x, y), settings, repeats=9)
    note = f"batch 32, {side} px, fused Adam, float32, batch norm trained on both sides"
    return Row(f"step {name}", pair.ratio, AIM, pair.ours, pair.theirs, "s/step", note=note)


if __name__ == "__main__":
    main("step")
