"""A packed network: one set of weights, each owned by at most one task, as PackNet leaves it; and its file.

owner   0: free, and then the weight is 0   k: learned by the k-th task, fixed since
task k  computes with the weights of owners 1 ... k; all others count as 0

The file is plain safetensors. It is whole: of the backbone only the architecture is needed to read it.

    weights.NAME   the packed weights of all tasks together
    owners.NAME    uint8 (b, ceil(n / 8)): plane i holds bit i of the owner of each of n weights,
                   eight to a byte; b = ceil(log2(tasks + 1)), the fewest whole bits
    shared.NAME    normalisation, biases and the like, the same for all tasks
    heads.K.NAME   the classifier of task K, from 1
    metadata       packnet: JSON with tasks in order, classes, preprocessing, head, and the backbone's source and
                   fingerprint
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    SelectionError,
    TaskFileError,
    TrainingError,
    UnknownTaskError,
    near_misses,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.tensor_file import check_tensors, read_tensors
from piggyback.masks.bits import PackedMask, pack_mask, unpack_mask
from piggyback.model.heads import new_head
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.fingerprint import IGNORED, fingerprint
from piggyback.network.frozen import replace_module
from piggyback.network.select import Selection, select_weights
from piggyback.taskfile.disk import error_context

MAX_TASKS = 255


@dataclass(frozen=True, eq=False)
class PackedTask:
    """What one task has for itself."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    head: Mapping[str, Tensor]
    """The classifier's state dict; empty before it is trained."""


@dataclass(frozen=True, eq=False)
class PackedNetwork:
    """All tasks of one network; its tensors are never changed in place.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    >>> packed = empty(Backbone(net, "", None, "1"))
    >>> packed.tasks, packed.free
    ((), 1.0)
    """

    module: nn.Module
    """The architecture; its values are not used, but those of buffers that no state dict holds."""
    head: str
    """Dotted name of the classifier."""
    backbone: BackboneInfo
    """What the first task started from."""
    weights: Mapping[str, Tensor]
    """The packed weights by parameter name, of all tasks together."""
    owners: Mapping[str, Tensor]
    """uint8, of the weights' shapes: the number of the task that owns each, 0 for none."""
    shared: Mapping[str, Tensor]
    """The rest of the state dict outside the head: normalisation, biases; the same for all."""
    tasks: tuple[PackedTask, ...] = ()
    """In the order in which they were learned."""

    @property
    def free(self) -> float:
        """Fraction of the weights that no task owns."""
        free = sum(int((owner == 0).sum()) for owner in self.owners.values())
        return free / sum(owner.numel() for owner in self.owners.values())

    def network_for(self, task: str) -> nn.Module:
        """Return a plain module, in eval mode, that answers as ``task`` did when it was learned.

        Raises UnknownTaskError.
        """
        names = [known.name for known in self.tasks]
        if task not in names:
            raise UnknownTaskError(
                f"task {task!r}: this network holds {', '.join(names) or 'none'}{near_misses(task, names)}"
            )
        number = 1 + names.index(task)
        mine = self.tasks[number - 1]
        module = self.filled(
            {
                name: torch.where((self.owners[name] > 0) & (self.owners[name] <= number), w, 0)
                for name, w in self.weights.items()
            }
        )
        head = _head(self, mine)
        head.load_state_dict(dict(mine.head))
        replace_module(module, self.head, head)
        return module.requires_grad_(False).eval()

    @torch.no_grad()
    def filled(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a plain module with ``weights``, the shared part, and the backbone's head."""
        module = copy.deepcopy(self.module)
        target = module.state_dict()
        for name, tensor in {**self.shared, **weights}.items():
            target[name].copy_(tensor)
        return module

    def claimed(self, task: PackedTask) -> PackedNetwork:
        """Return the network with another task, which owns all weights that are free, to train them."""
        number = len(self.tasks) + 1
        owners = {
            name: torch.where(owner == 0, number, owner) for name, owner in self.owners.items()
        }
        return replace(self, owners=owners, tasks=(*self.tasks, task))

    def trained(self, state: Mapping[str, Tensor]) -> PackedNetwork:
        """Return the network with the last task's weights and head, and the first's shared part, of ``state``.

        Raises TrainingError where something has moved that earlier tasks need.
        """
        number, last = len(self.tasks), self.tasks[-1]
        held = {name: owner != number for name, owner in self.owners.items()}
        before = {**self.weights, **(self.shared if number > 1 else {})}
        for name, tensor in before.items():
            moved = state[name] != tensor
            if bool((moved & held.get(name, moved)).any()):
                raise TrainingError(
                    f"task {last.name!r}: {name} has moved, which earlier tasks need as it was: expected a "
                    "network that changes nothing but normalisation outside its optimizer"
                )
        return replace(
            self,
            weights={name: state[name].contiguous() for name in self.weights},
            shared={name: state[name].contiguous() for name in self.shared},
            tasks=(*self.tasks[:-1], replace(last, head=_below(state, self.head))),
        )

    def pruned(self, share: float) -> PackedNetwork:
        """Return the network after the last task has given back its smallest weights, per layer."""
        number = len(self.tasks)
        given = {
            name: smallest(weight, self.owners[name] == number, share)
            for name, weight in self.weights.items()
        }
        return replace(
            self,
            weights={name: torch.where(given[name], 0, w) for name, w in self.weights.items()},
            owners={name: torch.where(given[name], 0, o) for name, o in self.owners.items()},
        )


def empty(backbone: Backbone, select: Selection = None) -> PackedNetwork:
    """Return a network without tasks: every weight is free and holds the backbone's value.

    Raises SelectionError where weights cannot be chosen.
    """
    module = backbone.module
    chosen = select_weights(module, select, head=backbone.head)
    # A tied weight has several names in the state dict; it is packed under the first.
    packed = {id(param) for param in chosen.values()}
    shared = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if id(tensor) not in packed
        and not name.startswith(f"{backbone.head}.")
        and not name.endswith(IGNORED)
    }
    weights = {name: p.detach().cpu().contiguous().clone() for name, p in chosen.items()}
    return PackedNetwork(
        module=module,
        head=backbone.head,
        backbone=BackboneInfo(backbone.source, fingerprint(module, (), backbone.head)[0]),
        weights=weights,
        owners={name: torch.zeros_like(w, dtype=torch.uint8) for name, w in weights.items()},
        shared=shared,
    )


def smallest(weight: Tensor, among: Tensor, share: float) -> Tensor:
    """Return where the ``share`` of smallest magnitude lies of the weights that ``among`` marks.

    Both are tensors of one shape, ``among`` and the answer bool. Exactly ``round(share * n)`` of n
    marked weights are chosen; of equal magnitudes those that come first in C order. One layer is
    one call: PackNet prunes each by itself (Mallya & Lazebnik, CVPR 2018, section 3).

    >>> smallest(torch.tensor([3.0, -1.0, 0.5, 1.0]), torch.tensor([1, 1, 0, 1]).bool(), 1 / 3)
    tensor([False,  True, False, False])
    """
    marked = among.reshape(-1).nonzero().view(-1)
    magnitudes = weight.detach().reshape(-1)[marked].abs()
    order = magnitudes.argsort(stable=True)[: round(share * len(marked))]
    chosen = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    chosen[marked[order]] = True
    return chosen.view(weight.shape)


# -- the file ----------------------------------------------------------------------------------------


class _TaskNotes(BaseModel):
    name: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]


class _Notes(BaseModel):
    """What the file's metadata says."""

    tasks: list[_TaskNotes]
    head: str
    source: str
    fingerprint: str


def save(network: PackedNetwork) -> bytes:
    """Return the network as the bytes of its file; the same network always gives the same bytes.

    >>> packed = empty(Backbone(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "", None, "1"))
    >>> save(packed) == save(packed)
    True
    """
    tasks = [
        {"name": t.name, "classes": list(t.classes), "preprocessing": t.preprocessing.to_json()}
        for t in network.tasks
    ]
    values = {
        "tasks": tasks,
        "head": network.head,
        "source": network.backbone.source,
        "fingerprint": network.backbone.fingerprint,
    }
    return tensor_bytes(_contents(network), {"packnet": json.dumps(values, ensure_ascii=False)})


def load_file(path: str | os.PathLike[str], backbone: Backbone) -> PackedNetwork:
    """Return the network in the file at ``path``; of ``backbone`` only the architecture is used.

    Raises TaskFileError for a file that is damaged or of another kind, BackboneMismatchError where it was packed from
    another architecture.
    """
    with error_context(path):
        tensors, notes = read_tensors(path, "packnet", _Notes)
        tensors.pop("checksum", None)  # of older files
        what = f"a network packed from {notes.source or 'a module built by hand'}"
        weights = _below(tensors, "weights")
        if backbone.head != notes.head:
            raise BackboneMismatchError(
                f"{what} has the head {notes.head!r}: this backbone's is {backbone.head!r}"
            )
        try:
            network = empty(backbone, list(weights))
        except SelectionError as error:
            raise BackboneMismatchError(f"{what} packs other weights: {error}") from error
        tasks = []
        for number, task in enumerate(notes.tasks, 1):
            try:
                look = Preprocessing.from_json(task.preprocessing)
            except InputError as error:
                raise TaskFileError(f"task {task.name!r}: {error}; it is damaged") from error
            head = _below(tensors, f"heads.{number}")
            tasks.append(PackedTask(task.name, task.classes, look, head))
        like = [replace(task, head=_head(network, task).state_dict()) for task in tasks]
        expected = _contents(replace(network, tasks=tuple(like)))
        check_tensors(tensors, expected, what, BackboneMismatchError)
        planes = _below(tensors, "owners")
        return replace(
            network,
            backbone=BackboneInfo(notes.source, notes.fingerprint),
            weights=weights,
            owners={name: _owners(planes[name], w.shape) for name, w in weights.items()},
            shared=_below(tensors, "shared"),
            tasks=tuple(tasks),
        )


def _contents(network: PackedNetwork) -> dict[str, Tensor]:
    """The tensors of the file."""
    bits = len(network.tasks).bit_length()
    tensors = {f"weights.{name}": tensor for name, tensor in network.weights.items()}
    tensors |= {f"owners.{n}": _planes(owner, bits) for n, owner in network.owners.items()}
    tensors |= {f"shared.{name}": tensor for name, tensor in network.shared.items()}
    for number, task in enumerate(network.tasks, 1):
        tensors |= {f"heads.{number}.{name}": tensor for name, tensor in task.head.items()}
    return tensors


def _head(network: PackedNetwork, task: PackedTask) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # its random values are not used
        return new_head(network.module.get_submodule(network.head), len(task.classes))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix`` and a dot, by the rest of their names."""
    start = f"{prefix}."
    return {
        n.removeprefix(start): t.contiguous() for n, t in tensors.items() if n.startswith(start)
    }


def _planes(owner: Tensor, bits: int) -> Tensor:
    """(bits, ceil(n / 8)) uint8: the bits of each owner, the lowest first."""
    planes = [pack_mask((owner >> bit) & 1 == 1).keep for bit in range(bits)]
    return torch.stack(planes) if planes else torch.zeros(0, -(-owner.numel() // 8)).byte()


def _owners(planes: Tensor, shape: torch.Size) -> Tensor:
    """What ``_planes`` was given."""
    owner = torch.zeros(shape, dtype=torch.uint8)
    for bit, plane in enumerate(planes):
        owner |= unpack_mask(PackedMask(tuple(shape), plane)).byte() << bit
    return owner
