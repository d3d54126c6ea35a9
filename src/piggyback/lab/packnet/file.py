"""The file of a packed network: all weights once, and who owns each. Safetensors, no pickle.

    weights.NAME   the packed weights of all tasks together
    owners.NAME    uint8 (b, ceil(n / 8)): plane i holds bit i of the owner of each of n weights,
                   eight to a byte; b = ceil(log2(tasks + 1)), the fewest whole bits
    shared.NAME    normalisation, biases and the like, the same for all tasks
    heads.K.NAME   the classifier of task K, from 1
    checksum       SHA-256 of everything before it
    metadata       format, version, packnet: JSON with tasks in order, classes, preprocessing, head,
                   and the backbone's source and fingerprint

The file is whole: of the backbone only the architecture is needed to read it, no weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    SelectionError,
    TaskFileError,
    TaskNameError,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.packnet.network import MAX_TASKS, PackedNetwork, PackedTask, empty
from piggyback.masks.bits import PackedMask, pack, unpack
from piggyback.model.heads import new_head
from piggyback.network.backbone import Backbone, BackboneInfo
from piggyback.taskfile import container
from piggyback.taskfile.container import Entry
from piggyback.taskfile.disk import naming, write_whole
from piggyback.taskfile.task import check_name
from piggyback.zoo import runs_code
from piggyback.zoo.load import load_backbone

FORMAT = "piggyback-packnet"
VERSION = "1"
WEIGHTS, OWNERS, SHARED, HEADS = "weights", "owners", "shared", "heads"


def save(network: PackedNetwork) -> bytes:
    """Return the network as the bytes of its file; the same network always gives the same bytes.

    >>> from torch import nn
    >>> packed = empty(Backbone(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "", None, "1"))
    >>> load(save(packed), Backbone(packed.module, "", None, "1")).free
    1.0
    """
    bits = len(network.tasks).bit_length()
    tensors = {f"{WEIGHTS}.{name}": tensor for name, tensor in network.weights.items()}
    tensors |= {f"{OWNERS}.{n}": _planes(owner, bits) for n, owner in network.owners.items()}
    tensors |= {f"{SHARED}.{name}": tensor for name, tensor in network.shared.items()}
    for number, task in enumerate(network.tasks, 1):
        tensors |= {f"{HEADS}.{number}.{name}": tensor for name, tensor in task.head.items()}
    values = {
        "tasks": [
            {
                "name": task.name,
                "classes": list(task.classes),
                "preprocessing": task.preprocessing.to_json(),
            }
            for task in network.tasks
        ],
        "head": network.head,
        "source": network.backbone.source,
        "fingerprint": network.backbone.fingerprint,
    }
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    metadata = {"format": FORMAT, "version": VERSION, "packnet": text}
    return container.build(tensors, metadata)


def load(data: bytes, backbone: Backbone | None = None) -> PackedNetwork:
    """Return the network that ``save`` wrote.

    ``backbone`` gives the architecture; by default the one that the file names is built, without
    its pretrained weights. Raises TaskFileError for a file that is damaged or of another kind,
    BackboneMismatchError for one of another architecture, InputError where the architecture is
    needed and the file does not name one, or one whose loading would run a Python file.
    """
    view = memoryview(data)
    length = container.header_length(bytes(view[:8]), len(view))
    metadata, entries = container.parse_header(bytes(view[8 : 8 + length]), len(view))
    _check_format(metadata)
    container.check_digest(view, entries)
    parts = _parts(entries)
    tasks, head, info = _description(metadata["packnet"])
    backbone = _architecture(info, tasks) if backbone is None else backbone
    network = _like(backbone, head, parts, info)
    return PackedNetwork(
        module=network.module,
        head=head,
        backbone=info,
        weights=_read(view, parts[WEIGHTS]),
        owners={
            name: _owners(view, name, entry, tuple(network.weights[name].shape), len(tasks))
            for name, entry in parts[OWNERS].items()
        },
        shared=_read(view, parts[SHARED]),
        tasks=tuple(_with_head(view, t, i, parts[HEADS], network) for i, t in enumerate(tasks, 1)),
    )


def save_file(network: PackedNetwork, path: str | os.PathLike[str]) -> None:
    """Write the network to ``path``, whole or not at all; raises TaskFileError."""
    write(save(network), path)


def write(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write what ``save`` returned to ``path``, whole or not at all; raises TaskFileError."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise TaskFileError(
            f"{os.fspath(path)}: the network ({len(data)} bytes) cannot be written "
            f"({error.strerror}); make room or choose another folder"
        ) from error


def load_file(path: str | os.PathLike[str], backbone: Backbone | None = None) -> PackedNetwork:
    """Return the network in the file at ``path``; else as ``load``."""
    with naming(path):
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(container.header_length(file.read(8), size))
            _check_format(container.parse_header(text, size)[0])  # before all of it is read
            file.seek(0)
            data = file.read(size)
        return load(data, backbone)


def _check_format(metadata: Mapping[str, str]) -> None:
    found, version = metadata.get("format"), metadata.get("version")
    if found != FORMAT or "packnet" not in metadata:
        raise TaskFileError(f"format {found!r}: expected {FORMAT!r}, a file of a packed network")
    if version != VERSION:
        raise TaskFileError(
            f"version {version!r} of {FORMAT}: expected {VERSION!r}; install a newer torch-piggyback"
        )


def _description(text: str) -> tuple[list[PackedTask], str, BackboneInfo]:
    """The tasks, still without heads, the head's name, and the backbone."""
    values = container.strict_json(text, "description")
    try:
        tasks = [_task(value) for value in values["tasks"]]
        head, source, mark = (values[key] for key in ("head", "source", "fingerprint"))
    except (KeyError, TypeError, InputError, TaskNameError) as error:
        raise TaskFileError(f"description: {error}; it is damaged") from error
    names = [task.name for task in tasks]
    if not all(isinstance(value, str) for value in (head, source, mark)):
        raise TaskFileError("description: head, source and fingerprint: expected text")
    if len(set(names)) != len(names) or len(names) > MAX_TASKS:
        raise TaskFileError(f"tasks {names}: expected at most {MAX_TASKS} different ones")
    return tasks, head, BackboneInfo(source, mark)


def _task(value: Mapping[str, Any]) -> PackedTask:
    classes = tuple(value["classes"])
    if isinstance(value["classes"], str) or not all(isinstance(name, str) for name in classes):
        raise TaskFileError(f"classes {value['classes']!r}: expected names; it is damaged")
    preprocessing = Preprocessing.from_json(value["preprocessing"])
    return PackedTask(check_name(value["name"]), classes, preprocessing, {})


def _parts(entries: Mapping[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The tensors of each part, by their names in it."""
    parts: dict[str, dict[str, Entry]] = {WEIGHTS: {}, OWNERS: {}, SHARED: {}, HEADS: {}}
    for key, entry in entries.items():
        part, _, name = key.partition(".")
        if part in parts and name:
            parts[part][name] = entry
        elif key != container.CHECKSUM:
            raise TaskFileError(f"tensor {key[:80]!r} belongs to no part of a packed network")
    if parts[OWNERS].keys() != parts[WEIGHTS].keys():
        odd = sorted(parts[OWNERS].keys() ^ parts[WEIGHTS].keys())
        raise TaskFileError(f"{odd[0]!r}: expected both weights and owners; it is damaged")
    return parts


def _architecture(info: BackboneInfo, tasks: list[PackedTask]) -> Backbone:
    if not info.source or runs_code(info.source):
        raise InputError(
            f"the network was packed from {info.source or 'a module built by hand'!r}: pass "
            "backbone=<one of that architecture>"
        )
    size = tasks[0].preprocessing.image_size if tasks else None
    return load_backbone(info.source, pretrained=False, image_size=size)


def _like(
    backbone: Backbone, head: str, parts: Mapping[str, Mapping[str, Entry]], info: BackboneInfo
) -> PackedNetwork:
    """An empty network of the backbone, once the file's weights and shared tensors fit it."""
    what = f"a network packed from {info.source or 'a module built by hand'}"
    if backbone.head != head:
        raise BackboneMismatchError(
            f"{what} has the head {head!r}: this backbone's is {backbone.head!r}"
        )
    try:
        network = empty(backbone, list(parts[WEIGHTS]))
    except SelectionError as error:
        raise BackboneMismatchError(f"{what} packs other weights: {error}") from error
    for part, own in ((WEIGHTS, network.weights), (SHARED, network.shared)):
        wanted = {name: (container.dtype_name(name, t), tuple(t.shape)) for name, t in own.items()}
        found = {name: (entry.dtype, entry.shape) for name, entry in parts[part].items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise BackboneMismatchError(
                    f"{what}: tensor {name!r} is {found.get(name, 'missing')} there, and "
                    f"{wanted.get(name, 'missing')} in this backbone; load another one"
                )
    return network


def _with_head(
    view: memoryview,
    task: PackedTask,
    number: int,
    entries: Mapping[str, Entry],
    network: PackedNetwork,
) -> PackedTask:
    prefix = f"{number}."
    mine = {n.removeprefix(prefix): e for n, e in entries.items() if n.startswith(prefix)}
    with torch.random.fork_rng(devices=[]):  # its random values are not used
        head = new_head(network.module.get_submodule(network.head), len(task.classes))
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: entry.shape for name, entry in mine.items()}
    if wanted != found:
        raise TaskFileError(f"task {task.name!r}: head tensors {found}: expected {wanted}")
    return PackedTask(task.name, task.classes, task.preprocessing, _read(view, mine))


def _read(view: memoryview, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    return {name: container.read_tensor(view, entry) for name, entry in entries.items()}


def _planes(owner: Tensor, bits: int) -> Tensor:
    """(bits, ceil(n / 8)) uint8: the bits of each owner, the lowest first."""
    planes = [pack((owner >> bit) & 1 == 1).keep for bit in range(bits)]
    return torch.stack(planes) if planes else torch.zeros(0, -(-owner.numel() // 8)).byte()


def _owners(
    view: memoryview, name: str, entry: Entry, shape: tuple[int, ...], tasks: int
) -> Tensor:
    """What ``_planes`` was given."""
    length = -(-torch.Size(shape).numel() // 8)
    wanted = ("U8", (tasks.bit_length(), length))
    if (entry.dtype, entry.shape) != wanted:
        raise TaskFileError(f"owners of {name!r}: {entry.dtype} {entry.shape}: expected {wanted}")
    owner = torch.zeros(shape, dtype=torch.uint8)
    for bit, plane in enumerate(container.read_tensor(view, entry)):
        owner |= unpack(PackedMask(shape, plane)).byte() << bit
    if owner.numel() and int(owner.max()) > tasks:
        raise TaskFileError(
            f"owners of {name!r}: task {int(owner.max())}: expected at most {tasks}; it is damaged"
        )
    return owner
