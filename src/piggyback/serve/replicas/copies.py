"""Live copies of one network, each with a task's weights in it; they share whatever no task changes.

Prototype     base weights, and everything that copies have in common
ModelCopy     memory of its own for masked weights, normalisation and a head
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TaskStateError
from piggyback.masks.bits import is_dense
from piggyback.masks.switch import MaskWriter, Scratch
from piggyback.network.frozen import replace_module
from piggyback.serve.replicas.packed import PackedTask

MODULE_BYTES = 4096
"""About what a copy of a module takes besides its tensors."""


@cache
def _head_slot() -> type[nn.Module]:
    """What stands where the classifier stood in compiled networks: heads change in it without a compilation."""

    class HeadSlot(nn.Module):
        head: nn.Module

        @torch.compiler.disable  # type: ignore[untyped-decorator]  # loads the compiler, so not at import time
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.head(*args, **kwargs)

        @property
        def per_token(self) -> bool:
            return getattr(self.head, "per_token", False)

    return HeadSlot


class Prototype:
    """The network that live copies are made from, with the base values of all its tensors. It never runs."""

    def __init__(
        self,
        module: nn.Module,
        head: str,
        owned: Iterable[str],
        dtype: torch.dtype,
        *,
        compiled: bool = False,
    ) -> None:
        """``owned`` names the tensors that tasks usually change."""
        replace_module(module, head, _head_slot()() if compiled else nn.Identity())
        for param in module.parameters():
            if not is_dense(param):  # bits are laid out for weights that fill one block of memory
                param.data = param.data.contiguous()
        self.module = module.eval().requires_grad_(False)
        self.head, self.compiled = head, compiled
        self.base: dict[str, Tensor] = tensors_of(module)
        self.owned = {name for name in owned if name in self.base}
        self.image_layout = any(isinstance(m, nn.Conv2d) for m in module.modules())
        self.lock = threading.Lock()
        """Held by a copy that is written: they share the memory that bits are expanded in."""
        self.scratch: Scratch = {}
        self.dtype = dtype
        self.device = next((t.device for t in self.base.values()), torch.device("cpu"))

    @property
    def copy_bytes(self) -> int:
        """Bytes that one more live copy takes, without its head."""
        owned = [self.base[name] for name in self.owned]
        tensors = sum(t.numel() * t.element_size() for t in owned)
        return tensors + MODULE_BYTES * sum(1 for _ in self.module.modules())


class ModelCopy:
    """A copy of a network that runs one task at a time: ``write`` makes a task live, ``run`` asks it.

    ``write`` has one caller at a time, and none while ``run`` is at work; copies do not disturb each other.
    """

    def __init__(self, prototype: Prototype) -> None:
        self._prototype = prototype
        self._owned = set(prototype.owned)
        with torch.inference_mode(False):
            shared = {n: t for n, t in prototype.base.items() if n not in self._owned}
            memo = {id(tensor): _alias(tensor) for tensor in shared.values()}
            self._module = copy.deepcopy(prototype.module, memo)
        self._tensors = tensors_of(self._module)
        parent, _, key = prototype.head.rpartition(".")
        self._place, self._key = self._module.get_submodule(parent), key
        if prototype.compiled:
            self._place, self._key = self._module.get_submodule(prototype.head), "head"
            self._module.compile()
        self._head_like: nn.Module | None = None
        self._head: tuple[Tensor, ...] = ()
        self._writer = MaskWriter(self._tensors, prototype.base, prototype.scratch)
        self._changed: frozenset[str] = frozenset()  # what may differ from the base values
        self._ready = False  # whether a task was written to its end
        self._outputs: int | None = None
        self._dimensions = 2

    @torch.no_grad()
    def write(self, task: PackedTask) -> None:
        """Make a task's weights, normalisation and head live.

        After an error the copy answers nothing until a task has been written to its end.
        """
        touched, base = task.layout.touched, self._prototype.base
        with self._prototype.lock:
            self._ready = False
            if not touched <= self._owned:
                self._take(touched - self._owned)
            if len(self._owned) > len(self._prototype.owned):
                self._give_back(self._owned - self._prototype.owned - touched)
            left = (self._changed & self._owned) - touched
            self._changed |= touched
            for name in left:
                self._tensors[name].copy_(base[name])
            numbers = task.coefficients
            coefficients = (
                None if numbers is None else {n: numbers[p] for n, p in task.layout.coefficients}
            )
            self._writer.write_(task.masks, coefficients, task.form)
            if task.norm is not None:
                for name, place in task.layout.norm:
                    live = self._tensors[name]
                    live.copy_(task.norm[place].view(live.shape))
            self._write_head(task)
            self._changed, self._outputs, self._ready = touched, task.outputs, True
            self._dimensions = task.dimensions

    @property
    def extra_bytes(self) -> int:
        """Bytes that the task takes in this copy beyond the prototype's ``copy_bytes``: head, further weights."""
        taken = [self._tensors[name] for name in self._owned - self._prototype.owned]
        return sum(t.numel() * t.element_size() for t in (*self._head, *taken))

    def run(self, x: Tensor) -> Tensor:
        """Return the outputs of the task that was written: (n, classes), (n, tokens, tags), or (n, classes, h, w).

        ``x`` is a batch (n, ...); both are on the CPU, outputs float32. Raises TaskStateError where no task was
        written to its end, InputError where the outputs are not one for each class and sample.
        """
        if not self._ready:
            raise TaskStateError("live copy: expected a whole task in it; write one first")
        with torch.inference_mode():
            if self._prototype.image_layout and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            dtype = self._prototype.dtype if x.is_floating_point() else x.dtype
            y = self._module(x.to(self._prototype.device, dtype))
            if not isinstance(y, Tensor) or y.ndim != self._dimensions or len(y) != len(x):
                what = {2: "rows", 3: "rows for every token", 4: "label maps"}[self._dimensions]
                raise InputError(
                    f"{_described(y)} for {len(x)} inputs: expected {len(x)} {what} of outputs, one per class"
                )
            if self._outputs is not None and y.shape[1 if y.ndim == 4 else -1] != self._outputs:
                raise InputError(
                    f"{_described(y)}: expected {self._outputs} outputs, one per class"
                )
            return y.to("cpu", torch.float32)

    def _take(self, names: Iterable[str]) -> None:
        """Give this copy memory of its own for some more tensors."""
        with torch.inference_mode(False):
            for name in names:
                tensor = self._tensors[name]
                tensor.data = tensor.data.clone()
                self._owned.add(name)

    def _give_back(self, names: Iterable[str]) -> None:
        """Share some tensors again that a task before had of its own."""
        for name in names:
            self._tensors[name].data = self._prototype.base[name].data
            self._owned.discard(name)
        self._writer.forget()  # it keeps views

    def _write_head(self, task: PackedTask) -> None:
        if self._head_like is not task.head_like:
            with torch.inference_mode(False):
                head = copy.deepcopy(task.head_like).to_empty(device=self._prototype.device)
            setattr(self._place, self._key, head)
            self._head, self._head_like = tuple(head.state_dict().values()), task.head_like
        for live, tensor in zip(self._head, task.head, strict=True):
            live.copy_(tensor)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, each once; not copies."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor over the same memory."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, requires_grad=False)
    return tensor.detach()


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"the network gave outputs of shape {tuple(output.shape)}"
    return f"the network gave a {type(output).__name__}"
