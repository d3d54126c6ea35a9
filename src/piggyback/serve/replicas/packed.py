"""A task as it waits in memory for its turn: one run of bits, and little else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from piggyback.masks.bits import unpack
from piggyback.masks.flat import FlatMasks, Layout, Layouts, flat_masks
from piggyback.masks.forms import formed_weight
from piggyback.masks.rule import masked_weight
from piggyback.model.heads import load_head
from piggyback.network.fingerprint import IGNORED
from piggyback.serve.replicas.folding import Folds
from piggyback.taskfile.fit import check_fits
from piggyback.taskfile.parse import Shapes
from piggyback.taskfile.task import Task

OBJECT_BYTES = 512
"""About what a tensor takes besides its values."""

Places = tuple[tuple[str, slice], ...]
"""Names, and where their values are in a flat tensor."""


@dataclass(frozen=True, eq=False)
class TaskLayout:
    """Which tensors a task changes, and where in its own their values are; tasks that are alike share one."""

    masked: Layout
    scaled: Places
    """Weights whose rows are multiplied by ``scales``, and where those are."""
    shifted: Places
    """Biases that become ``shifts``."""
    own: tuple[Places, ...]
    """State that becomes ``own``; a group for each dtype."""
    touched: frozenset[str]


@dataclass(frozen=True, eq=False)
class PackedTask:
    """What a live copy needs to become a task; its tensors are where the network is, and never changed."""

    outputs: int | None
    """Of the head, where that is known: one a class."""
    layout: TaskLayout
    masks: FlatMasks
    affine: Tensor | None
    """(masked weights, 4): the coefficients of the affine form."""
    scales: Tensor | None
    """float32; None where all weights are scaled as the backbone's."""
    shifts: Tensor | None
    own: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    """In the order of ``head_like``'s state dict."""
    head_like: nn.Module
    """A head without values: one for all heads of the same shape."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds in memory; what it shares with other tasks is not counted."""
        planes = [p for part in self.masks.parts for p in (part.keep, part.negative)]
        found = [*planes, self.affine, self.scales, self.shifts, *self.own, *self.head]
        tensors = [tensor for tensor in found if tensor is not None]
        values = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return values + OBJECT_BYTES * (len(tensors) + 2)


class Packer:
    """Makes packed tasks for one network; may be used from several threads."""

    def __init__(
        self,
        shapes: Shapes,
        state: Mapping[str, Tensor],
        fingerprint: str,
        head: nn.Module,
        base: Mapping[str, Tensor],
        folds: Folds,
        dtype: torch.dtype,
    ) -> None:
        """``shapes``, ``state`` and ``head`` are the backbone's as it came, ``base`` the tensors of live copies."""
        self._shapes, self._state, self._fingerprint, self._head = shapes, state, fingerprint, head
        self._base, self._folds, self._dtype = base, folds, dtype
        self._device = next((t.device for t in base.values()), torch.device("cpu"))
        self._masked = Layouts()
        # What tasks share is gone with the last of them.
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
            return self._packed(task)

    def _packed(self, task: Task) -> PackedTask:
        form, folds = task.info.rule.form, self._folds
        changed = self._sources(task)
        kept = {name: mask for name, mask in task.masks.items() if name not in changed}
        masks = flat_masks(kept, self._base, self._masked)
        scales, shifts = {}, {}
        if changed or form == "channel" or (form == "affine" and folds.pairs):
            for name, pair in folds.pairs.items():
                scales[name], shifts[pair.bias] = folds.scale_and_shift(name, changed)
            if form == "channel":
                for name in kept:
                    scale = task.coefficients[name].reshape(-1)
                    scales[name] = scale * scales[name] if name in scales else scale
        affine = [task.coefficients[name] for name in kept] if form == "affine" else []
        own: dict[torch.dtype, dict[str, Tensor]] = {}
        for name, tensor in task.norm.items():
            if name not in changed and name not in kept and not name.endswith(IGNORED):
                own.setdefault(self._base[name].dtype, {})[name] = tensor
        like, head = self._head_of(task)
        info = task.info
        outputs = getattr(like, "out_features", getattr(like, "out_channels", None))
        return PackedTask(
            outputs=len(info.classes) or outputs,
            layout=self._layout(masks.layout, scales, shifts, own.values()),
            masks=masks,
            affine=torch.stack(affine).to(self._device) if affine else None,
            scales=self._flat(scales, torch.float32) if scales else None,
            shifts=self._flat(shifts, torch.float32) if shifts else None,
            own=tuple(self._flat(group, dtype) for dtype, group in own.items()),
            head=head,
            head_like=like,
        )

    def _sources(self, task: Task) -> dict[str, Tensor]:
        """What the task changes of the tensors that were folded into convolutions."""
        found = {n: t for n, t in task.norm.items() if n in self._folds.sources}
        for name, mask in task.masks.items():
            if name in self._folds.sources:
                base, bits = self._folds.sources[name], unpack(mask)
                numbers = task.coefficients.get(name)
                found[name] = (
                    masked_weight(base, bits)
                    if numbers is None
                    else formed_weight(base, bits, numbers, task.info.rule.form)
                )
        return found

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
        self,
        masked: Layout,
        scales: Mapping[str, Tensor],
        shifts: Mapping[str, Tensor],
        own: Collection[Mapping[str, Tensor]],
    ) -> TaskLayout:
        groups = tuple(map(tuple, own))
        key = (masked, tuple(scales), tuple(shifts), groups)
        found = self._layouts.get(key)
        if found is None:
            made = TaskLayout(
                masked,
                _places(scales),
                _places(shifts),
                tuple(map(_places, own)),
                frozenset(
                    (*masked.places, *scales, *shifts, *(n for names in groups for n in names))
                ),
            )
            found = self._layouts.setdefault(key, made)
        return found

    def _flat(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        joined = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors.values()])
        return joined.to(self._device)


def _places(tensors: Mapping[str, Tensor]) -> Places:
    """Where each of some tensors is when they are joined."""
    found, start = [], 0
    for name, tensor in tensors.items():
        found.append((name, slice(start, start + tensor.numel())))
        start += tensor.numel()
    return tuple(found)
