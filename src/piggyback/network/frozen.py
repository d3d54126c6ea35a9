"""A backbone held still: frozen, fingerprinted, and with all that is needed to put it back as it came."""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from piggyback.errors import (
    BackboneError,
    SelectionError,
    TaskStateError,
    check_is,
    near_misses,
)
from piggyback.masks.bits import PackedMask
from piggyback.masks.rule import Form
from piggyback.masks.switch import LiveWeights
from piggyback.network.fingerprint import IGNORED, digests_of, tensor_digest, whole_of
from piggyback.network.head import find_head
from piggyback.network.norm import computing_modules, norm_modules, norm_tensors
from piggyback.network.select import Selection, select_weights

_HOLDERS: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[FrozenBackbone], dict[str, str]]]
_HOLDERS = weakref.WeakKeyDictionary()
"""Who holds a layer, and the digests of its masked weights: a second holder would take masked weights for base
weights."""

_WRAPPERS = {
    "torch.DataParallel": "module",
    "torch.DistributedDataParallel": "module",
    "torch.AveragedModel": "module",
    "torch.OptimizedModule": "_orig_mod",
}
"""Modules around a network, and where it is in them."""


class FrozenBackbone:
    """A module whose masked weights, normalisation and classifier can be exchanged, and put back bit for bit.

    Raises SelectionError, before the module is changed, where weights or classifier cannot be chosen, BackboneError
    where its passes would change weights.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    >>> frozen = FrozenBackbone(net)
    >>> frozen.head_name, frozen.masked_names
    ('2', ('0.weight',))
    """

    def __init__(
        self, module: nn.Module, select: Selection = None, head: str | None = None
    ) -> None:
        check_is("backbone", module, nn.Module, "a network, or what load_backbone returns")
        _refuse_wrapped(module)
        _refuse_rewriting(module)
        self.head_name = find_head(module) if head is None else _known_module(module, head)
        self.masked_names = tuple(select_weights(module, select, head=self.head_name))
        digests = digests_of(module)
        self.digests = {name: digests[name] for name in self.masked_names}
        self.fingerprint = whole_of(digests, self.head_name)
        self.with_head = whole_of(digests)
        """The fingerprint for tasks that keep the classifier."""
        refuse_held(module)
        # All that can fail has been done: from here on the module changes.
        self.module = module
        self.head = module.get_submodule(self.head_name)
        config: Any = getattr(module, "config", None)
        outputs = getattr(self.head, "out_features", None)
        noted = hasattr(config, "id2label") and config.num_labels == outputs
        self._labels = (config.id2label, config.label2id) if noted else None
        self._problem = getattr(config, "problem_type", None)
        self._head_places = places_of(module, self.head)
        self._modes = [(m, m.training) for m in module.modules()]
        self._required = {name: p.requires_grad for name, p in module.named_parameters()}
        self._shapes = {
            name: tuple(p.shape)
            for name, p in module.named_parameters()
            if not name.startswith(f"{self.head_name}.")
        }
        module.requires_grad_(False)
        self.live = LiveWeights(module, self.masked_names)
        with torch.inference_mode(False), torch.no_grad():
            self.base_state = {name: t.detach().clone() for name, t in self.state().items()}
        self._seen: list[tuple[dict[str, Any], str, Tensor, int]] = []
        self._owners = self._owned()
        # How often each weight was changed, after the last write.
        self._versions: list[tuple[str, Tensor, int]] = []
        self._placed_head: nn.Module | None = self.head
        layers = norm_modules(module, self.head_name)
        self._resting = [*layers.values(), *computing_modules(module, self.head_name)]
        self._came = {
            n: (p.dtype, digests.get(n)) for n, p in module.named_parameters() if n in self._shapes
        }
        # While a task trains: what it leaves alone.
        self._watched: dict[str, tuple[Tensor, int]] = {}
        self._hold()
        self.count()

    def _hold(self) -> None:
        """Let it be known that this one writes into the module's weights."""
        held: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for name, digest in self.digests.items():
            path, _, key = name.rpartition(".")
            held[self.module.get_submodule(path)][key] = digest
        _HOLDERS.update({layer: (weakref.ref(self), own) for layer, own in held.items()})

    def __getstate__(self) -> dict[str, Any]:
        # Copies count from 0.
        return {**self.__dict__, "_seen": [], "_versions": [], "_watched": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold()

    def norms(self) -> dict[str, Tensor]:
        """Return the normalisation tensors that a task may bring, as they are now, not copied."""
        return norm_tensors(self.module, self.head_name)

    def state(self) -> dict[str, Tensor]:
        """Return all that training may change besides weights: normalisation and saved buffers; not copied."""
        norm = norm_tensors(self.module, self.head_name, counters=True)
        saved = self.module.state_dict(keep_vars=True)
        buffers = {
            name: buffer
            for name, buffer in self.module.named_buffers()
            if name in saved and not name.startswith(f"{self.head_name}.")
        }
        return {**norm, **buffers}

    def changed_buffers(self) -> list[str]:
        """Return the names of saved buffers that no longer hold what came; batch norm's counters do not count."""
        return [
            name
            for name, tensor in self.state().items()
            if not isinstance(tensor, nn.Parameter)
            and not name.endswith(IGNORED)
            and not torch.equal(tensor, self.base_state[name])
        ]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every parameter that a task may mask: all but the classifier's."""
        return self._shapes

    @torch.no_grad()
    def write_(
        self,
        masks: Mapping[str, PackedMask],
        norm: Mapping[str, Tensor],
        head: nn.Module,
        coefficients: Mapping[str, Tensor] | None = None,
        form: Form = "plain",
    ) -> None:
        """Put a task in place: what it does not bring becomes the base value.

        Raises TaskStateError, before anything is changed, where weights were moved behind the base weights' back.
        """
        self.live.write_(masks, coefficients, form)
        if norm or not self._holds_base_state():
            values = {**self.base_state, **norm}
            for name, tensor in self.state().items():
                if name not in masks:
                    tensor.copy_(values[name])
            self._seen = [] if norm else self._sight()
        self.put_head(head)
        if not torch.compiler.is_compiling():  # what was computed from the weights of before
            torch.clear_autocast_cache()
        self.count()

    def rest(self) -> None:
        """Bring to eval mode, where the caller's ``train()`` of the network passed the model by, what would drift."""
        for part in self._resting:
            if part.training:
                part.eval()
        if self._placed_head is not None and self._placed_head.training:
            self._placed_head.eval()

    def invalidate_state(self) -> None:
        """Let the next ``write_`` write all of the state: it may change in ways that torch does not count."""
        self._seen, self._versions = [], []

    def count(self) -> None:
        """Note how often each weight was changed."""
        self._versions = []
        if torch.compiler.is_compiling():
            return  # compiled code counts its own copies
        weights = [(name, part) for *_, name, part in self._owners if isinstance(part, Tensor)]
        for key, param in self.module.get_submodule(self.head_name).named_parameters():
            weights.append((f"{self.head_name}.{key}", param))
        self._versions = [(n, p, p._version) for n, p in weights if not p.is_inference()]

    def _owned(self) -> list[tuple[dict[str, Any], str, str, Any]]:
        """Where each parameter outside the head stands, and the modules on the way to it, with the parameter's name."""
        owned: dict[tuple[int, str], tuple[dict[str, Any], str, str, Any]] = {}
        for name in self._shapes:
            owner, *path = self.module, *name.split(".")
            for key in path:
                part = getattr(owner, key)
                for places in (owner._modules, owner._parameters):
                    # Not so where a wrapper hands its content through; TorchScript's are no dicts.
                    if isinstance(places, dict) and places.get(key) is part:
                        owned.setdefault((id(places), key), (places, key, name, part))
                owner = part
        return list(owned.values())

    def check_own(self) -> None:
        """Raise TaskStateError where a parameter is no longer the network's own, or stands in a module that is not."""
        head = self._placed_head
        wrong = [p for p in self._head_places if head not in (None, self.module.get_submodule(p))]
        # Most calls end here, and a function for each part would double what this costs.
        if not wrong and all(
            (now := owner.get(key)) is part or _is_lent(now) for owner, key, _, part in self._owners
        ):
            return
        wrong += [name for *_, name, part in self._owners if not self._is_own(name, part)]
        if wrong:
            raise TaskStateError(
                f"{wrong[0]!r} was replaced after the MultiTaskModel was built, as load_state_dict(assign=True), "
                "set_input_embeddings(), prune and fully_shard() do: expected the network's own, which task files "
                "name; change it first and build the MultiTaskModel last, or use DDP"
            )
        self._owners = self._owned()  # modules were wrapped, as for activation checkpointing

    def _is_own(self, name: str, part: Any) -> bool:
        path, _, key = name.rpartition(".")
        try:
            owner = self.module.get_submodule(path)
            now = getattr(owner, key)
        except AttributeError:
            return False
        return isinstance(part, nn.Module) or now is part or _is_lent(owner._parameters.get(key))

    def changed(self) -> str | None:
        """Return a weight that others wrote since the last ``write_``; raises TaskStateError where one was replaced.

        Torch does not count what is written through ``.data``.
        """
        if torch.compiler.is_compiling():
            return None
        self.check_own()
        # Nothing has been counted while a task is in training.
        return next((name for name, p, version in self._versions if p._version != version), None)

    def watch(self, trained: Collection[str]) -> None:
        """Note how often each parameter outside the head was changed, but for those that are ``trained``."""
        self._watched = {
            name: (param, param._version)
            for name, param in self.module.named_parameters()
            if name in self._came and name not in trained and not param.is_inference()
        }

    def touched(self) -> list[str]:
        """Return the names of watched parameters that no longer hold what came."""
        found = []
        for name, (param, version) in self._watched.items():
            if param._version == version:
                continue
            # A state dict of the same values counts as a change, too; what was moved to another dtype cannot be known.
            dtype, digest = self._came[name]
            if param.dtype == dtype and tensor_digest(param) != digest:
                found.append(name)
            else:
                self._watched[name] = param, param._version
        return found

    def is_whole(self) -> bool:
        """Return whether the backbone, its own weights and head in place, is what came: by its fingerprint."""
        return whole_of(digests_of(self.module)) == self.with_head

    def _holds_base_state(self) -> bool:
        """Whether the state was left alone since its base values were written, so that they need not be again."""
        return bool(self._seen) and all(
            place[key] is tensor and tensor._version == version
            for place, key, tensor, version in self._seen
        )

    def _sight(self) -> list[tuple[dict[str, Any], str, Tensor, int]]:
        """Where each tensor of the state stands, itself, and torch's count of the changes to it."""
        seen: list[tuple[dict[str, Any], str, Tensor, int]] = []
        for name, tensor in self.state().items():
            if tensor.is_inference():
                return []  # not counted
            if name not in self.live.base:
                path, _, key = name.rpartition(".")
                # A module's own lookup takes ten times as long as its dicts.
                owner = self.module.get_submodule(path)
                place = owner._buffers if key in owner._buffers else owner._parameters
                seen.append((place, key, tensor, tensor._version))
        return seen

    def put_head(self, head: nn.Module) -> None:
        """Put ``head`` where the classifier stands, under every name that it has."""
        self._placed_head = None
        for path in self._head_places:
            replace_module(self.module, path, head)
        self._placed_head = head
        self._note_labels(head)

    def _note_labels(self, head: nn.Module) -> None:
        """Let a network of transformers, which computes its loss by what it has noted, note the head's labels."""
        if self._labels is None:
            return
        config: Any = self.module.config
        config.problem_type = self._problem  # else that of the first loss stays
        if head is self.head:
            config.id2label, config.label2id = self._labels
        elif outputs := getattr(head, "out_features", 0):
            config.num_labels = outputs
        if hasattr(self.module, "num_labels"):
            cast(Any, self.module).num_labels = config.num_labels

    def give_back(self) -> nn.Module:
        """Return the module as it came: weights, statistics, classifier, what was trainable, and modes."""
        self.write_({}, {}, self.head)
        for name in self.masked_names:
            _HOLDERS.pop(self.module.get_submodule(name.rpartition(".")[0]), None)
        for name, param in self.module.named_parameters():
            param.requires_grad_(self._required[name])
        for module, mode in self._modes:
            module.training = mode
        return self.module

    def apply(self, move: Callable[[Tensor], Tensor]) -> None:
        """Follow the module after ``nn.Module._apply`` moved it."""
        self.live.apply(move)
        self.invalidate_state()
        self._owners = self._owned()
        self.base_state = {name: move(tensor) for name, tensor in self.base_state.items()}


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy, also of a network whose old weight norm or pruning has left a computed weight behind.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> plain_copy(net)[0].weight is net[0].weight
    False
    """
    for layer in module.modules():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                setattr(layer, name, value.detach())  # computed anew at the next pass
    return copy.deepcopy(module)


def _is_lent(now: Any) -> bool:
    """Whether it is a tensor that is no parameter, as ``functional_call`` lends it."""
    return isinstance(now, Tensor) and not isinstance(now, nn.Parameter)


def places_of(root: nn.Module, module: nn.Module) -> tuple[str, ...]:
    """Return every name under which ``module`` is a part of ``root``.

    >>> layer = nn.ReLU()
    >>> places_of(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}), layer)
    ('a', 'b.0')
    """
    named = root.named_modules(remove_duplicate=False)
    return tuple(name for name, child in named if child is module)


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted ``path`` below ``root``.

    >>> net = nn.Sequential(nn.Identity())
    >>> replace_module(net, "0", nn.ReLU()); net[0]
    ReLU()
    """
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _refuse_wrapped(module: nn.Module) -> None:
    """Raise SelectionError for a wrapper: its weights have other names than the network's, and so would task files."""
    for kind, inside in _WRAPPERS.items():
        if kind in (f"{c.__module__.split('.')[0]}.{c.__name__}" for c in type(module).__mro__):
            raise SelectionError(
                f"{type(module).__name__} wraps a network, and a task learned on it would fit no plain one: expected "
                f"the network itself, its .{inside}; wrap or compile the MultiTaskModel instead"
            )


def _refuse_rewriting(module: nn.Module) -> None:
    """Raise BackboneError for an embedding that shortens rows in place when they are used."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
            raise BackboneError(
                f"embedding {name!r} has max_norm={layer.max_norm:g}, by which its passes rewrite weights: expected "
                f"weights that stay; shorten all rows by one call on torch.arange({layer.num_embeddings}), then set "
                "its max_norm to None"
            )


def refuse_held(module: nn.Module) -> None:
    """Raise TaskStateError where the masks of another model are, or may come to be, in the module's weights."""
    for layer in module.modules():
        if layer not in _HOLDERS:
            continue
        holder, digests = _HOLDERS[layer]
        if holder() is not None:
            raise TaskStateError(
                f"{type(module).__name__}: it is held by another MultiTaskModel, whose masks may be in its weights; "
                "release() that one first, or load the network anew"
            )
        if any(tensor_digest(layer.get_parameter(key)) != was for key, was in digests.items()):
            raise TaskStateError(
                f"{type(module).__name__}: the masks of a MultiTaskModel that is gone are still in its weights; load "
                "the network anew, or pass copy.deepcopy(network) if these weights are meant"
            )


def _known_module(module: nn.Module, name: str) -> str:
    """The first name of the module called ``name``: weights go by that of a module with several."""
    named = {known: child for known, child in module.named_modules(remove_duplicate=False) if known}
    if name not in named:
        raise SelectionError(
            f"head {name!r}: expected the name of a module in {type(module).__name__}"
            f"{near_misses(str(name), named)}"
        )
    return places_of(module, named[name])[0]
