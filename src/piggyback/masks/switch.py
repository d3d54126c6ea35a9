"""The task switch: base weights AND bits -> live weights, for all layers of a model in few operations.

    bits of all layers, a word per row    w0   w1   w2  ...    each layer begins with a new word
    shifted left by 31, 30, ... 0       the bit of each weight is a word's sign
    shifted right by 31                 all ones or all zeros: a block of layers at once, in the cache
    live = base AND that                one operation per layer, or a block of a large one

Small networks have many small layers: what each costs beside its weights is one call, on views made
before. Words are little-endian, as on every machine that torch is built for.

MaskWriter writes a task's masks into tensors; LiveWeights are the masked parameters of a module, which it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TaskStateError
from piggyback.masks.bits import (
    FlatBits,
    FlatMasks,
    PackedMask,
    flat_masks,
    is_dense,
    pack_mask,
    padded,
    to_c_order,
    unpack_mask,
    words,
)
from piggyback.masks.rule import Form, MaskRule, masked_weight

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 23}
"""Weights expanded at once: 2 MiB of float32 words per thread; a GPU wants fewer, larger calls."""
MOST_PLANS = 8
"""Plans that a writer keeps: one for each set of weights that its tasks mask."""

Scratch = dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]]
"""Memory to expand bits in: what brings each bit to the sign, and words."""


class MaskWriter:
    """Writes the masks of tasks into live weights, from base weights of the same names, dtypes and dense layouts.

    It keeps views of the weights: call ``forget`` when one has moved. Writers that share ``scratch``, which is
    megabytes, must not be at work at the same time.

    >>> live, base = {"w": torch.empty(3)}, {"w": torch.tensor([-2.0, 3.0, 4.0])}
    >>> mask = pack_mask(torch.tensor([False, True, True]))
    >>> MaskWriter(live, base).write_(flat_masks({"w": mask}, base)); live["w"]
    tensor([0., 3., 4.])
    """

    def __init__(
        self,
        live: Mapping[str, Tensor],
        base: Mapping[str, Tensor],
        scratch: Scratch | None = None,
    ) -> None:
        self._live, self._base = live, base
        self._scratch: Scratch = {} if scratch is None else scratch
        self._plans: dict[tuple[str, ...], _Plan] = {}

    @torch.no_grad()
    def write_(
        self,
        masks: FlatMasks,
        coefficients: Mapping[str, Tensor] | None = None,
        form: Form = "plain",
    ) -> None:
        """Make the live weights of ``masks`` W m, with exact zeros, or what ``form`` makes of W, m and coefficients.

        Base weights are only read. Other live weights stay as they are.
        """
        if coefficients:
            for name, numbers in coefficients.items():
                weight = self._base[name]
                mask = unpack_mask(masks[name]).as_strided(weight.shape, weight.stride())
                self._live[name].copy_(formed_weight(weight, mask, numbers, form))
            return
        for bits in masks.parts:
            plan = self._plans.get(bits.names)
            if plan is None:
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                live = [self._live[name] for name in bits.names]
                base = [self._base[name] for name in bits.names]
                # Views made in inference mode would be read-only outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    plan = self._plans[bits.names] = _Plan(live, base, self._scratch)
            plan.write_(bits)

    def forget(self) -> None:
        """Take views of the weights anew at the next write."""
        self._plans.clear()


class LiveWeights:
    """The masked parameters of a module, ``params``, and what the backbone came with, ``base``, by name.

    Masks that it writes or captures are in the weights' order of memory; ``to_memory_order`` and ``to_c_order``
    convert from and to the C order of task files.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self._module = module
        self.params: dict[str, nn.Parameter] = {}
        self.base: dict[str, Tensor] = {}
        self._writer: MaskWriter | None = None
        self._places: list[Any] = []  # where the live weights lay when the writer was made
        self.cover(names)

    @torch.no_grad()
    def cover(self, names: Iterable[str]) -> None:
        """Keep the base weights of ``names`` too; they must be unmasked at that moment."""
        for name in names:
            if name not in self.base:
                param = self._module.get_parameter(name)
                if not is_dense(param):
                    param.data = param.data.contiguous()
                self.params[name] = param
                with torch.inference_mode(False), torch.no_grad():  # else nothing trains through it
                    self.base[name] = param.detach().clone()

    def base_of(self, param: Tensor) -> Tensor:
        """Return the base weight of a live parameter."""
        for name, live in self.params.items():
            if live is param:
                return self.base[name]
        raise InputError(f"a {tuple(param.shape)} tensor is not one of the masked weights")

    @torch.no_grad()
    def write_(
        self,
        masks: Mapping[str, PackedMask],
        coefficients: Mapping[str, Tensor] | None = None,
        form: Form = "plain",
    ) -> None:
        """Make the live weights those of a task; a weight without a mask becomes the base weight.

        ``coefficients`` are those of the masked weights, on their device, where ``form`` has any.
        """
        places = [(p.data_ptr(), p.dtype, p.stride()) for p in self.params.values()]
        if self._writer is None or places != self._places:
            self._check_layout()
            self._writer, self._places = MaskWriter(self.params, self.base), places
        flat = masks if isinstance(masks, FlatMasks) else FlatMasks(masks, self.base)
        self._writer.write_(flat, coefficients, form)
        for name, param in self.params.items():
            if name not in masks:
                param.copy_(self.base[name])

    @torch.no_grad()
    def capture(self, names: Iterable[str], rule: MaskRule) -> dict[str, PackedMask]:
        """Return the masks, in order of memory, that turn the base weights into what the modules hold now.

        A weight that is the same kept or not, such as 0, counts as kept. Raises TaskStateError where a live weight
        is not W times any m of the rule: something else than a MaskOptimizer has changed it.
        """
        self._check_layout()
        masks = {}
        for name in names:
            live, base = words(self.params[name]), words(self.base[name])
            mask = live == base
            known = mask | (live == 0)
            if rule.kind == "ternary":
                sign = torch.iinfo(base.dtype).min
                negative = (live == base ^ sign) & ~mask
                known |= negative
                mask = mask.to(torch.int8) - negative.to(torch.int8)
            if not known.all():
                raise TaskStateError(
                    f"weight {name!r}: {int((~known).sum())} of {known.numel()} values are neither kept nor "
                    "masked out; expected base weights times a mask: train it in a group with masked=True "
                    "of a MaskOptimizer, and take no average (EMA, SWA), which is no mask"
                )
            packed = pack_mask(mask)
            masks[name] = PackedMask(tuple(self.base[name].shape), packed.keep, packed.negative)
        return masks

    def to_memory_order(self, masks: Mapping[str, PackedMask]) -> FlatMasks:
        """Return C-order masks on the weights' device, in their order of memory."""
        return flat_masks(masks, self.base)

    def to_c_order(self, masks: Mapping[str, PackedMask]) -> dict[str, PackedMask]:
        """Return masks as ``to_memory_order`` took them."""
        return {name: to_c_order(mask, self.base[name]) for name, mask in masks.items()}

    def apply(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follow the module after ``nn.Module._apply`` moved it: the base weights get the same treatment."""
        self._writer = None
        self.base = {name: move(base) for name, base in self.base.items()}
        self.params = {name: self._module.get_parameter(name) for name in self.base}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}  # its views would be copied as weights

    def _check_layout(self) -> None:
        for name, param in self.params.items():
            base = self.base[name]
            here, there = ((w.dtype, w.device, w.stride()) for w in (param, base))
            if here != there:
                raise TaskStateError(
                    f"weight {name!r} is now {param.dtype} on {param.device} with strides {param.stride()}, "
                    f"its base weight {base.dtype} on {base.device} with strides {base.stride()}: "
                    "move the MultiTaskModel itself, not the module in it"
                )


def formed_weight(base: Tensor, mask: Tensor, coefficients: Tensor, form: Form) -> Tensor:
    """Return the live weight of a ``channel`` or ``affine`` form (see ``Form``) in ``base``'s dtype and shape.

    It is always computed anew from the base weight, in float32 (float64 where W is), in the order of the formula and
    with one rounding an operation: so a switch, a baked model and another machine agree to the bit.

    >>> base, mask = torch.tensor([[-2.0, 3.0]]), torch.tensor([[False, True]])
    >>> formed_weight(base, mask, torch.tensor([0.5]), "channel")
    tensor([[0.0000, 1.5000]])
    >>> formed_weight(base, mask, torch.tensor([1.0, 0.5, 0.25, 2.0]), "affine")
    tensor([[-1.5000,  9.7500]])
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    weight, k = base.to(wide), coefficients.to(wide)
    kept = masked_weight(weight, mask)
    if form == "channel":
        return (kept * k.reshape(k.shape + (1,) * (base.ndim - 1))).to(base.dtype)
    made = weight * k[0] + k[1]
    made += mask.to(wide) * k[2]
    made += kept * k[3]
    return made.to(base.dtype)


# -- the fast path of W m ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    rows: slice
    """Of the bits as words."""
    expanded: Tensor
    """(rows, bits of a word)"""
    pieces: list[tuple[Tensor, Tensor, Tensor]]
    """Live weights, base weights and expanded bits of a layer or a part of one, flat."""


class _Plan:
    """Writes W m into the live weights of some layers of one dtype and device, through views made before."""

    def __init__(self, live: Sequence[Tensor], base: Sequence[Tensor], scratch: Scratch) -> None:
        like = words(base[0])
        self._dtype, width = like.dtype, 8 * like.element_size()
        self._last = width - 1
        self._lift = torch.mul if width == 16 else torch.bitwise_left_shift
        room = BLOCK.get(like.device.type, BLOCK["cuda"])
        if like.device.type == "cpu":
            room *= min(torch.get_num_threads(), 4)
        rows = min(room, sum(8 * padded(-(-weight.numel() // 8)) for weight in base)) // width
        held = scratch.get((like.dtype, like.device))
        if held is None or len(held[1]) < rows:
            by = torch.arange(width - 1, -1, -1, dtype=like.dtype, device=like.device)
            if width == 16:  # a product by a power of two, since torch shifts these half as fast
                by = torch.ones_like(by) << by
            held = scratch[like.dtype, like.device] = by, like.new_empty(rows, width)
        self._by, expanded = held
        views = [words(w) for w in live], [words(w) for w in base]
        self._blocks = list(_blocks(*views, expanded[:rows]))

    def write_(self, bits: FlatBits) -> None:
        """Write the live weights of these bits, whose masks are in the order of the layers."""
        keep = bits.keep.view(self._dtype).unsqueeze(1)
        negative = None
        if bits.negative is not None:
            negative = bits.negative.view(self._dtype).unsqueeze(1)
        for block in self._blocks:
            self._lift(keep[block.rows], self._by, out=block.expanded)
            block.expanded.bitwise_right_shift_(self._last)
            for live, base, expanded in block.pieces:
                torch.bitwise_and(base, expanded, out=live)
            if negative is not None:
                self._lift(negative[block.rows], self._by, out=block.expanded)
                block.expanded.bitwise_and_(torch.iinfo(self._dtype).min)
                for live, _, signs in block.pieces:
                    live.bitwise_xor_(signs)


def _blocks(live: list[Tensor], base: list[Tensor], expanded: Tensor) -> Iterator[_Block]:
    """Cut layers into blocks of as many weights as ``expanded`` has room for."""
    room, width = expanded.numel(), expanded.shape[1]
    start = used = 0
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for out, source in zip(live, base, strict=True):
        done = 0
        while done < len(out):
            take = min(len(out) - done, room - used)
            part = slice(done, done + take)
            pieces.append((out[part], source[part], expanded.view(-1)[used : used + take]))
            done += take
            used += 8 * padded(-(-take // 8))
            if used == room:
                yield _Block(slice(start, start + used // width), expanded, pieces)
                start, used, pieces = start + used // width, 0, []
    if pieces:
        yield _Block(slice(start, start + used // width), expanded[: used // width], pieces)


def keep_above_(out: Tensor, base: Tensor, values: Tensor, threshold: float) -> None:
    """Write ``base`` where ``values > threshold``, else 0, into ``out``; all of one dtype, device and layout.

    ``masked_weight`` of a binary mask in one pass over memory; it differs for NaN only, which keeps the weight.

    >>> out = torch.empty(2)
    >>> keep_above_(out, torch.tensor([-2.0, 3.0]), torch.tensor([0.006, 0.005]), threshold=5e-3)
    >>> out
    tensor([-2.,  0.])
    """
    if out.device.type in ("cpu", "cuda"):
        # The gradient of ``torch.threshold`` selects so, four times as fast as ``torch.where`` on a CPU.
        torch.ops.aten.threshold_backward.grad_input(base, values, threshold, grad_input=out)
    else:
        torch.where(values > threshold, base, base.new_zeros(()), out=out)
