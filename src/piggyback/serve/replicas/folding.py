"""Batch norm that only scales and shifts, made part of the convolution before it.

    batch norm, in eval mode     y = (x - mean) s + b        s = weight / sqrt(var + eps)
    after a convolution          W' = W m s = (W s) m        so the base weights are scaled once, and masks
                                 b' = (conv.bias - mean) s + b                        work as they did

A task with statistics, scale or shift of its own has its own s and b'. What may be folded is found by running the
network once; that the folded network gives the same outputs is checked by running both.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piggyback.network.frozen import replace_module

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, that rounding is held to explain."""

_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """A convolution, and the batch norm that takes its outputs."""

    conv: str
    norm: str
    eps: float
    channels: int

    @property
    def weight(self) -> str:
        """Name of the convolution's weights, which get the scale."""
        return f"{self.conv}.weight"

    @property
    def bias(self) -> str:
        """Name of what takes the shift: the convolution's bias, which it may not have had."""
        return f"{self.conv}.bias"

    @property
    def sources(self) -> tuple[str, ...]:
        """Names, in the unfolded network, of what scale and shift are made of, as far as it has them."""
        of_norm = ("weight", "bias", "running_mean", "running_var")
        return (*(f"{self.norm}.{key}" for key in of_norm), self.bias)


def find_pairs(module: nn.Module, inputs: Tensor) -> list[Pair]:
    """Return the pairs met when ``module``, in eval mode, runs on ``inputs``: a norm's input is a convolution's output.

    Modules that are called twice and tied weights are left out. Whether anything else uses a convolution's output
    is not looked at: see ``agree``.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> find_pairs(net, torch.zeros(1, 3, 4, 4))
    [Pair(conv='0', norm='1', eps=1e-05, channels=8)]
    """
    names = {child: name for name, child in module.named_modules()}
    calls: dict[nn.Module, int] = {}
    made: dict[
        int, tuple[nn.Module, Tensor]
    ] = {}  # the tensors are kept, or their ids would be used again
    taken: dict[nn.Module, list[nn.Module]] = {}

    def after(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] = calls.get(conv, 0) + 1
        made[id(output)] = (conv, output)

    def before(norm: nn.Module, args: tuple[Any, ...]) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        if args and id(args[0]) in made:
            taken.setdefault(made[id(args[0])][0], []).append(norm)

    hooks = [m.register_forward_hook(after) for m in names if isinstance(m, _CONVOLUTIONS)]
    hooks += [m.register_forward_pre_hook(before) for m in names if _activation(m) is not None]
    try:
        with torch.no_grad():
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    uses = [id(p) for _, p in module.named_parameters(remove_duplicate=False)]
    return [
        Pair(names[conv], names[norms[0]], norms[0].eps, conv.out_channels)  # type: ignore[arg-type]
        for conv, norms in taken.items()
        if len(norms) == 1
        and calls[conv] == calls[norms[0]] == 1
        and uses.count(id(conv.weight)) == 1
    ]


class Folds:
    """The pairs of a network that were folded, and the scales and shifts of its tasks."""

    def __init__(self, pairs: Sequence[Pair], state: Mapping[str, Tensor]) -> None:
        """``state`` has the unfolded network's tensors; those of the pairs' ``sources`` are kept, in float32."""
        self.pairs = {pair.weight: pair for pair in pairs}
        """By the name of the convolution's weights."""
        self.biases = frozenset(pair.bias for pair in pairs)
        self.sources = {
            name: state[name].detach().float().cpu().clone()
            for pair in pairs
            for name in pair.sources
            if name in state
        }
        """The unfolded network's tensors that scales and shifts are made of, by name."""

    def scale_and_shift(
        self, weight: str, own: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return s and b', float32 of shape (channels,), of a convolution; ``own`` replaces some of ``sources``."""
        pair, changed = self.pairs[weight], own or {}
        one, zero = torch.ones(pair.channels), torch.zeros(pair.channels)
        absent = (one, zero, zero, one, zero)
        norm_weight, norm_bias, mean, var, conv_bias = (
            changed.get(name, self.sources.get(name, default)).float().cpu()
            for name, default in zip(pair.sources, absent, strict=True)
        )
        scale = norm_weight / torch.sqrt(var + pair.eps)
        return scale, (conv_bias - mean) * scale + norm_bias


@torch.no_grad()
def fold_(module: nn.Module, pairs: Sequence[Pair]) -> Folds:
    """Fold the pairs of ``module`` in place: names of convolutions' weights stay, norms give way to activations."""
    folds = Folds(pairs, module.state_dict())
    for weight, pair in folds.pairs.items():
        scale, shift = folds.scale_and_shift(weight)
        conv = module.get_submodule(pair.conv)
        live = conv.get_parameter("weight")
        live.mul_(over_rows(scale, live))
        conv.bias = nn.Parameter(shift.to(live.device, live.dtype), requires_grad=False)
        after = _activation(module.get_submodule(pair.norm))
        replace_module(module, pair.norm, after or nn.Identity())
    return folds


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as the matrix product it is: quicker where the channels of a pixel lie side by side.

    >>> conv = nn.Conv2d(3, 8, 1)
    >>> x = torch.randn(2, 3, 4, 4)
    >>> torch.allclose(Pointwise.like(conv)(x), conv(x), atol=1e-6)
    True
    """

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Return whether a module is a 1x1 convolution, of stride 1, without padding or groups."""
        return (
            type(module) is nn.Conv2d
            and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)
            and module.padding in ((0, 0), "valid", "same")
        )

    @staticmethod
    def like(conv: nn.Conv2d) -> Pointwise:
        """Return a module with the very parameters of ``conv``."""
        made = Pointwise(conv.in_channels, conv.out_channels, 1, bias=False, device="meta")
        made.weight, made.bias, made.training = conv.weight, conv.bias, conv.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Return what a convolution does."""
        weight = self.weight.view(self.out_channels, self.in_channels)
        return F.linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)


def pointwise_(module: nn.Module, head: str) -> int:
    """Replace the 1x1 convolutions of ``module`` but the head, in place; return how many."""
    found = {n: m for n, m in module.named_modules() if Pointwise.fits(m)}
    for name, conv in found.items():
        if name and name != head and not name.startswith(f"{head}."):
            replace_module(module, name, Pointwise.like(conv))
    return sum(isinstance(m, Pointwise) for m in module.modules())


@torch.no_grad()
def agree(one: nn.Module, other: nn.Module, names: Collection[str], inputs: Tensor) -> bool:
    """Return whether two networks give the same outputs, with their weights and with a random mask over ``names``."""
    # A GPU's shorter convolutions (TF32) differ by more than what folding changes.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return _agree(one, other, names, inputs)


def _agree(one: nn.Module, other: nn.Module, names: Collection[str], inputs: Tensor) -> bool:
    if not _same(one, other, inputs):
        return False
    if not names:
        return True
    one, other = copy.deepcopy(one), copy.deepcopy(other)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        weight = one.get_parameter(name)
        keep = (torch.rand(weight.shape, generator=generator) < 0.8).to(weight)
        weight.mul_(keep)
        other.get_parameter(name).mul_(keep)
    return _same(one, other, inputs)


def over_rows(numbers: Tensor, weight: Tensor) -> Tensor:
    """Return ``numbers``, one for each first index of ``weight``, where it is, so that they multiply its rows."""
    return numbers.to(weight.device).view(weight.shape[:1] + (1,) * (weight.ndim - 1))


def _same(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    wanted = one(inputs)
    try:
        found = other(inputs)
    except (RuntimeError, AttributeError, TypeError):  # a network that looks into its norms
        return False
    if not isinstance(wanted, Tensor) or wanted.shape != found.shape:
        return False
    return bool((wanted - found).abs().max() <= TOLERANCE * wanted.abs().max())  # False for NaN


def _activation(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch norm when scale and shift are gone; None for other modules."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return None
    if type(norm) in _PLAIN_NORMS:
        return nn.Identity()
    drop, act = getattr(norm, "drop", None), getattr(norm, "act", None)  # timm's BatchNormAct2d
    if not isinstance(drop, nn.Module) or not isinstance(act, nn.Module):
        return None
    return act if isinstance(drop, nn.Identity) else nn.Sequential(drop, act)
