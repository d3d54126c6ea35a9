"""A task file's header, read and checked before anything is decoded; torch is not needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from piggyback.errors import BackboneMismatchError, TaskFileError, near_misses
from piggyback.masks.rule import coefficient_shape
from piggyback.taskfile.container import (
    CHECKSUM,
    DIGEST_BYTES,
    Entry,
    check_digest,
    header_length,
    parse_header,
)
from piggyback.taskfile.disk import naming, read_whole
from piggyback.taskfile.header import TaskHeader, from_metadata

MASKS, DIGESTS = "masks", "digests"
HEAD, NORM, FORM = "head.", "norm.", "form."
SCALE, HALF = "scale.", "half."
"""Of version 3: the scales of head rows that are int8, and normalisation in float16."""
FREE_BYTES = 1 << 20
MAX_EXPANSION = 1024
"""A file may claim FREE_BYTES + MAX_EXPANSION * its size bytes of packed masks, unless the caller
knows the shapes."""

Shapes = Mapping[str, tuple[int, ...]]


def header_of(data: bytes, expect: Shapes | None = None) -> TaskHeader:
    """Return what a file's bytes say about themselves, checked as ``load`` does, but no mask is decoded.

    >>> from piggyback.taskfile.file import save
    >>> from piggyback.taskfile.task import Task
    >>> header_of(save(Task("signs", {}, {}))).name
    'signs'
    """
    return parse(memoryview(data), expect)[0]


def read_header(path: str | os.PathLike[str]) -> TaskHeader:
    """Return what the file at ``path`` says about itself: checksum verified, no mask decoded."""
    with naming(path):
        return header_of(read_whole(path))


def parse(data: memoryview, expect: Shapes | None) -> tuple[TaskHeader, dict[str, Entry]]:
    """Return header and entries: everything about a file but the contents of its tensors, checked."""
    length = header_length(bytes(data[:8]), len(data))
    metadata, entries = parse_header(bytes(data[8 : 8 + length]), len(data))
    name, info, layers = from_metadata(metadata)
    check_digest(data, entries)
    version = int(metadata["version"])
    sizes = {"masks": 0, "form": 0, "head": 0, "norm": 0}
    if version > 2:
        sizes |= {"scale": 0, "half": 0}
    for key, entry in entries.items():
        part = key.partition(".")[0]
        if key in (DIGESTS, CHECKSUM):
            continue
        if part not in sizes or (part == MASKS) != (key == part) or not key.isprintable():
            raise TaskFileError(f"tensor {key[:80]!r} belongs to no part of a task; it is damaged")
        sizes[part] += entry.nbytes
    header = TaskHeader(
        name=name,
        info=info,
        layers=layers,
        version=version,
        bytes_masks=sizes["masks"],
        bytes_form=sizes["form"],
        bytes_head=sizes["head"] + sizes.get("scale", 0),
        bytes_norm=sizes["norm"] + sizes.get("half", 0),
        bytes_header=len(data) - sum(sizes.values()),
    )
    _check_tensor(entries, MASKS, len(layers) > 0, (sizes["masks"],))
    _check_tensor(entries, DIGESTS, DIGESTS in entries, (len(layers), DIGEST_BYTES))
    if version > 2:
        _check_short(entries)
    _check_form(header, {k.removeprefix(FORM): e for k, e in entries.items() if k.startswith(FORM)})
    if expect is None:
        _check_size(header)
    else:
        _check_shapes(header, expect)
    return header, entries


def _check_tensor(
    entries: Mapping[str, Entry], name: str, wanted: bool, shape: tuple[int, ...]
) -> None:
    entry = entries.get(name)
    if (entry is not None) != wanted:
        raise TaskFileError(f"tensor {name!r} {'is missing' if wanted else 'describes no weight'}")
    if entry is not None and (entry.dtype, entry.shape) != ("U8", shape):
        raise TaskFileError(f"tensor {name!r}: {entry.dtype} {entry.shape}: expected U8 {shape}")


def _check_form(header: TaskHeader, entries: Mapping[str, Entry]) -> None:
    """Raise TaskFileError where a file's coefficients are not those that its mask rule and masks ask for."""
    form = header.info.rule.form
    wanted = {x.name: coefficient_shape(form, x.shape) for x in header.layers}
    wanted = {} if form == "plain" else wanted
    if entries.keys() != wanted.keys():
        raise TaskFileError(
            f"coefficients for {len(entries)} weights: expected them for {len(wanted)}, since its mask rule "
            f"has form {form!r}{first_of(entries.keys() ^ wanted.keys())}; it is damaged"
        )
    for name, entry in entries.items():
        if (entry.dtype, entry.shape) != ("F32", wanted[name]):
            raise TaskFileError(
                f"coefficients of {name!r}: {entry.dtype} {entry.shape}: expected F32 {wanted[name]}; "
                "it is damaged"
            )


def _check_short(entries: Mapping[str, Entry]) -> None:
    """Raise TaskFileError where a file's short tensors do not fit what they stand for, or it has none."""
    short = [name for name in entries if name.startswith((SCALE, HALF))]
    if not short:
        raise TaskFileError("version 3 without a tensor in a short form: expected a lower one")
    for name in short:
        entry, plain = entries[name], name.removeprefix(SCALE).removeprefix(HALF)
        if name.startswith(HALF):
            if entry.dtype != "F16" or NORM + plain in entries:
                raise TaskFileError(
                    f"tensor {name!r}: {entry.dtype}: expected F16 and no {NORM + plain!r}; it is damaged"
                )
            continue
        codes = entries.get(HEAD + plain)
        if codes is None or codes.dtype != "I8" or len(codes.shape) < 2:
            raise TaskFileError(f"tensor {name!r} without an I8 {HEAD + plain!r}; it is damaged")
        if (entry.dtype, entry.shape) != ("F32", codes.shape[:1]):
            raise TaskFileError(
                f"tensor {name!r}: {entry.dtype} {entry.shape}: expected F32 {codes.shape[:1]}, "
                "a scale for each row; it is damaged"
            )


def _check_size(header: TaskHeader) -> None:
    """Raise TaskFileError where a file claims far more weights than its bytes could tell apart."""
    claimed = sum(-(-layer.numel // 8) for layer in header.layers)
    allowed = FREE_BYTES + MAX_EXPANSION * header.bytes_total
    if claimed > allowed:
        raise TaskFileError(
            f"{header.weights} masked weights in a file of {header.bytes_total} bytes: expected at "
            f"most {8 * allowed}; if you trust it, load it with expect=<your backbone's shapes>"
        )


def _check_shapes(header: TaskHeader, expect: Shapes) -> None:
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


def first_of(names: Iterable[str]) -> str:
    """Return the end of a complaint about names that are on one side only."""
    return f"; the first that differs is {min(names)[:80]!r}"
