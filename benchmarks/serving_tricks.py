"""What each way of running the network gives by itself: one plain network, one thread, against float32 as it comes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Settings, compare
from benchmarks.serving_parts import Part
from benchmarks.serving_setup import Bench, say

BATCHES = (1, 8, 32)
TRICKS = ("channels_last", "bfloat16", "channels_last and bfloat16")


@torch.inference_mode()
def measure(bench: Bench) -> Part:
    """Return a row per trick and batch: images per second, and how many times those of float32, NCHW."""
    backbone = bench.network()
    plain, side = backbone.module.eval(), bench.side(backbone)
    settings, before = Settings(torch.device("cpu"), bench.quick), torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker of the engine on a machine with few cores
    rows: list[dict[str, Any]] = []
    for trick in TRICKS:
        network = _made(plain, trick)
        for batch in BATCHES:
            x = torch.randn(batch, 3, side, side)
            own = x.bfloat16() if "bfloat16" in trick else x
            if "channels_last" in trick:
                own = own.contiguous(memory_format=torch.channels_last)
            pair = compare(
                lambda network=network, own=own: network(own),
                lambda x=x: plain(x),
                settings,
                repeats=15,
            )
            ours, theirs = batch / pair.ours, batch / pair.theirs
            rows.append(
                {
                    "trick": trick,
                    "batch": batch,
                    "images/s": round(ours, 1),
                    "without": round(theirs, 1),
                    "times": round(1 / pair.ratio, 2),
                }
            )
            say(f"tricks: {trick}, batch {batch}: {1 / pair.ratio:.2f}")
    torch.set_num_threads(before)
    instructions = torch.backends.cpu.get_cpu_capability()
    return Part("tricks", rows, (), f"{backbone.source}, {side} px, one thread, {instructions}.")


def _made(plain: nn.Module, trick: str) -> nn.Module:
    network = copy.deepcopy(plain)
    if "channels_last" in trick:
        network = network.to(memory_format=torch.channels_last)
    return network.to(torch.bfloat16) if "bfloat16" in trick else network
