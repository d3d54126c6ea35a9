"""Bytes of weights, gradients and optimizer state after a training step: masks against full fine-tuning with Adam.

Per weight, fine-tuning holds W, its gradient and Adam's two means: 16 bytes. Masks hold live and base weights, the
gradient, the scores and their two means: 24. The weights of a frozen backbone are never added to, so they lose nothing
in training by being bfloat16, and scores stay float32 anyway: with RMSprop, which keeps one mean, 14 bytes are left.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.command import main
from benchmarks.measure import Row, Settings
from benchmarks.networks import CLASSES, Side, batch, finetune_side, masks_side, network

AIM, LOW_AIM = 1.5, 1.0


def rows(settings: Settings) -> list[Row]:
    """Return a row for float32 with Adam, and one for the same backbone in bfloat16 with RMSprop."""
    name = settings.networks[0]
    backbone = network(name, settings)
    backbone.reset_classifier(CLASSES)  # masks keep the backbone's own as well, however large
    x, y = batch(settings, 2, 64)
    whole = _held(lambda: finetune_side(backbone), x, y)
    masks = _held(lambda: masks_side(backbone, fused=True), x, y)
    small = backbone.to(torch.bfloat16)
    low = _held(lambda: masks_side(small, torch.optim.RMSprop), x.to(torch.bfloat16), y)
    return [
        _row(f"memory {name}", masks, whole, AIM, "float32, Adam"),
        _row(f"memory low {name}", low, whole, LOW_AIM, "bfloat16 backbone, RMSprop on the scores"),
    ]


def _row(name: str, ours: int, theirs: int, aim: float, note: str) -> Row:
    return Row(name, ours / theirs, aim, ours / 2**20, theirs / 2**20, "MiB", note=note)


def _held(make: Callable[[], Side], x: Tensor, y: Tensor) -> int:
    """Bytes of all tensors that a side has brought into being, when it has made a step and holds its gradients."""
    before = _tensor_bytes()
    side = make()
    side.step(x, y)
    return _tensor_bytes() - before


def _tensor_bytes() -> int:
    gc.collect()
    alive = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    alive += [item.grad for item in alive if item.is_leaf and item.grad is not None]
    storages = [tensor.untyped_storage() for tensor in alive]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


if __name__ == "__main__":
    main("memory")
