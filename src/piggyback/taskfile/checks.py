"""Do the tensors of a task hold together, and do they belong to a backbone? Asked before anything is changed."""

from __future__ import annotations

import string
from collections.abc import Mapping

import torch
from torch import Tensor

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError
from piggyback.masks.bits import PackedMask
from piggyback.masks.rule import coefficient_shape
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.container import DIGEST_BYTES
from piggyback.taskfile.header import Shapes, first_of
from piggyback.taskfile.task import Task


def check_fits(
    task: Task,
    weights: Shapes,
    norm: Mapping[str, Tensor],
    whole: str,
) -> None:
    """Raise BackboneMismatchError unless ``task`` was learned on this backbone.

    ``weights`` gives the shapes of the parameters that may be masked, ``norm`` the tensors that a task may bring
    its own of, ``whole`` the backbone's fingerprint. Raises InputError for masks and coefficients that are not
    those of its mask rule.
    """
    source = f" ({task.info.backbone.source})" if task.info.backbone.source else ""
    what = f"task {task.name!r} is for another architecture{source}"
    wanted = [(name, mask.shape, weights.get(name)) for name, mask in task.masks.items()]
    for name, tensor in task.norm.items():
        found = tuple(norm[name].shape) if name in norm else None
        wanted.append((name, tuple(tensor.shape), found))
    missing = [name for name, _, found in wanted if found is None]
    if missing:
        raise BackboneMismatchError(
            f"{what}: {len(missing)} of its {len(wanted)} tensors are not in this backbone, the first {missing[0]!r}; "
            "load the backbone that the task file names"
        )
    for name, shape, found in wanted:
        if shape != found:
            raise BackboneMismatchError(
                f"{what}: {name!r} has shape {shape} in the task, {found} in this backbone; "
                "load the backbone that the task file names"
            )
    check_fingerprint(task.name, task.info.backbone, whole)
    for name in task.masks:
        checked_mask(task, name)
    checked_coefficients(task)


def check_fingerprint(name: str, backbone: BackboneInfo, whole: str) -> None:
    """Raise BackboneMismatchError where a task names another fingerprint than ``whole``; one that names none passes."""
    found = backbone.fingerprint
    if found and found != whole:
        source = f" ({backbone.source})" if backbone.source else ""
        raise BackboneMismatchError(
            f"task {name!r} was learned on other weights{source}: its backbone has fingerprint "
            f"{found[:16]}, this one {whole[:16]}; load the very weights it was trained on, and convert "
            "the MultiTaskModel, not the network before it, where another precision is wanted"
        )


def checked_mask(task: Task, name: str) -> PackedMask:
    """Return a mask of the task if it is what ``pack_mask`` makes for its rule, else InputError."""
    mask = task.masks[name]
    ternary = task.info.rule.kind == "ternary"
    planes = [mask.keep] if mask.negative is None else [mask.keep, mask.negative]
    length = -(-mask.numel // 8)
    what = f"task {task.name!r}: the mask of {name!r}"
    if len(planes) != 1 + ternary:
        raise InputError(
            f"{what} has {len(planes)} planes: expected {1 + ternary} for a "
            f"{task.info.rule.kind} rule"
        )
    spare = 0xFF & ~(0xFF >> (-mask.numel % 8))
    for plane in planes:
        if plane.dtype != torch.uint8 or tuple(plane.shape) != (length,):
            raise InputError(
                f"{what} is {plane.dtype} {tuple(plane.shape)}: expected torch.uint8 ({length},) "
                f"for a weight of shape {mask.shape}; make it with pack_mask()"
            )
        if length and int(plane[-1]) & spare:
            raise InputError(f"{what} has bits set past its last weight: expected zeros")
    if mask.negative is not None and bool((mask.negative & ~mask.keep).any()):
        raise InputError(f"{what} negates weights that it does not keep: expected a subset")
    return mask


def checked_coefficients(task: Task) -> Mapping[str, Tensor]:
    """Return the task's coefficients if they are what the form of its mask rule takes, else InputError."""
    form, found = task.info.rule.form, task.coefficients
    what = f"task {task.name!r} of form {form!r}"
    wanted = {} if form == "plain" else task.masks
    if found.keys() != wanted.keys():
        raise InputError(
            f"{what} has coefficients for {len(found)} weights: expected them for "
            f"{len(wanted)}, its masked ones{first_of(found.keys() ^ wanted.keys())}"
        )
    for name, tensor in found.items():
        shape = coefficient_shape(form, task.masks[name].shape)
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise InputError(
                f"{what}: the coefficients of {name!r} are {tensor.dtype} {tuple(tensor.shape)}: expected "
                f"torch.float32 {shape} for a weight of shape {task.masks[name].shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{what}: the coefficients of {name!r} are not finite: train it anew")
    return found


def check_finite(task: Task) -> None:
    """Raise InputError where the task's head or normalisation has NaN or infinities: its answers would be none."""
    for what, tensors in (("head", task.head), ("normalisation", task.norm)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise InputError(
                    f"task {task.name!r}: the {what}'s {name!r} is not finite: expected numbers; train it anew"
                )


def check_scales(scales: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Raise TaskFileError for scales that are not finite and from 0, or codes of -128."""
    for name, values in scales.items():
        good = (127 * values).isfinite() & (values >= 0)
        if not bool(good.all()) or bool((head[name] == -128).any()):
            raise TaskFileError(
                f"the head's {name!r}: expected finite scales from 0 and codes from -127; it is damaged"
            )


def digest_rows(task: Task) -> Tensor:
    """Return the digests of the masked weights, ``(masks, 32)`` uint8, in the masks' order."""
    weights = task.info.backbone.weights
    hexadecimal = all(
        len(digest) == 2 * DIGEST_BYTES and set(digest) <= set(string.hexdigits.lower())
        for digest in weights.values()
    )
    if weights.keys() != task.masks.keys() or not hexadecimal:
        raise InputError(
            f"task {task.name!r}: expected a SHA-256 in hex for each of its {len(task.masks)} "
            f"masked weights, found {len(weights)} digests; take them from piggyback.network.fingerprint"
        )
    rows = b"".join(bytes.fromhex(weights[name]) for name in task.masks)
    return torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(-1, DIGEST_BYTES)
