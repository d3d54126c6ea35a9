"""The backbone made ready for serving: as fast as this machine runs it, and any number of live copies of it.

Task  --pack-->  PackedTask  --write-->  LiveCopy  --run-->  outputs
"""

from __future__ import annotations

import copy
from typing import get_args

import torch
from torch import nn

from piggyback.errors import InputError
from piggyback.network.backbone import Backbone
from piggyback.network.frozen import FrozenBackbone
from piggyback.serve.replicas.copies import LiveCopy, Prototype
from piggyback.serve.replicas.packed import PackedTask, Packer
from piggyback.serve.replicas.preparing import Precision, prepare
from piggyback.taskfile.task import Task


class Network:
    """A backbone ready for serving; it does not change any more, so several threads may use it.

    ``precision="auto"`` is float32, or bfloat16 where that is much faster here. ``fold`` rewrites the network
    where that makes it faster and leaves its outputs as they are. The caller's backbone stays as it is.

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
        fold: bool = True,
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
        with torch.inference_mode(False), torch.no_grad():
            frozen = FrozenBackbone(copy.deepcopy(module).eval(), head=head)
            self.fingerprint = frozen.fingerprint
            """SHA-256 of the backbone as it came, its classifier left out."""
            self.shapes = frozen.shapes()
            """Of every weight that a task may mask, by name."""
            owned = (*frozen.masked_names, *frozen.norms())
            original = copy.deepcopy(frozen.head)
            ready = prepare(
                frozen.module.to(device or "cpu", torch.float32),
                frozen.head_name,
                frozen.masked_names,
                self.preprocessing,
                precision,
                fold,
            )
            self.speed = ready.speed
            """How the network runs, in words."""
            self._prototype = Prototype(
                ready.module,
                frozen.head_name,
                ready.plain,
                (*owned, *ready.folds.biases),
                ready.dtype,
                compiled=compile,
            )
        self._packer = Packer(
            self.shapes,
            frozen.base_state,
            self.fingerprint,
            original,
            self._prototype.base,
            ready.folds,
            ready.dtype,
        )

    def pack(self, task: Task) -> PackedTask:
        """Return ``task`` as live copies take it; no copy is touched.

        Raises BackboneMismatchError where it was learned on another backbone, InputError and TaskFileError where
        its masks or its head cannot be used.
        """
        return self._packer.pack(task)

    def new_copy(self) -> LiveCopy:
        """Return a live copy, without a task in it yet."""
        return LiveCopy(self._prototype)

    @property
    def copy_bytes(self) -> int:
        """Bytes that one more live copy takes, without its head."""
        return self._prototype.copy_bytes
