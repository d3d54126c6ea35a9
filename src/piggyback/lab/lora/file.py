"""``load_lora``: the file of a run of the method ``lora``, back onto its backbone.

tensors     LAYER.lora_A.weight, LAYER.lora_B.weight, HEAD.*, and normalisation, by their names in the backbone
metadata    lora         targets with rank and alpha, head, classes, preprocessing, fingerprint of the backbone
            provenance   how it was trained
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from piggyback.errors import BackboneMismatchError, TaskFileError
from piggyback.lab.lora.adapters import (
    adapt_,
    adapter_shapes,
    adapter_tensors,
    find_layers,
    own_ranks,
)
from piggyback.model.heads import new_head
from piggyback.network.backbone import Backbone
from piggyback.network.fingerprint import fingerprint
from piggyback.network.frozen import replace_module
from piggyback.network.norm import norm_tensors
from piggyback.taskfile.container import strict_json
from piggyback.taskfile.disk import naming
from piggyback.train.checkpoint import load_live


@dataclass(frozen=True)
class _Notes:
    """What the file's metadata says."""

    ranks: dict[str, int]
    alphas: dict[str, float]
    head: str
    classes: int
    fingerprint: str


def load_lora(path: str | os.PathLike[str], backbone: Backbone | nn.Module) -> nn.Module:
    """Return a copy of the backbone, in eval mode, with the adapters, head and normalisation of a ``lora`` run.

    Raises TaskFileError for a file that is damaged or of another kind, BackboneMismatchError where it was learned on
    other weights, MissingExtraError without PEFT.
    """
    module = backbone.module if isinstance(backbone, Backbone) else backbone
    with naming(path), torch.random.fork_rng(devices=[]):  # what is random at first is overwritten
        tensors, notes = _read(Path(path))
        _check_backbone(module, notes)
        network = copy.deepcopy(module).requires_grad_(False)
        head = new_head(network.get_submodule(notes.head), notes.classes)
        _check_shapes(tensors, _expected(network, head, notes, tensors))
        adapt_(network, notes.ranks, notes.alphas)
        replace_module(network, notes.head, head)
    live = {
        **adapter_tensors(network, notes.ranks),
        **{f"{notes.head}.{name}": tensor for name, tensor in head.state_dict().items()},
        **norm_tensors(network, notes.head, counters=True),
    }
    load_live({name: live[name] for name in tensors}, tensors)
    return network.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Tensor], _Notes]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise TaskFileError(f"it cannot be read: {error}; get it again") from error
    try:
        return tensors, _notes(strict_json(metadata["lora"], "metadata 'lora'"))
    except (KeyError, TypeError, ValueError) as error:
        raise TaskFileError(
            f"expected a file of the method lora, its metadata lacks or mistakes {error}; "
            "for a task file, use MultiTaskModel.load_task"
        ) from error


def _check_backbone(module: nn.Module, notes: _Notes) -> None:
    named = {name for name, _ in module.named_modules() if name}
    if notes.head not in named:
        raise BackboneMismatchError(
            f"its head is {notes.head!r}, of which {type(module).__name__} has none: expected the "
            "backbone that it was trained on"
        )
    found = fingerprint(module, (), notes.head)[0]
    if found != notes.fingerprint:
        raise BackboneMismatchError(
            f"its adapters were learned on weights {notes.fingerprint[:16]}..., this backbone's are "
            f"{found[:16]}...: load the backbone that it was trained on"
        )


def _notes(values: Any) -> _Notes:
    targets = dict(values["targets"])
    return _Notes(
        ranks={name: _positive(target["rank"], "rank") for name, target in targets.items()},
        alphas={name: _positive(target["alpha"], "alpha") for name, target in targets.items()},
        head=str(values["head"]),
        classes=_positive(len(values["classes"]), "classes"),
        fingerprint=str(values["fingerprint"]),
    )


def _positive(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{what} {value!r}")
    return value


def _expected(
    network: nn.Module, head: nn.Module, notes: _Notes, names: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """The shapes of all that the file must hold, and of the normalisation among ``names`` that it may."""
    modules = {name for name, _ in network.named_modules()}
    layers = find_layers(network, [f"{name}.weight" for name in notes.ranks if name in modules])
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rank in notes.ranks.items():
        if name not in layers or own_ranks(layers, rank)[name] != rank:
            raise TaskFileError(
                f"target {name!r} of rank {rank}: expected a layer that can have such an adapter"
            )
        shapes |= {f"{name}.{part}": s for part, s in adapter_shapes(layers[name], rank).items()}
    shapes |= {f"{notes.head}.{name}": tuple(t.shape) for name, t in head.state_dict().items()}
    norms = norm_tensors(network, notes.head, counters=True)
    return shapes | {name: tuple(t.shape) for name, t in norms.items() if name in names}


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise TaskFileError(
                f"tensor {name!r}: expected shape {expected.get(name)}, found {found.get(name)}; "
                "it is damaged"
            )
