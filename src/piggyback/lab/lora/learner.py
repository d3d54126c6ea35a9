"""LoRA: low-rank adapters beside frozen weights, through PEFT, in the bytes of a mask; the method ``lora``.

What a run leaves is one safetensors file with what differs from the backbone; ``load_lora`` puts it back.

    tensors     LAYER.lora_A.weight, LAYER.lora_B.weight, HEAD.*, and normalisation where it is trained, by their
                names in the backbone
    metadata    lora         targets with rank and alpha, head, classes, preprocessing, fingerprint of the backbone
                provenance   how it was trained
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError, require
from piggyback.lab.lora.adapters import (
    Layer,
    adapt_,
    adapter_bytes,
    adapter_tensors,
    find_layers,
    largest_rank,
    own_ranks,
)
from piggyback.lab.tensor_file import check_tensors, read_tensors
from piggyback.model.heads import new_head
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.network.frozen import replace_module
from piggyback.network.head import find_head
from piggyback.network.norm import norm_modules, norm_tensors
from piggyback.network.select import select_weights
from piggyback.taskfile.disk import error_context
from piggyback.train.checkpoint import load_live
from piggyback.train.hashing import seed_of
from piggyback.train.learners import HEAD_STREAM, CopyLearner, move
from piggyback.train.methods import Setup
from piggyback.train.recipe import Recipe

_ADAPTER_STREAM = 0x10A


class LoraLearner(CopyLearner):
    """Trains adapters, a head, and normalisation if asked, on a copy of the backbone."""

    suffix = ".lora"

    def __init__(self, backbone: Backbone, setup: Setup) -> None:
        peft = require("peft", "peft")  # before anything is copied
        recipe = setup.recipe
        self._head = backbone.head or find_head(backbone.module)
        self._norm = recipe.norm
        self.fingerprint = fingerprint(backbone.module, (), self._head)[0]
        self.network = copy.deepcopy(backbone.module).eval()
        weights = select_weights(self.network, recipe.select, self._head)
        layers = find_layers(self.network, weights, setup.preprocessing.example())
        rank = choose_rank(recipe, layers, weights)
        self._ranks = own_ranks(layers, rank)
        notes = self._notes(setup, layers, rank, weights)
        self.notes = {"lora": {**notes, "peft": peft.__version__}}
        torch.manual_seed(seed_of(recipe.seed, _ADAPTER_STREAM))
        adapt_(self.network, self._ranks)
        torch.manual_seed(seed_of(recipe.seed, HEAD_STREAM))
        head = new_head(self.network.get_submodule(self._head), len(setup.classes), setup.kind)
        replace_module(self.network, self._head, head.requires_grad_(True))
        for tensor in self._norms().values():
            tensor.requires_grad_(isinstance(tensor, nn.Parameter))
        move(self.network, setup)
        self.optimizer = torch.optim.AdamW(
            self._groups(recipe), weight_decay=recipe.weight_decay, fused=True
        )

    def mode(self, training: bool) -> None:
        """Set training or evaluation mode; only trained normalisation learns its statistics."""
        self.network.train(training)
        for layer in norm_modules(self.network, self._head).values():
            layer.train(training and self._norm == "trained")

    def live(self) -> dict[str, Tensor]:
        """Return adapters, head and trained normalisation."""
        return {**_changed(self.network, self._ranks, self._head), **self._norms()}

    def _norms(self) -> dict[str, Tensor]:
        """The normalisation that trains, with its statistics where these are learned too."""
        if self._norm == "frozen":
            return {}
        found = norm_tensors(self.network, self._head, counters=True)
        every = self._norm == "trained"
        return {name: t for name, t in found.items() if every or isinstance(t, nn.Parameter)}

    def _groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """What trains, by learning rate."""
        parts = (
            (recipe.lora_lr, adapter_tensors(self.network, self._ranks).values()),
            (recipe.head_lr, self.network.get_submodule(self._head).parameters()),
            (recipe.norm_lr, [t for t in self._norms().values() if isinstance(t, nn.Parameter)]),
        )
        groups = [{"params": list(params), "lr": lr, "peak_lr": lr} for lr, params in parts]
        return [group for group in groups if group["params"]]

    def _notes(
        self, setup: Setup, layers: Mapping[str, Layer], rank: int, weights: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What the file says: all that ``load_lora`` needs, and what was left alone."""
        left = {name: w for name, w in weights.items() if name.rpartition(".")[0] not in layers}
        return {
            "rank": rank,
            "targets": {name: {"rank": r, "alpha": r} for name, r in self._ranks.items()},
            "head": self._head,
            "kind": setup.kind,
            "classes": list(setup.classes),
            "preprocessing": setup.preprocessing.to_json(),
            "fingerprint": self.fingerprint,
            "adapter_bytes": adapter_bytes(layers, rank),
            "left_alone": {name: weight.numel() for name, weight in left.items()},
        }


def choose_rank(recipe: Recipe, layers: Mapping[str, Layer], weights: Mapping[str, Tensor]) -> int:
    """Return the recipe's rank, or the largest that fits into its bytes: one bit per weight where it names none.

    Raises InputError where no layer can be adapted or the bytes are too few.

    >>> layer = nn.Linear(256, 256)
    >>> choose_rank(Recipe("lora"), {"fc": layer}, {"fc.weight": layer.weight})  # 8192 bytes, 2048 a rank
    4
    """
    if not layers:
        raise InputError(
            f"lora: none of the {len(weights)} selected weights is in a layer that PEFT can adapt: expected a "
            "linear layer or an ordinary convolution; use the method masks"
        )
    budget = recipe.lora_bytes or -(-sum(w.numel() for w in weights.values()) // 8)
    if recipe.lora_rank is None:
        return largest_rank(layers, budget)
    needed = adapter_bytes(layers, recipe.lora_rank)
    if recipe.lora_bytes is not None and needed > budget:
        raise InputError(
            f"lora_rank {recipe.lora_rank} needs {needed} bytes, lora_bytes allows {budget}: "
            "give one of the two"
        )
    return recipe.lora_rank


class _Target(BaseModel):
    rank: PositiveInt
    alpha: PositiveInt


class _Notes(BaseModel):
    """What a file's metadata says, as far as reading it goes."""

    targets: dict[str, _Target]
    head: str
    classes: Annotated[list[str], Field(min_length=1)]
    fingerprint: str
    kind: str = "classification"


def load_lora(path: str | os.PathLike[str], backbone: Backbone | nn.Module) -> nn.Module:
    """Return a copy of the backbone, in eval mode, with the adapters, head and normalisation of a ``lora`` run.

    Raises TaskFileError for a file that is damaged or of another kind, BackboneMismatchError where it was learned on
    other weights, MissingExtraError without PEFT.
    """
    module = backbone.module if isinstance(backbone, Backbone) else backbone
    # What is random at first is overwritten.
    with error_context(path), torch.random.fork_rng(devices=[]):
        tensors, notes = read_tensors(path, "lora", _Notes)
        names = {name for name, _ in module.named_modules() if name}
        found = fingerprint(module, (), notes.head)[0] if notes.head in names else "none"
        if found != notes.fingerprint:
            raise BackboneMismatchError(
                f"its adapters were learned on weights {notes.fingerprint[:16]}... and the head {notes.head!r}, this "
                f"backbone's are {found[:16]}...: load the backbone that it was trained on"
            )
        network = copy.deepcopy(module).requires_grad_(False)
        ranks = {name: target.rank for name, target in notes.targets.items()}
        layers = find_layers(network, [f"{name}.weight" for name in ranks if name in names])
        for name, rank in ranks.items():
            if name not in layers or own_ranks(layers, rank)[name] != rank:
                raise TaskFileError(
                    f"target {name!r} of rank {rank}: expected a layer that can have such an adapter"
                )
        adapt_(network, ranks, {name: target.alpha for name, target in notes.targets.items()})
        head = new_head(network.get_submodule(notes.head), len(notes.classes), notes.kind)
        replace_module(network, notes.head, head)
        norms = norm_tensors(network, notes.head, counters=True)
        live = _changed(network, ranks, notes.head)
        live |= {name: tensor for name, tensor in norms.items() if name in tensors}
        check_tensors(tensors, live, "adapters and head", TaskFileError)
    load_live(live, tensors)
    return network.eval().requires_grad_(False)


def _changed(network: nn.Module, names: Mapping[str, int], head: str) -> dict[str, Tensor]:
    """Adapters and head of an adapted network, by their names in its file."""
    state = network.get_submodule(head).state_dict()
    return {
        **adapter_tensors(network, names),
        **{f"{head}.{name}": tensor for name, tensor in state.items()},
    }
