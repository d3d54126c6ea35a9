"""Live and base weights: what the modules hold now, and what the backbone came with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TaskStateError
from piggyback.masks.bits import (
    PackedMask,
    is_dense,
    logical_order,
    pack,
    unpack,
    words,
)
from piggyback.masks.flat import FlatMasks, Layouts, flat_masks
from piggyback.masks.forms import formed_weight
from piggyback.masks.rule import Form, MaskRule
from piggyback.masks.switch import Scratch, SwitchPlan


class LiveWeights:
    """The masked parameters of a module and their base weights, by name.

    Masks that it holds or writes are in the weights' order of memory; ``lay_out`` and ``logical`` convert from and
    to the C order of task files.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self._module = module
        self.params: dict[str, nn.Parameter] = {}
        self.base: dict[str, Tensor] = {}
        self._layouts = Layouts()
        self._scratch = Scratch()
        self._plans: dict[tuple[str, ...], SwitchPlan] = {}
        self._places: list[
            tuple[int, torch.dtype, tuple[int, ...]]
        ] = []  # where the live weights lay when the plans were made
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
        if places != self._places:
            self._check_layout()
            self._plans, self._places = {}, places
        flat = masks
        if not isinstance(flat, FlatMasks):
            flat = FlatMasks(self._layouts.of(masks, self.base), masks.values())
        for bits in flat.parts:
            if bits.names not in self._plans:
                self._plans[bits.names] = self._plan(bits.names)
            self._plans[bits.names].write_(bits)
        for name, param in self.params.items():
            if name not in masks:
                param.copy_(self.base[name])
        for name, numbers in (coefficients or {}).items():
            base = self.base[name]
            mask = unpack(masks[name]).as_strided(base.shape, base.stride())
            self.params[name].copy_(formed_weight(base, mask, numbers, form))

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
                    "of a MaskOptimizer"
                )
            packed = pack(mask)
            masks[name] = PackedMask(tuple(self.base[name].shape), packed.keep, packed.negative)
        return masks

    def lay_out(self, masks: Mapping[str, PackedMask]) -> FlatMasks:
        """Return C-order masks on the weights' device, in their order of memory."""
        return flat_masks(masks, self.base, self._layouts)

    def logical(self, masks: Mapping[str, PackedMask]) -> dict[str, PackedMask]:
        """Return masks as ``lay_out`` took them: in C order."""
        return {name: logical_order(mask, self.base[name]) for name, mask in masks.items()}

    def apply(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follow the module after ``nn.Module._apply`` moved it: the base weights get the same treatment."""
        self._plans, self._places, self._scratch = {}, [], Scratch()
        self.base = {name: move(base) for name, base in self.base.items()}
        self.params = {name: self._module.get_parameter(name) for name in self.base}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_places": []}  # views would be copied as weights

    def _plan(self, names: Sequence[str]) -> SwitchPlan:
        live, base = [self.params[name] for name in names], [self.base[name] for name in names]
        with torch.inference_mode(False), torch.no_grad():  # views made in it are read-only outside
            return SwitchPlan(live, base, self._scratch)

    def _check_layout(self) -> None:
        for name, param in self.params.items():
            base = self.base[name]
            if (param.dtype, param.device, param.stride()) != (
                base.dtype,
                base.device,
                base.stride(),
            ):
                raise TaskStateError(
                    f"weight {name!r} is now {param.dtype} on {param.device} with strides {param.stride()}, "
                    f"its base weight {base.dtype} on {base.device} with strides {base.stride()}: "
                    "move the MultiTaskModel itself, not the module in it"
                )
