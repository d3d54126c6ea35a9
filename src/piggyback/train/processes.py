"""The processes that train together, and the device of this one, as Accelerate finds them.

One process on one device, unless a launcher (``accelerate launch``, ``torchrun``) has started
several.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import Tensor


def processes() -> PartialState:
    """Return Accelerate's state: the device, this process's index, the number of processes.

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
