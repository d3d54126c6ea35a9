"""Training images a second: masks, as this package trains by default, against the usual loop of fine-tuning."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import Side, batch, finetune_side, masks_side, network
from piggyback.train.recipe import Recipe
from piggyback.train.speed import Speed, candidates, choose

AIM = 2.5


def rows(settings: Settings) -> list[Row]:
    """Return one row: the settings that ``train`` would choose on this machine against eager float32 in NCHW."""
    name = settings.networks[0]
    backbone = network(name, settings)
    x, y = batch(settings, 32, 128)
    recipe = Recipe()
    net = finetune_side(backbone).network
    whole = Side(net, torch.optim.Adam(net.parameters(), lr=1e-4))

    def prepared(speed: Speed) -> Callable[[], None]:
        side = masks_side(
            backbone,
            torch.optim.AdamW,
            norm=recipe.norm,
            channels_last=speed.channels_last,
            fused=True,
        )
        return lambda: _step(side, x, y, speed)

    with _own_cache():
        speed = choose(candidates(recipe), {"benchmark": name}, prepared)
    pair = compare(prepared(speed), lambda: whole.step(x, y), settings, repeats=5)
    return [
        Row(
            f"images/s {name}",
            1 / pair.ratio,
            AIM,
            len(x) / pair.ours,
            len(x) / pair.theirs,
            "images/s",
            at_least=True,
            note=f"batch 32, 128 px; chosen: {speed}",
        )
    ]


def _step(side: Side, x: Tensor, y: Tensor, speed: Speed) -> None:
    side.optimizer.zero_grad()
    if speed.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, speed.dtype, enabled=speed.amp != "no"):
        loss = F.cross_entropy(side.network(x).float(), y)
    loss.backward()
    side.optimizer.step()


@contextmanager
def _own_cache() -> Iterator[None]:
    """Measure anew, and leave the choices that training has remembered alone."""
    before = os.environ.get("PIGGYBACK_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PIGGYBACK_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["PIGGYBACK_CACHE"]
            if before is not None:
                os.environ["PIGGYBACK_CACHE"] = before


if __name__ == "__main__":
    main("images")
