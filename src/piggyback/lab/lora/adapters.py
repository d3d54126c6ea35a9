"""LoRA's adapters: which layers get one, of which rank, how many bytes that is, and how PEFT puts them in.

    W' = W + B A           A: (rank, inputs * kernel), B: (outputs, rank); W stays as it is

B starts at 0, so that training starts from the backbone (Hu et al. 2022). PEFT computes W x + B (A x).
"""

from __future__ import annotations

import bisect
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, require

Layer: TypeAlias = "nn.Linear | nn.Conv2d"

_ADAPTER = "default"
"""PEFT's name for the only adapter that a layer has."""


def find_layers(
    network: nn.Module, weights: Iterable[str], example: Tensor | None = None
) -> dict[str, Layer]:
    """Return the layers among those of ``weights`` that PEFT can adapt, by name; the others are to be left alone.

    These are linear layers and two-dimensional convolutions. Left alone are

    - subclasses that make something else of their weight, such as standardised convolutions;
    - dilated convolutions, for PEFT's A has no dilation;
    - grouped convolutions where PEFT's smallest adapter (its A has no groups, and a rank that is a multiple of them)
      is not smaller than the weight itself: all depthwise ones;
    - with ``example``: layers that are not called when the network, in eval mode, sees such a batch, because other
      code reads their weight.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 5))
    >>> list(find_layers(net, ["0.weight", "1.weight", "3.weight"]))
    ['0', '3']
    """
    layers: dict[str, Layer] = {}
    for weight in weights:
        name, _, key = weight.rpartition(".")
        layer = network.get_submodule(name)
        if name and key == "weight" and _can_adapt(layer):
            layers[name] = layer  # type: ignore[assignment]
    if example is None or not layers:
        return layers
    called: set[str] = set()

    def see(name: str, *_: Any) -> None:
        called.add(name)

    handles = [layer.register_forward_hook(partial(see, name)) for name, layer in layers.items()]
    first = next(iter(layers.values())).weight
    try:
        with torch.no_grad():
            network(example.to(first.device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer for name, layer in layers.items() if name in called}


def own_ranks(layers: Mapping[str, Layer], rank: int) -> dict[str, int]:
    """Return each layer's rank where ``rank`` is asked for all.

    A grouped convolution takes the next multiple of its groups; none takes more than its weight can have.

    >>> own_ranks({"stem": nn.Conv2d(3, 8, 1), "grouped": nn.Conv2d(8, 8, 3, groups=2)}, 5)
    {'stem': 3, 'grouped': 6}
    """
    return {name: _own_rank(layer, rank) for name, layer in layers.items()}


def adapter_shapes(layer: Layer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of an adapter's A and B.

    >>> adapter_shapes(nn.Conv2d(16, 8, 3, groups=2), 4)
    ((4, 16, 3, 3), (8, 2, 1, 1))
    """
    if isinstance(layer, nn.Linear):
        return (rank, layer.in_features), (layer.out_features, rank)
    return (
        (rank, layer.in_channels, *layer.kernel_size),
        (layer.out_channels, rank // layer.groups, 1, 1),
    )


def adapter_bytes(layers: Mapping[str, Layer], rank: int) -> int:
    """Return the bytes of all adapters of ``rank``, stored in the dtype of the weights.

    >>> adapter_bytes({"fc": nn.Linear(10, 6)}, 2)  # (10 + 6) * 2 numbers in float32
    128
    """
    return sum(
        math.prod(shape) * layer.weight.element_size()
        for layer in layers.values()
        for shape in adapter_shapes(layer, _own_rank(layer, rank))
    )


def largest_rank(layers: Mapping[str, Layer], budget: int) -> int:
    """Return the largest rank whose adapters fit into ``budget`` bytes.

    Raises InputError, with the bytes that rank 1 needs, where not even that fits.

    >>> largest_rank({"fc": nn.Linear(10, 6)}, 200)
    3
    """
    top = max((_full_rank(layer) for layer in layers.values()), default=1)
    bytes_of = partial(adapter_bytes, layers)
    rank = bisect.bisect_right(range(1, top + 1), budget, key=bytes_of)
    if not rank:
        raise InputError(
            f"lora_bytes {budget}: adapters of rank 1 on {len(layers)} layers need {bytes_of(1)} bytes; "
            "allow that many, or select fewer weights"
        )
    return rank


def adapt_(
    network: nn.Module, ranks: Mapping[str, int], alphas: Mapping[str, float] | None = None
) -> None:
    """Let PEFT put an adapter of its rank on each named layer of ``network``, in place, and freeze all else.

    What an adapter adds is multiplied by alpha / rank; alpha is the rank where it is not given. Raises
    MissingExtraError without PEFT.
    """
    peft = require("peft", "peft")
    # Patterns that match one layer each: names in a list would match all that end so.
    config = peft.LoraConfig(
        target_modules="|".join(map(re.escape, ranks)),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(name)}": alpha for name, alpha in (alphas or ranks).items()},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*groups > 1. Merging is not supported")
        peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)


def adapter_tensors(network: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters in an adapted network, as ``LAYER.lora_A.weight`` and ``LAYER.lora_B.weight``."""
    return {
        f"{name}.{part}.weight": network.get_parameter(f"{name}.{part}.{_ADAPTER}.weight")
        for name in names
        for part in ("lora_A", "lora_B")
    }


def _can_adapt(layer: nn.Module) -> bool:
    """Whether it multiplies with its weight as it is, as PEFT's A does, which also saves something."""
    if type(layer) is nn.Linear:
        return True
    # timm's own class for TensorFlow's padding, which depends on the image
    plain = type(layer) is nn.Conv2d or type(layer).__name__ == "Conv2dSame"
    if not plain or not isinstance(layer, nn.Conv2d):
        return False
    if max(layer.dilation) > 1 and max(layer.kernel_size) > 1:
        return False
    smallest = sum(map(math.prod, adapter_shapes(layer, layer.groups)))
    return layer.groups == 1 or smallest < layer.weight.numel()


def _full_rank(layer: Layer) -> int:
    """The largest rank that means anything; a multiple of the groups."""
    down, up = adapter_shapes(layer, 1)
    return min(math.prod(down), up[0])


def _own_rank(layer: Layer, rank: int) -> int:
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return min(-(-rank // groups) * groups, _full_rank(layer))
