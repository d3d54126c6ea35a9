"""Training images a second: masks, as this package trains by default, against the usual loop of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import Side, batch, finetune_side, masks_side, network
from piggyback.train.device import Speed, speed_of
from piggyback.train.recipe import Recipe

AIM = 2.5


def rows(settings: Settings) -> list[Row]:
    """Return one row: the settings that ``train`` takes by default on this machine against eager float32 in NCHW."""
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

    speed = speed_of(recipe, backbone, x.device)
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
            note=f"batch 32, 128 px; {speed}",
        )
    ]


def _step(side: Side, x: Tensor, y: Tensor, speed: Speed) -> None:
    side.optimizer.zero_grad()
    with speed.autocast(x.device):
        loss = F.cross_entropy(side.network(speed.laid_out(x)).float(), y)
    loss.backward()
    side.optimizer.step()


if __name__ == "__main__":
    main("images")
