"""Where a run computes, and how: the processes that train together, their device, precision and memory layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import Tensor, nn

from piggyback.network.hardware import multiplies_bfloat16
from piggyback.train.recipe import Recipe


def processes() -> PartialState:
    """Return Accelerate's state: the device, this process's index, the number of processes.

    One process on one device, unless a launcher (``accelerate launch``, ``torchrun``) has started several.
    ``ACCELERATE_USE_CPU=1`` keeps it off an accelerator.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


def agree_(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's ``tensors``, in place; batch statistics differ else."""
    if processes().num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all processes."""
    if processes().num_processes == 1:
        return tensor
    total: Tensor = reduce(tensor, "sum")
    return total


def gathered(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes one after another, on the CPU; n may differ between them."""
    if processes().num_processes == 1:
        return rows.cpu()
    from accelerate.utils import gather_object

    return torch.cat(gather_object([rows.cpu()]))


@dataclass(frozen=True)
class Speed:
    """How to run the network.

    >>> Speed("bf16", channels_last=True)
    Speed(amp='bf16', channels_last=True)
    """

    amp: str = "no"
    channels_last: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context that forward passes run in."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.amp == "bf16")

    def laid_out(self, x: Tensor) -> Tensor:
        """Return images (n, 3, s, s) in the order of memory that the network is in."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def speed_of(recipe: Recipe, network: nn.Module, device: torch.device) -> Speed:
    """Return how to run ``network`` on ``device``: as the recipe says, else by what both are.

    channels_last is the faster order for convolutions on every processor and GPU that was measured. bfloat16 pays
    where the hardware multiplies it and a network consists of dense products; depthwise convolutions, which most of
    the time of mobile networks goes into, are slower in it on a CPU. See docs/BENCHMARKS.md.

    A default and no stopwatch: the same run gives the same numbers on two machines of a kind, and starts at once.

    >>> speed_of(Recipe(amp="no"), nn.Sequential(nn.Conv2d(3, 8, 3)), torch.device("cpu"))
    Speed(amp='no', channels_last=True)
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    depthwise = any(m.groups == m.in_channels > 1 for m in convolutions)
    amp, order = recipe.amp, recipe.channels_last
    if amp == "auto":
        fast = multiplies_bfloat16(device) and not (device.type == "cpu" and depthwise)
        amp = "bf16" if fast else "no"
    return Speed(amp, bool(convolutions) if order == "auto" else order == "yes")
