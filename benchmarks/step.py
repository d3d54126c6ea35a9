"""A training step of masks against one of full fine-tuning: same network, batch, optimizer and normalisation."""

from __future__ import annotations

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import batch, finetune_side, masks_side, network

AIM = 1.05


def rows(settings: Settings) -> list[Row]:
    """Return a row for each network; images are small, so the optimizer's share of the step is large."""
    return [_row(name, settings) for name in settings.networks]


def _row(name: str, settings: Settings) -> Row:
    backbone = network(name, settings)
    x, y = batch(settings, 32, 64)
    masks, whole = masks_side(backbone, fused=True), finetune_side(backbone)
    pair = compare(lambda: masks.step(x, y), lambda: whole.step(x, y), settings, repeats=11)
    note = "batch 32, 64 px, fused Adam, float32, batch norm trained on both sides"
    return Row(f"step {name}", pair.ratio, AIM, pair.ours, pair.theirs, "s/step", note=note)


if __name__ == "__main__":
    main("step")
