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
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    SelectionError,
    TaskFileError,
    TaskNameError,
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
from piggyback.taskfile.task import check_name

MAX_TASKS = 255
_KEY = "packnet"
"""In the file's metadata."""


@dataclass(frozen=True, eq=False)
class PackedTask:
    """What one task has for itself."""

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    head: Mapping[str, Tensor]
    """The classifier's state dict."""


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

    def number(self, task: str) -> int:
        """Return the number of a task, from 1; raises UnknownTaskError."""
        names = [known.name for known in self.tasks]
        if task not in names:
            raise UnknownTaskError(
                f"task {task!r}: this network holds {', '.join(names) or 'none'}"
                f"{near_misses(str(task), names)}"
            )
        return 1 + names.index(task)

    def network_for(self, task: str) -> nn.Module:
        """Return a plain module, in eval mode, that answers as ``task`` did when it was learned.

        Raises UnknownTaskError.
        """
        number = self.number(task)
        mine = self.tasks[number - 1]
        live = {
            name: torch.where((self.owners[name] > 0) & (self.owners[name] <= number), weight, 0)
            for name, weight in self.weights.items()
        }
        module = self.filled(live)
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

    def learned(
        self, task: PackedTask, state: Mapping[str, Tensor], *, first: bool
    ) -> PackedNetwork:
        """Return the network after ``task`` has trained all free weights to ``state``; it owns them.

        ``first``: whether the shared part was trained too. Raises TrainingError where something
        has moved that should not.
        """
        number = len(self.tasks) + 1
        owners = {
            name: torch.where(owner == 0, owner.new_tensor(number), owner)
            for name, owner in self.owners.items()
        }
        return replace(self, owners=owners, tasks=(*self.tasks, task)).trained(state, first=first)

    def trained(self, state: Mapping[str, Tensor], *, first: bool) -> PackedNetwork:
        """Return the network with the last task's weights and head as ``state`` has them."""
        number, last = len(self.tasks), self.tasks[-1]
        weights, moved = {}, []
        for name, old in self.weights.items():
            own = self.owners[name] == number
            if bool((~own & (state[name] != old)).any()):
                moved.append(name)
            weights[name] = torch.where(own, state[name], old).contiguous()
        shared = {name: state[name].contiguous() for name in self.shared}
        if not first:
            moved += [name for name, t in shared.items() if not torch.equal(t, self.shared[name])]
        if moved:
            raise TrainingError(
                f"task {last.name!r}: {moved[0]} has moved, which earlier tasks need as it was: expected a "
                "network that changes nothing but normalisation outside its optimizer"
            )
        head = {name: tensor.contiguous() for name, tensor in _below(state, self.head).items()}
        tasks = (*self.tasks[:-1], replace(last, head=head))
        return replace(self, weights=weights, shared=shared, tasks=tasks)

    def pruned(self, share: float) -> PackedNetwork:
        """Return the network after the last task has given back its smallest weights, per layer."""
        number = len(self.tasks)
        weights, owners = dict(self.weights), dict(self.owners)
        for name, weight in self.weights.items():
            given = smallest(weight, self.owners[name] == number, share)
            weights[name] = torch.where(given, 0, weight)
            owners[name] = torch.where(given, 0, self.owners[name])
        return replace(self, weights=weights, owners=owners)


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


def save(network: PackedNetwork) -> bytes:
    """Return the network as the bytes of its file; the same network always gives the same bytes.

    >>> packed = empty(Backbone(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "", None, "1"))
    >>> save(packed) == save(packed)
    True
    """
    bits = len(network.tasks).bit_length()
    tensors = {f"weights.{name}": tensor for name, tensor in network.weights.items()}
    tensors |= {f"owners.{n}": _planes(owner, bits) for n, owner in network.owners.items()}
    tensors |= {f"shared.{name}": tensor for name, tensor in network.shared.items()}
    tasks: list[dict[str, Any]] = []
    for number, task in enumerate(network.tasks, 1):
        tensors |= {f"heads.{number}.{name}": tensor for name, tensor in task.head.items()}
        look = task.preprocessing.to_json()
        tasks.append({"name": task.name, "classes": list(task.classes), "preprocessing": look})
    values = {
        "tasks": tasks,
        "head": network.head,
        "source": network.backbone.source,
        "fingerprint": network.backbone.fingerprint,
    }
    return tensor_bytes(tensors, {_KEY: json.dumps(values, ensure_ascii=False)})


def load_file(path: str | os.PathLike[str], backbone: Backbone) -> PackedNetwork:
    """Return the network in the file at ``path``; of ``backbone`` only the architecture is used.

    Raises TaskFileError for a file that is damaged or of another kind, BackboneMismatchError where it was packed from
    another architecture.
    """
    with error_context(path):
        tensors, values = read_tensors(path, _KEY, "a packed network")
        heads = _below(tensors, "heads")
        try:
            tasks = tuple(
                _task(value, _below(heads, str(n))) for n, value in enumerate(values["tasks"], 1)
            )
            head, source, mark = (str(values[key]) for key in ("head", "source", "fingerprint"))
        except (KeyError, TypeError, InputError, TaskNameError) as error:
            raise TaskFileError(f"metadata {_KEY!r}: {error}; it is damaged") from error
        what = f"a network packed from {source or 'a module built by hand'}"
        weights, shared = _below(tensors, "weights"), _below(tensors, "shared")
        if backbone.head != head:
            raise BackboneMismatchError(
                f"{what} has the head {head!r}: this backbone's is {backbone.head!r}"
            )
        try:
            network = empty(backbone, list(weights))
        except SelectionError as error:
            raise BackboneMismatchError(f"{what} packs other weights: {error}") from error
        check_tensors(weights, network.weights, what, mismatch=True)
        check_tensors(shared, network.shared, what, mismatch=True)
        for task in tasks:
            like = _head(network, task).state_dict()
            check_tensors(task.head, like, f"task {task.name!r}: head", mismatch=False)
        planes = _below(tensors, "owners")
        zeros = {n: _planes(w, len(tasks).bit_length()) for n, w in network.owners.items()}
        check_tensors(planes, zeros, f"owners, {len(tasks)} tasks", mismatch=False)
        owners = {n: _owners(n, planes[n], w.shape, len(tasks)) for n, w in weights.items()}
        info = BackboneInfo(source, mark)
        return replace(
            network, backbone=info, weights=weights, shared=shared, owners=owners, tasks=tasks
        )


def _task(value: Mapping[str, Any], head: Mapping[str, Tensor]) -> PackedTask:
    classes = value["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes {classes!r}: expected names")
    preprocessing = Preprocessing.from_json(value["preprocessing"])
    return PackedTask(check_name(value["name"]), tuple(classes), preprocessing, head)


def _head(network: PackedNetwork, task: PackedTask) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # its random values are not used
        return new_head(network.module.get_submodule(network.head), len(task.classes))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix`` and a dot, by the rest of their names."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _planes(owner: Tensor, bits: int) -> Tensor:
    """(bits, ceil(n / 8)) uint8: the bits of each owner, the lowest first."""
    planes = [pack_mask((owner >> bit) & 1 == 1).keep for bit in range(bits)]
    return torch.stack(planes) if planes else torch.zeros(0, -(-owner.numel() // 8)).byte()


def _owners(name: str, planes: Tensor, shape: torch.Size, tasks: int) -> Tensor:
    """What ``_planes`` was given."""
    owner = torch.zeros(shape, dtype=torch.uint8)
    for bit, plane in enumerate(planes):
        owner |= unpack_mask(PackedMask(tuple(shape), plane)).byte() << bit
    if owner.numel() and int(owner.max()) > tasks:
        raise TaskFileError(
            f"owners of {name!r}: task {int(owner.max())}: expected at most {tasks}; it is damaged"
        )
    return owner
