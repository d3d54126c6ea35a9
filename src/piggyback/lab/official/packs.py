"""The authors' packs, as tasks and back: masks by the index of a module, classifiers as pickled layers.

A pack is a file of torch.save with two dictionaries (docs/NETWORKS.md has the whole layout):

    dataset2masks         data set -> {index in shared.modules() -> ByteTensor of the weight's shape}
    dataset2classifiers   data set -> a pickled torch.nn.Linear

``shared`` is the network without its classifier; ``network.py`` says which parameter an index stands for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.official.network import shared_weights, weight_shapes
from piggyback.lab.official.torch_files import Record, Stored, read_archive
from piggyback.masks.bits import pack_mask, unpack_mask
from piggyback.masks.rule import MaskRule
from piggyback.model.heads import class_names
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.network.fingerprint import fingerprint
from piggyback.taskfile.disk import error_context, write_file
from piggyback.taskfile.task import Task, TaskInfo, check_name

MASKS, CLASSIFIERS = "dataset2masks", "dataset2classifiers"
MINUS = 255
"""What a mask's -1 became in their unsigned bytes."""

_LINEAR = "torch.nn.modules.linear.Linear"
_AGAIN = "get the pack from where it was published"


def import_official(
    path: str | os.PathLike[str], dataset: str, arch: str, backbone: Backbone
) -> Task:
    """Return the task that the pack at ``path`` holds for ``dataset``, as masks over ``backbone``.

    A mask with a -1 in it makes the task ternary. Classes have numbers as names, since a pack knows no others; images
    are prepared as the authors did, whose data sets called "cropped" go straight to 224 x 224 pixels.

    Nothing in the pack is run. Raises TaskFileError for a pack that is damaged, of another layout, or holds anything
    but tensors, containers and modules; BackboneMismatchError, before a mask is read, where indices or shapes are not
    the backbone's. That the weights are those the masks were learned on, a pack cannot tell.
    """
    check_name(dataset)
    weights = shared_weights(arch, backbone.module)
    shapes = weight_shapes(arch, backbone.module)
    with error_context(path):
        stored, classifier = _entries(read_archive(path), dataset)
        _check_masks(stored, {index: shapes[name] for index, name in weights.items()}, arch)
        head = _classifier(classifier, backbone)
        masks = {
            name: pack_mask(_signed(stored[index], f"module {index} ({name})"))
            for index, name in weights.items()
        }
    ternary = any(m.negative is not None and bool(m.negative.any()) for m in masks.values())
    if not ternary:
        masks = {name: replace(mask, negative=None) for name, mask in masks.items()}
    whole, digests = fingerprint(backbone.module, list(masks), backbone.head)
    info = TaskInfo(
        classes=class_names(len(head["weight"])),
        rule=MaskRule("ternary" if ternary else "binary"),
        preprocessing=Preprocessing(crop_pct=1.0 if "cropped" in dataset else 224 / 256),
        backbone=BackboneInfo(backbone.source, whole, digests),
        provenance={"official": {"pack": Path(path).name, "arch": arch, "dataset": dataset}},
    )
    order = [name for name, _ in backbone.module.named_parameters() if name in masks]
    return Task(dataset, {name: masks[name] for name in order}, head, info=info)


def check_pack(path: str | os.PathLike[str], dataset: str) -> None:
    """Raise TaskFileError unless there is a pack at ``path`` with ``dataset`` in it."""
    with error_context(path):
        _entries(read_archive(path), dataset)


def export_official(tasks: Sequence[Task], arch: str, module: nn.Module) -> dict[str, Any]:
    """Return what ``torch.save`` makes a pack of: the tasks by their names, in the authors' layout.

    Of ``module`` only the tree and the shapes are asked; it may lie on the meta device. Raises InputError where a task
    has what a pack cannot hold: its own normalisation, a head that is not a linear layer, coefficients, or no mask for
    some weight. Class names and preprocessing are lost.
    """
    if twice := {task.name for task in tasks if sum(task.name == t.name for t in tasks) > 1}:
        raise InputError(f"tasks {sorted(twice)}: expected each name once in a pack; rename one")
    weights, shapes = shared_weights(arch, module), weight_shapes(arch, module)
    for task in tasks:
        _check_exportable(task, shapes, arch)
    return {
        MASKS: {
            task.name: {
                index: unpack_mask(task.masks[name]).to(torch.int8).view(torch.uint8)
                for index, name in weights.items()
            }
            for task in tasks
        },
        CLASSIFIERS: {task.name: _linear(task) for task in tasks},
    }


def save_official(contents: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write what ``export_official`` returned to ``path``, whole or not at all, in the format of before torch 1.6."""
    data = io.BytesIO()
    torch.save(contents, data, _use_new_zipfile_serialization=False)
    write_file(Path(path), data.getvalue())


# -- a pack's contents -----------------------------------------------------------------------------


def _entries(root: Any, dataset: str) -> tuple[dict[int, Tensor], Any]:
    """The masks and the classifier of one data set."""
    parts = root if isinstance(root, dict) else {}
    masks, classifiers = parts.get(MASKS), parts.get(CLASSIFIERS)
    if not isinstance(masks, dict) or not isinstance(classifiers, dict):
        raise TaskFileError(
            f"it holds a {type(root).__name__}: expected one with {MASKS!r} and {CLASSIFIERS!r}, as the authors' "
            "packing script writes them"
        )
    if dataset not in masks or dataset not in classifiers:
        known = [n for n in map(str, masks) if n in classifiers and n.isprintable()]
        raise TaskFileError(
            f"no data set {dataset!r} in this pack: expected one of {', '.join(known)[:200]}"
            f"{near_misses(dataset, known)}"
        )
    found = masks[dataset]
    if not isinstance(found, dict) or not all(
        type(index) is int and isinstance(mask, Stored) for index, mask in found.items()
    ):
        raise TaskFileError(
            f"the masks of {dataset!r}: expected a tensor for each index of a module; {_AGAIN}"
        )
    return {index: mask.tensor for index, mask in found.items()}, classifiers[dataset]


def _check_masks(
    stored: Mapping[int, Tensor], shapes: Mapping[int, tuple[int, ...]], arch: str
) -> None:
    missing, extra = sorted(shapes.keys() - stored.keys()), sorted(stored.keys() - shapes.keys())
    if missing or extra:
        raise BackboneMismatchError(
            f"its {len(stored)} masks are not for {arch!r}, which has {len(shapes)}: {len(missing)} modules have no "
            f"mask ({missing[:3]}), {len(extra)} masks are for modules without a weight to mask ({extra[:3]}); "
            "name the architecture that the pack was made for"
        )
    for index, shape in shapes.items():
        mask = stored[index]
        if mask.shape != shape:
            raise BackboneMismatchError(
                f"the mask of module {index} has shape {tuple(mask.shape)}: expected {shape} for {arch!r}; "
                "name the architecture that the pack was made for"
            )
        if mask.dtype != torch.uint8:
            raise TaskFileError(
                f"the mask of module {index} is {mask.dtype}: expected torch.uint8; {_AGAIN}"
            )


def _classifier(record: Any, backbone: Backbone) -> dict[str, Tensor]:
    """The head's tensors, from a pickled linear layer that fits behind the backbone."""
    features = getattr(backbone.module.get_submodule(backbone.head), "in_features", None)
    if not isinstance(record, Record) or record.name != _LINEAR:
        found = record.name if isinstance(record, Record) else type(record).__name__
        raise TaskFileError(f"its classifier is a {found}: expected a {_LINEAR}; {_AGAIN}")
    params = record.state.get("_parameters")
    params = params if isinstance(params, dict) else {}
    tensors = {n: t.tensor.contiguous() for n, t in params.items() if isinstance(t, Stored)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    classes = (shapes.get("weight") or (0,))[0]
    wanted = {"weight": (classes, features), "bias": (classes,)}
    if not classes or shapes != {name: wanted[name] for name in shapes if name in wanted}:
        raise BackboneMismatchError(
            f"its classifier has tensors {str(shapes)[:200]}: expected a weight (classes, {features}) and a bias "
            "(classes,); name the architecture that the pack was made for"
        )
    if others := {t.dtype for t in tensors.values()} - {torch.float32}:
        raise TaskFileError(
            f"its classifier has numbers of {others.pop()}: expected torch.float32; {_AGAIN}"
        )
    return tensors


def _signed(mask: Tensor, what: str) -> Tensor:
    """int8 in {-1, 0, 1}, from unsigned bytes in which -1 became 255."""
    wrong = mask[(mask > 1) & (mask != MINUS)]
    if wrong.numel():
        raise TaskFileError(
            f"the mask of {what} has a value {int(wrong[0])}: expected 0, 1, or {MINUS} for -1; {_AGAIN}"
        )
    return mask.view(torch.int8)


def _check_exportable(task: Task, shapes: Mapping[str, tuple[int, ...]], arch: str) -> None:
    found = {name: mask.shape for name, mask in task.masks.items()}
    if found != shapes:
        others = [n for n in {**shapes, **found} if found.get(n) != shapes.get(n)]
        raise InputError(
            f"task {task.name!r} does not mask what a pack for {arch!r} does: {len(others)} weights differ, the first "
            f"{others[0]!r}; a pack has a mask for each of {len(shapes)} weights"
        )
    odd = {
        "normalisation of its own": bool(task.norm),
        "coefficients": bool(task.coefficients),
        f"a head of kind {task.info.head_kind!r}": task.info.head_kind != "linear",
    }
    for what, has in odd.items():
        if has:
            raise InputError(
                f"task {task.name!r} has {what}, which the authors' packs cannot hold: leave this task out"
            )


def _linear(task: Task) -> nn.Linear:
    outputs, inputs = task.head["weight"].shape
    layer = nn.Linear(inputs, outputs, bias="bias" in task.head, device="meta")
    layer = layer.to_empty(device="cpu")  # made so, it takes no random numbers
    layer.load_state_dict(dict(task.head))
    return layer
