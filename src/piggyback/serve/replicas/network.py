"""The backbone made ready for serving: in the arithmetic that suits the processor, and any number of live copies.

Task  --pack-->  PackedTask  --write-->  ModelCopy  --run-->  outputs

Folding batch norms into convolutions, and 1x1 convolutions as matrix products, were measured and left out: beside
channels_last and bfloat16 they gave 1.05 to 1.3 times the images per second end to end (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import copy
from typing import get_args

import torch
from torch import Tensor, nn

from piggyback.errors import BackboneError, InputError, first_line
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.network.frozen import FrozenBackbone, plain_copy, refuse_held
from piggyback.network.hardware import multiplies_bfloat16
from piggyback.serve.options import Precision
from piggyback.serve.replicas.copies import ModelCopy, Prototype
from piggyback.serve.replicas.packed import PackedTask, Packer
from piggyback.taskfile.task import Task


class Network:
    """A backbone ready for serving; it does not change any more, so several threads may use it.

    ``precision="auto"`` is bfloat16 where the hardware has instructions for its products, by which eight of nine
    networks were faster (docs/BENCHMARKS.md), else float32: replicas on machines of a kind give the same numbers.
    The caller's backbone stays as it is.

    >>> network = Network(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)))
    >>> live = network.new_copy()
    >>> live.write(network.pack(Task("parity", {}, {"weight": torch.zeros(2, 8), "bias": torch.ones(2)})))
    >>> live.run(torch.zeros(1, 4))
    tensor([[1., 1.]])
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        *,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
        compile: bool = False,
    ) -> None:
        if precision not in get_args(Precision):
            raise InputError(
                f"precision {precision!r}: expected one of {', '.join(get_args(Precision))}"
            )
        if isinstance(backbone, Backbone):
            module, head = backbone.module, backbone.head
            self.source, self.preprocessing = backbone.source, backbone.preprocessing
        else:
            module, head, self.source, self.preprocessing = backbone, None, "", None
        refuse_held(module)  # of the copy nobody would know
        with torch.inference_mode(False), torch.no_grad():
            frozen = FrozenBackbone(plain_copy(module).eval(), head=head)
            self.fingerprint = frozen.fingerprint
            """SHA-256 of the backbone as it came, without its classifier."""
            self.shapes = frozen.shapes()
            """Of every weight that a task may mask, by name."""
            owned = (*frozen.masked_names, *frozen.norms())
            original = copy.deepcopy(frozen.head)
            ready = frozen.module.to(device or "cpu", torch.float32)
            words = []
            if any(isinstance(layer, nn.Conv2d) for layer in ready.modules()):
                ready.to(memory_format=torch.channels_last)
                words = ["channels last"]
            seen = self.preprocessing
            side = seen.image_size if isinstance(seen, Preprocessing) else None
            ready, dtype, remark = _in_precision(ready, side, precision)
            self.speed = ", ".join([str(dtype).removeprefix("torch."), *words, *remark])
            """How the network runs, in words."""
            self._prototype = Prototype(ready, frozen.head_name, owned, dtype, compiled=compile)
        self._packer = Packer(frozen, original, self._prototype.base, dtype)

    def pack(self, task: Task) -> PackedTask:
        """Return ``task`` as live copies take it; no copy is touched.

        Raises BackboneMismatchError where it was learned on another backbone, InputError and TaskFileError where
        its masks or its head cannot be used.
        """
        return self._packer.pack(task)

    def new_copy(self) -> ModelCopy:
        """Return a live copy, without a task in it yet."""
        return ModelCopy(self._prototype)

    @property
    def copy_bytes(self) -> int:
        """Bytes that one more live copy takes, without its head."""
        return self._prototype.copy_bytes


def _in_precision(
    module: nn.Module, side: int | None, precision: Precision
) -> tuple[nn.Module, torch.dtype, list[str]]:
    """The network in the precision wanted, its dtype, and what else is to be said of it.

    Where no image size is known the network takes unknown inputs, and nothing can be tried on it.
    """
    if side is None:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return module.to(dtype), dtype, []
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    if problem := _problem(module, x):
        raise BackboneError(
            f"the network does not take images of 3 x {side} x {side} ({problem}): expected what its "
            "preprocessing says; give it the right one, or none"
        )
    if precision == "float32" or (precision == "auto" and not multiplies_bfloat16(device)):
        return module, torch.float32, []
    low = copy.deepcopy(module).to(torch.bfloat16)
    problem = _problem(low, x.bfloat16())
    if problem and precision == "bfloat16":
        raise BackboneError(f"the network does not run in bfloat16 ({problem}): use float32")
    if problem:
        return module, torch.float32, [f"does not run in bfloat16: {problem}"]
    return low, torch.bfloat16, []


def _problem(module: nn.Module, x: Tensor) -> str:
    """Why a network cannot run on ``x``, in a line; empty if it can."""
    try:
        module(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        return first_line(error) or type(error).__name__
    return ""
