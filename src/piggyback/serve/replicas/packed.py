"""A task as it waits in memory for its turn: its bits in one piece, and few tensors besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from piggyback.kinds import kind_of
from piggyback.masks.bits import FlatMasks, MaskLayout, flat_masks
from piggyback.masks.rule import Form
from piggyback.model.heads import load_head
from piggyback.network.fingerprint import IGNORED
from piggyback.network.frozen import FrozenBackbone
from piggyback.taskfile.checks import check_fits
from piggyback.taskfile.task import Task

OBJECT_BYTES = 512
"""About what a tensor takes besides its values."""

Places = tuple[tuple[str, slice], ...]
"""Names, and where their values are in a flat tensor."""


@dataclass(frozen=True, eq=False)
class TaskLayout:
    """Which tensors a task changes, and where their values are; similar tasks share one."""

    masked: MaskLayout
    coefficients: Places
    norm: Places
    touched: frozenset[str]


@dataclass(frozen=True, eq=False)
class PackedTask:
    """What a live copy needs to become a task. Its tensors are on the network's device and never changed."""

    outputs: int | None
    """Of the head, one per class; None where that is not known."""
    dimensions: int
    """Of a batch of outputs: 2, or 3 with tokens, or 4 of label maps."""
    layout: TaskLayout
    masks: FlatMasks
    form: Form
    coefficients: Tensor | None
    """float32, flat; None for the plain form."""
    norm: Tensor | None
    """float32, flat: normalisation of the task's own, if it has any."""
    head: tuple[Tensor, ...]
    """In the order of ``head_like``'s state dict."""
    head_like: nn.Module
    """A head without values, shared by all heads of its shape."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without what is shared with other tasks."""
        planes = [plane for part in self.masks.parts for plane in (part.keep, part.negative)]
        held = [*planes, self.coefficients, self.norm, *self.head]
        tensors = [tensor for tensor in held if tensor is not None]
        values = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return values + OBJECT_BYTES * (len(tensors) + 2)


class Packer:
    """Makes packed tasks for one network; may be used from several threads."""

    def __init__(
        self,
        frozen: FrozenBackbone,
        head: nn.Module,
        base: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        """``head`` is the original backbone's, ``base`` has the tensors of live copies."""
        self._shapes, self._head = frozen.shapes(), head
        self._state, self._fingerprint = frozen.base_state, frozen.fingerprint
        self._base, self._dtype = base, dtype
        self._device = next((t.device for t in base.values()), torch.device("cpu"))
        # What tasks share goes with the last of them.
        self._layouts: WeakValueDictionary[tuple[object, ...], TaskLayout] = WeakValueDictionary()
        self._heads: WeakValueDictionary[tuple[object, ...], nn.Module] = WeakValueDictionary()

    @torch.no_grad()
    def pack(self, task: Task) -> PackedTask:
        """Return ``task`` packed.

        Raises BackboneMismatchError where it was learned on another backbone, InputError and TaskFileError where
        its masks or its head cannot be used.
        """
        check_fits(task, self._shapes, self._state, self._fingerprint)
        with torch.inference_mode(False):
            masks = flat_masks(task.masks, self._base)
            form = task.info.rule.form
            own = () if form == "plain" else task.masks
            coefficients = {name: task.coefficients[name] for name in own}
            norm = {
                name: tensor
                for name, tensor in task.norm.items()
                if name not in task.masks and not name.endswith(IGNORED)
            }
            like, head = self._head_of(task)
            outputs = getattr(like, "out_features", getattr(like, "out_channels", None))
            return PackedTask(
                outputs=len(task.info.classes) or outputs,
                dimensions=kind_of(task.info).dimensions,
                layout=self._layout(masks.layout, coefficients, norm),
                masks=masks,
                form=form,
                coefficients=self._flat(coefficients),
                norm=self._flat(norm),
                head=head,
                head_like=like,
            )

    def _head_of(self, task: Task) -> tuple[nn.Module, tuple[Tensor, ...]]:
        head = load_head(task, self._head)
        tensors = head.state_dict()
        key = (type(head), *((name, tuple(t.shape)) for name, t in tensors.items()))
        moved = tuple(t.to(self._device, self._dtype, copy=True) for t in tensors.values())
        like = self._heads.get(key)
        if like is None:
            like = self._heads.setdefault(key, head.eval().to("meta", self._dtype))
        return like, moved

    def _layout(
        self, masked: MaskLayout, coefficients: Mapping[str, Tensor], norm: Mapping[str, Tensor]
    ) -> TaskLayout:
        key = (masked, *((name, t.numel()) for name, t in coefficients.items()), tuple(norm))
        found = self._layouts.get(key)
        if found is None:
            touched = frozenset((*masked.places, *norm))
            made = TaskLayout(masked, _places(coefficients), _places(norm), touched)
            found = self._layouts.setdefault(key, made)
        return found

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        if not tensors:
            return None
        return torch.cat([t.reshape(-1).float() for t in tensors.values()]).to(self._device)


def _places(tensors: Mapping[str, Tensor]) -> Places:
    """Where each of some tensors is once they are joined."""
    found, start = [], 0
    for name, tensor in tensors.items():
        found.append((name, slice(start, start + tensor.numel())))
        start += tensor.numel()
    return tuple(found)
