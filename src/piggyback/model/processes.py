"""Several processes that learn one task together: what DistributedDataParallel leaves to be looked after."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from piggyback.masks.bits import words


def several() -> bool:
    """Return whether this is one of several processes of torch.distributed."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def calling_ddp() -> DistributedDataParallel | None:
    """Return the DistributedDataParallel of several processes that this forward pass runs in, if it runs in one.

    Torch tells a module nothing of what wraps it, so the calls under way are looked through.
    """
    if not several():
        return None
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, DistributedDataParallel):
            return caller if dist.get_world_size(caller.process_group) > 1 else None
        frame = frame.f_back
    return None


def first_other(tensors: Mapping[str, Tensor], ddp: DistributedDataParallel) -> str | None:
    """Return the name of a tensor that is not the same in all processes, by sums of its bits; None if all are."""
    with torch.no_grad():
        mine = torch.stack([words(t.detach().contiguous()).sum() for t in tensors.values()])
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(ddp.process_group))]
        dist.all_gather(every, mine, group=ddp.process_group)
        same = (torch.stack(every) == mine).all(0).tolist()
    return next((name for name, equal in zip(tensors, same, strict=True) if not equal), None)


@torch.no_grad()
def average_(tensors: Iterable[Tensor], ddp: DistributedDataParallel) -> None:
    """Give each tensor the mean of all processes, past autograd: a backward pass may have kept it."""
    for tensor in tensors:
        dist.all_reduce(tensor.data, group=ddp.process_group)
        tensor.data.div_(dist.get_world_size(ddp.process_group))
