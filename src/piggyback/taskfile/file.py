"""The task file: four verbs; ``header`` has a look at what a file says of itself. docs/FORMAT.md describes every byte.

save(task) -> bytes     load(bytes) -> task     save_file(task, path)     load_file(path) -> task
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from piggyback.errors import InputError, TaskFileError, check_is
from piggyback.masks.bits import PackedMask
from piggyback.taskfile import container
from piggyback.taskfile.checks import (
    check_finite,
    check_scales,
    checked_coefficients,
    checked_mask,
    digest_rows,
)
from piggyback.taskfile.codec import reader, writer
from piggyback.taskfile.container import Entry
from piggyback.taskfile.disk import check_path, error_context, write_whole
from piggyback.taskfile.header import (
    DIGESTS,
    FORM,
    HALF,
    HEAD,
    MASKS,
    NORM,
    SCALE,
    LayerHeader,
    Shapes,
    parse,
    read_whole,
    to_metadata,
)
from piggyback.taskfile.rounding import (
    PACKED,
    codes_to_rows,
    pack_codes,
    rows_to_codes,
    to_half,
    unpack_codes,
)
from piggyback.taskfile.task import ROW_HEADS, Task, check_name


def save(task: Task) -> bytes:
    """Return the task as the bytes of a task file; the same task always gives the same bytes.

    >>> task = Task("signs", {}, {"weight": torch.zeros(2, 3)})
    >>> load(save(task)).head["weight"].shape
    torch.Size([2, 3])
    """
    check_finite(task)
    coded = writer.encode([checked_mask(task, name) for name in task.masks])
    layers = tuple(
        LayerHeader(name, mask.shape, mask.kept, codec, bits)
        for (name, mask), codec, bits in zip(
            task.masks.items(), coded.codecs, coded.bits, strict=True
        )
    )
    tensors: dict[str, Tensor] = {}
    if task.masks:
        tensors[MASKS] = torch.frombuffer(bytearray(coded.data), dtype=torch.uint8)
    if task.info.backbone.weights:
        tensors[DIGESTS] = digest_rows(task)
    tensors |= {FORM + name: tensor for name, tensor in checked_coefficients(task).items()}
    tensors |= _short_head(task) | _short_norm(task)
    dtypes = {name: container.dtype_name(name, tensor) for name, tensor in tensors.items()}
    data = container.build(tensors, to_metadata(task.name, task.info, layers, dtypes))
    shapes = {name: mask.shape for name, mask in task.masks.items()}
    parse(memoryview(data), shapes)  # what is written here is what a reader accepts
    return data


def load(data: bytes, name: str | None = None, expect: Shapes | None = None) -> Task:
    """Return the task that ``save`` wrote, as ``name`` if given.

    ``expect`` gives the shape of every weight that may be masked, by name; a file for others raises
    BackboneMismatchError before a mask is decoded. All else that is wrong raises TaskFileError.

    >>> load(save(Task("signs", {}, {})), name="roads").name
    'roads'
    """
    if name is not None:
        check_name(name)
    view = memoryview(data)
    header, entries = parse(view, expect)
    masks: dict[str, PackedMask] = {}
    if header.layers:
        stream = bytes(view[entries[MASKS].start : entries[MASKS].stop])
        ternary = header.info.rule.kind == "ternary"
        shapes = [layer.shape for layer in header.layers]
        kept = [layer.kept for layer in header.layers]
        decoded = reader.decode(stream, shapes, ternary=ternary, kept=kept)
        masks = {layer.name: m for layer, m in zip(header.layers, decoded, strict=True)}
    scales, head = _tensors(view, entries, SCALE), _tensors(view, entries, HEAD)
    for key in scales:
        if head[key].dtype == torch.uint8:
            head[key] = unpack_codes(head[key])
            if bool((head[key] > PACKED).any()):
                raise TaskFileError(
                    f"the head's {key!r}: expected codes up to {PACKED}; it is damaged"
                )
    check_scales(scales, head)
    info = header.info
    if DIGESTS in entries:
        rows = container.read_tensor(view, entries[DIGESTS]).numpy()
        weights = {x.name: row.tobytes().hex() for x, row in zip(header.layers, rows, strict=True)}
        info = replace(info, backbone=replace(info.backbone, weights=weights))
    task = Task(
        name=header.name if name is None else name,
        masks=masks,
        head={n: codes_to_rows(t, scales[n]) if n in scales else t for n, t in head.items()},
        norm={
            **_tensors(view, entries, NORM),
            **{name: half.float() for name, half in _tensors(view, entries, HALF).items()},
        },
        info=info,
        coefficients=_tensors(view, entries, FORM),
    )
    try:
        checked_coefficients(task)
        check_finite(task)
    except InputError as error:
        raise TaskFileError(f"{error}; the file is damaged") from error
    return task


def save_file(task: Task, path: str | os.PathLike[str]) -> None:
    """Write the task to ``path``, whole or not at all: an error leaves the file that was there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(Task("signs", {}, {}), folder + "/signs.safetensors")
    ...     load_file(folder + "/signs.safetensors").name
    'signs'
    """
    check_is("task", task, Task, "a Task; the path comes after it")
    check_path(path)
    data = save(task)
    try:
        write_whole(path, data)
    except OSError as error:
        raise TaskFileError(
            f"{os.fspath(path)}: task {task.name!r} ({len(data)} bytes) cannot be written "
            f"({error.strerror}); nothing was changed, make room or choose another folder"
        ) from error


def load_file(
    path: str | os.PathLike[str], name: str | None = None, expect: Shapes | None = None
) -> Task:
    """Return the task in the file at ``path``; ``name`` and ``expect`` as for ``load``."""
    with error_context(path):
        return load(read_whole(path), name, expect)


def _short_head(task: Task) -> dict[str, Tensor]:
    """The head's tensors, those that ``round_rows`` made as codes and scales; a custom head as it is."""
    tensors = {}
    for name, tensor in task.head.items():
        found = None if task.info.head_kind not in ROW_HEADS else rows_to_codes(tensor)
        if found is None:
            tensors[HEAD + name] = tensor
        else:
            packed = pack_codes(found[0])
            tensors[HEAD + name] = found[0] if packed is None else packed
            tensors[SCALE + name] = found[1]
    return tensors


def _short_norm(task: Task) -> dict[str, Tensor]:
    """Normalisation, in float16 where that is the same to the bit."""
    halves = {name: to_half(tensor) for name, tensor in task.norm.items()}
    plain = {NORM + name: task.norm[name] for name, half in halves.items() if half is None}
    return plain | {HALF + name: half for name, half in halves.items() if half is not None}


def _tensors(data: memoryview, entries: Mapping[str, Entry], prefix: str) -> dict[str, Tensor]:
    found = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
    return {
        name.removeprefix(prefix): container.read_tensor(data, entry)
        for name, entry in found.items()
    }
