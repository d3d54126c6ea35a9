"""Does a task hold together, and does a file claim no more than it can? Asked before any work."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError, near_misses
from piggyback.masks.bits import PackedMask
from piggyback.masks.forms import coefficient_shape
from piggyback.taskfile.container import DIGEST_BYTES, Entry
from piggyback.taskfile.header import TaskHeader
from piggyback.taskfile.task import Task

FREE_BYTES = 1 << 20
MAX_EXPANSION = 1024
"""A file may claim FREE_BYTES + MAX_EXPANSION * its size bytes of packed masks, unless the caller
knows the shapes."""

Shapes = Mapping[str, tuple[int, ...]]


def checked_mask(task: Task, name: str) -> PackedMask:
    """Return a mask of the task if it is what ``pack`` makes for its rule, else InputError."""
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
                f"for a weight of shape {mask.shape}"
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
            f"{len(wanted)}, its masked ones{_first_of(found.keys() ^ wanted.keys())}"
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


def check_form(header: TaskHeader, entries: Mapping[str, Entry]) -> None:
    """Raise TaskFileError where a file's coefficients are not those that its mask rule and masks ask for."""
    form = header.info.rule.form
    wanted = {x.name: coefficient_shape(form, x.shape) for x in header.layers}
    wanted = {} if form == "plain" else wanted
    if entries.keys() != wanted.keys():
        raise TaskFileError(
            f"coefficients for {len(entries)} weights: expected them for {len(wanted)}, since its mask rule "
            f"has form {form!r}{_first_of(entries.keys() ^ wanted.keys())}; it is damaged"
        )
    for name, entry in entries.items():
        if (entry.dtype, entry.shape) != ("F32", wanted[name]):
            raise TaskFileError(
                f"coefficients of {name!r}: {entry.dtype} {entry.shape}: expected F32 {wanted[name]}; "
                "it is damaged"
            )


def check_short(entries: Mapping[str, Entry], head: str, scale: str, norm: str, half: str) -> None:
    """Raise TaskFileError where a file's short tensors do not fit what they stand for, or it has none.

    The prefixes are those of head tensors, their scales, normalisation, and normalisation in float16.
    """
    short = [name for name in entries if name.startswith((scale, half))]
    if not short:
        raise TaskFileError("version 3 without a tensor in a short form: expected a lower one")
    for name in short:
        entry, plain = entries[name], name.removeprefix(scale).removeprefix(half)
        if name.startswith(half):
            if entry.dtype != "F16" or norm + plain in entries:
                raise TaskFileError(
                    f"tensor {name!r}: {entry.dtype}: expected F16 and no {norm + plain!r}; it is damaged"
                )
            continue
        codes = entries.get(head + plain)
        if codes is None or codes.dtype != "I8" or len(codes.shape) < 2:
            raise TaskFileError(f"tensor {name!r} without an I8 {head + plain!r}; it is damaged")
        if (entry.dtype, entry.shape) != ("F32", codes.shape[:1]):
            raise TaskFileError(
                f"tensor {name!r}: {entry.dtype} {entry.shape}: expected F32 {codes.shape[:1]}, "
                "a scale for each row; it is damaged"
            )


def check_scales(scales: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Raise TaskFileError for scales that are not finite and from 0, or codes of -128."""
    for name, values in scales.items():
        good = (127 * values).isfinite() & (values >= 0)
        if not bool(good.all()) or bool((head[name] == -128).any()):
            raise TaskFileError(
                f"the head's {name!r}: expected finite scales from 0 and codes from -127; it is damaged"
            )


def _first_of(names: Iterable[str]) -> str:
    return f"; the first that differs is {min(names)[:80]!r}"


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
            f"masked weights, found {len(weights)} digests; take them from backbones.fingerprint"
        )
    rows = b"".join(bytes.fromhex(weights[name]) for name in task.masks)
    return torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(-1, DIGEST_BYTES)


def check_size(header: TaskHeader) -> None:
    """Raise TaskFileError where a file claims far more weights than its bytes could tell apart."""
    claimed = sum(-(-layer.numel // 8) for layer in header.layers)
    allowed = FREE_BYTES + MAX_EXPANSION * header.bytes_total
    if claimed > allowed:
        raise TaskFileError(
            f"{header.weights} masked weights in a file of {header.bytes_total} bytes: expected at "
            f"most {8 * allowed}; if you trust it, load it with expect=<your backbone's shapes>"
        )


def check_shapes(header: TaskHeader, expect: Shapes) -> None:
    """Raise BackboneMismatchError where a file masks other weights than the backbone has."""
    source = header.info.backbone.source or "another backbone"
    for layer in header.layers:
        what = f"task {header.name!r} masks {layer.name!r} of shape {layer.shape}"
        if layer.name not in expect:
            raise BackboneMismatchError(
                f"{what}: this backbone has no such weight{near_misses(layer.name, expect)}; "
                f"load {source}, which the task was learned on"
            )
        if tuple(expect[layer.name]) != layer.shape:
            raise BackboneMismatchError(
                f"{what}: this backbone's has shape {tuple(expect[layer.name])}; "
                f"load {source}, which the task was learned on"
            )
