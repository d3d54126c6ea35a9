"""A task being learned: which parameters train, and what it comes to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from piggyback.errors import PiggybackWarning
from piggyback.network.frozen import FrozenBackbone
from piggyback.network.norm import norm_modules
from piggyback.taskfile.rounding import round_half, round_rows
from piggyback.taskfile.task import NormPolicy, Task, TaskInfo


@dataclass(frozen=True)
class Learning:
    """The task that owns the live weights until it is finished or cancelled."""

    name: str
    info: TaskInfo
    backbone: FrozenBackbone
    head: nn.Module
    norm: NormPolicy
    masked: bool

    def begin(self) -> None:
        """Put the head in place and make the task's parameters trainable."""
        self.backbone.put_head(self.head)
        self.backbone.invalidate_state()
        for group in self.groups(0.0):
            for param in group["params"]:
                param.requires_grad_(True)

    def end(self) -> None:
        """Freeze the task's parameters and drop their gradients; their values are the caller's to restore."""
        for group in self.groups(0.0):
            for param in group["params"]:
                param.requires_grad_(False)
                param.grad = None

    def groups(
        self, lr: float, head_lr: float | None = None, norm_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Return the parameter groups of a ``MaskOptimizer``; learning rates not given are ``lr``."""
        masked = [self.backbone.live.params[name] for name in self._names()]
        norms = [tensor for tensor in self._norms().values() if isinstance(tensor, nn.Parameter)]
        groups = [
            {"params": masked, "masked": True, "lr": lr},
            {"params": list(self.head.parameters()), "lr": lr if head_lr is None else head_lr},
            {"params": norms, "lr": lr if norm_lr is None else norm_lr},
        ]
        return [group for group in groups if group["params"]]

    @property
    def trained(self) -> bool:
        """Whether masked weights have had gradients."""
        return any(self.backbone.live.params[name].grad is not None for name in self._names())

    def capture(self, provenance: Mapping[str, Any]) -> Task:
        """Return the task as it stands, its masks read off the live weights.

        Warns where training changed a buffer that the task does not bring, so that it will not run as it did.
        """
        live, norms = self.backbone.live, self._norms()
        if changed := [name for name in self.backbone.changed_buffers() if name not in norms]:
            warnings.warn(
                f"task {self.name!r}: {len(changed)} buffers changed in training that the task does not bring, "
                f"the first {changed[0]!r}; they will be put back: keep frozen normalisation in eval mode "
                "(call train() on the MultiTaskModel, not on its backbone), or use norm='trained'",
                PiggybackWarning,
                stacklevel=3,
            )
        return Task(
            name=self.name,
            masks=live.to_c_order(live.capture(self._names(), self.info.rule)),
            head=_rounded_head(self.head.state_dict(), self.info.head_kind),
            norm={name: round_half(tensor) for name, tensor in _copies(norms).items()},
            info=replace(self.info, provenance=dict(provenance)),
        )

    def set_mode(self, training: bool) -> None:
        """Set normalisation layers to learn their statistics, where the task trains them."""
        for layer in norm_modules(self.backbone.module, self.backbone.head_name).values():
            layer.train(training and self.norm == "trained")

    def _names(self) -> tuple[str, ...]:
        """The weights that the task masks."""
        return self.backbone.masked_names if self.masked else ()

    def _norms(self) -> dict[str, Tensor]:
        """The normalisation that the task brings; a masked tensor is in the masks already."""
        if self.norm == "frozen":
            return {}
        return {
            name: tensor
            for name, tensor in self.backbone.norms().items()
            if name not in self._names()
            and (self.norm == "trained" or isinstance(tensor, nn.Parameter))
        }


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _rounded_head(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Copies with the values that a file keeps; a custom head's are its own affair."""
    copies = _copies(tensors)
    if kind not in ("linear", "conv"):
        return copies
    return {name: round_rows(tensor) for name, tensor in copies.items()}
