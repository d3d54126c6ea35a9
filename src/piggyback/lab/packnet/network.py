"""A packed network: one set of weights, each owned by at most one task, as PackNet leaves it.

owner   0: free, and then the weight is 0   k: learned by the k-th task, fixed since
task k  computes with the weights of owners 1 ... k; all others count as 0
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TrainingError, UnknownTaskError, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.packnet.prune import smallest
from piggyback.model.heads import class_names, new_head
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.fingerprint import IGNORED, fingerprint
from piggyback.network.frozen import replace_module
from piggyback.network.select import Selection, select_weights

MAX_TASKS = 255
BACKBONE = "backbone"
"""The name of the backbone where it counts as the first task."""


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
    tasks: tuple[PackedTask, ...] = field(default=())
    """In the order in which they were learned."""

    @property
    def free(self) -> float:
        """Fraction of the weights that no task owns."""
        free = sum(int((owner == 0).sum()) for owner in self.owners.values())
        return free / sum(owner.numel() for owner in self.owners.values())

    def owned(self, number: int) -> dict[str, Tensor]:
        """Return, bool by name, where the weights lie whose owner is ``number``."""
        return {name: owner == number for name, owner in self.owners.items()}

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
        module = self._filled(live)
        with torch.random.fork_rng(devices=[]):  # its random values are overwritten
            head = new_head(module.get_submodule(self.head), len(mine.classes))
        head.load_state_dict(dict(mine.head))
        replace_module(module, self.head, head)
        return module.requires_grad_(False).eval()

    def whole(self) -> nn.Module:
        """Return a plain module with all weights, the free ones too, and the backbone's head."""
        return self._filled(self.weights)

    @torch.no_grad()
    def _filled(self, weights: Mapping[str, Tensor]) -> nn.Module:
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
        number = len(self.tasks)
        last = self.tasks[-1]
        weights = {}
        for name, old in self.weights.items():
            moved = (state[name] != old) & (self.owners[name] != number)
            _check_still(last.name, name, still=not bool(moved.any()))
            weights[name] = torch.where(self.owners[name] == number, state[name], old).contiguous()
        shared = {name: state[name].contiguous() for name in self.shared}
        for name, tensor in shared.items():
            _check_still(last.name, name, still=first or torch.equal(tensor, self.shared[name]))
        prefix = f"{self.head}."
        head = {
            name.removeprefix(prefix): tensor.contiguous()
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
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


def with_backbone(
    network: PackedNetwork, share: float, preprocessing: Preprocessing
) -> PackedNetwork:
    """Return an empty network in which the pruned backbone is the first task, with its own head.

    Raises InputError where its head cannot be copied.
    """
    head = network.module.get_submodule(network.head)
    outputs = getattr(head, "out_features", getattr(head, "out_channels", None))
    if outputs is None:
        raise InputError(
            f"head {network.head!r} is a {type(head).__name__}: expected Linear or Conv2d, for a "
            "backbone that counts as a task; leave prune_backbone out"
        )
    task = PackedTask(BACKBONE, class_names(outputs), preprocessing, {})
    state = {name: tensor.detach().cpu() for name, tensor in network.module.state_dict().items()}
    return network.learned(task, state, first=False).pruned(share)


def _check_still(task: str, name: str, *, still: bool) -> None:
    if not still:
        raise TrainingError(
            f"task {task!r}: {name} has moved, which earlier tasks need as it was: expected a "
            "network that changes nothing but normalisation outside its optimizer"
        )
