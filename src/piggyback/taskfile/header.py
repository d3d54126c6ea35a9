"""What a task file says about itself: read and checked before anything is decoded, and without torch.

file  --container-->  metadata and entries  --parse-->  TaskHeader
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    TaskFileError,
    TaskNameError,
    near_misses,
)
from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.rule import MaskRule, coefficient_shape
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.container import (
    CHECKSUM,
    DIGEST_BYTES,
    MAX_HEADER,
    Entry,
    check_digest,
    check_shape,
    header_length,
    parse_header,
    read_json,
)
from piggyback.taskfile.disk import error_context
from piggyback.taskfile.task import TaskInfo, check_name
from piggyback.texts.preprocessing import Prepares, TextPreprocessing

FORMAT = "piggyback-task"
VERSION = 5
"""The newest that this library reads; a file has the lowest version that can hold its task: see ``lowest_version``."""
SEGMENTATION = "segmentation"
TOKENS = "tokens"
"""The head kinds that came with versions 2 and 4."""
CODECS = ("constant", "raw", "coded")
MASKS, DIGESTS = "masks", "digests"
HEAD, NORM, FORM = "head.", "norm.", "form."
SCALE, HALF = "scale.", "half."
"""Of version 3: the scales of head rows in codes of a byte, since version 5 of five bits; and float16 normalisation."""
FREE_BYTES = 1 << 20
MAX_EXPANSION = 1024
"""A file may claim FREE_BYTES + MAX_EXPANSION * its size bytes of packed masks, unless the caller knows the shapes."""
LARGE = 1 << 20
"""Bytes from which a file's header is looked at before the rest is read."""
_NUMBER = re.compile("[1-9][0-9]{0,8}")
_FIELDS = ["name", "kind", "classes", "rule", "head", "preprocessing", "backbone", "provenance", "masks"]  # fmt: skip
OUTPUTS = "outputs"
"""The field that came with version 4: what is known of the outputs besides their names, of these parts some."""
_OUTPUTS = ("units", "thresholds", "scaling", "calibration")

_ABSENT = Entry("", (), 0, 0)
CODE_BITS = 5
"""Of a head's codes, since version 5."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of the weights that may be masked, by name."""


@dataclass(frozen=True)
class LayerHeader:
    """One masked weight, as the header describes it."""

    name: str
    shape: tuple[int, ...]
    kept: int
    """Weights with m != 0."""
    codec: str
    """"constant" (all or none kept), "raw" or "coded"."""
    bits: int
    """Its share of the mask stream, side information included."""

    @property
    def numel(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def density(self) -> float:
        """Fraction of weights kept; 1.0 for a tensor without weights."""
        return self.kept / self.numel if self.numel else 1.0


@dataclass(frozen=True)
class TaskHeader:
    """A task file without its tensors; ``bytes_*`` are bytes on disk, in all ``bytes_total``."""

    name: str
    info: TaskInfo
    layers: tuple[LayerHeader, ...] = field(repr=False)
    version: int = 1
    bytes_masks: int = 0
    """The mask stream and all that is needed to decode it."""
    bytes_form: int = 0
    """The coefficients of the mask rule's form; none for the plain one."""
    bytes_head: int = 0
    bytes_norm: int = 0
    bytes_header: int = 0
    """Everything else: the JSON, digests and the checksum."""

    @property
    def bytes_total(self) -> int:
        """Size of the file."""
        parts = (self.bytes_masks, self.bytes_form, self.bytes_head, self.bytes_norm)
        return sum(parts) + self.bytes_header

    @property
    def weights(self) -> int:
        """Number of masked weights."""
        return sum(layer.numel for layer in self.layers)

    @property
    def density(self) -> float:
        """Fraction of masked weights kept; 1.0 without masks."""
        weights = self.weights
        return sum(layer.kept for layer in self.layers) / weights if weights else 1.0

    @property
    def bits_per_weight(self) -> float:
        """Bytes on disk of masks and coefficients * 8 / masked weights; 0.0 without masks."""
        return 8 * (self.bytes_masks + self.bytes_form) / self.weights if self.weights else 0.0


def header_of(data: bytes, expect: Shapes | None = None) -> TaskHeader:
    """Return what a file's bytes say about themselves, checked as ``load`` does, but no mask is decoded.

    >>> from piggyback.taskfile.file import save
    >>> from piggyback.taskfile.task import Task
    >>> header_of(save(Task("signs", {}, {}))).name
    'signs'
    """
    return parse(memoryview(data), expect)[0]


def keep_task(
    path: Path, what: str, how: str = "choose another name, or remove it", own: str | None = None
) -> None:
    """Raise InputError, naming ``what``, where a file that is to be written is a task's other than ``own``."""
    try:
        lost = read_header(path).name if path.is_file() else None
    except TaskFileError:
        return
    if lost not in (None, own):
        raise InputError(
            f"{what} {str(path)!r} is the file of task {lost!r}, which would be lost: {how}"
        )


def read_header(path: str | os.PathLike[str]) -> TaskHeader:
    """Return what the file at ``path`` says about itself: checksum verified, no mask decoded."""
    with error_context(path):
        return header_of(read_whole(path))


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return a task file's bytes; another kind of file is refused before all of it is read."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise TaskFileError("it is not a regular file: expected a task file; check the path")
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGE:
            text = file.read(header_length(file.read(8), size))
            check_format(parse_header(text, size)[0])
            file.seek(0)
        return file.read(size)


def parse(data: memoryview, expect: Shapes | None) -> tuple[TaskHeader, dict[str, Entry]]:
    """Return header and entries: everything about a file but the contents of its tensors, checked."""
    length = header_length(bytes(data[:8]), len(data))
    metadata, entries = parse_header(bytes(data[8 : 8 + length]), len(data))
    name, info, layers = from_metadata(metadata)
    check_digest(data, entries)
    version = int(metadata["version"])
    lowest = lowest_version(info, {key: entry.dtype for key, entry in entries.items()})
    if version != lowest:
        raise TaskFileError(
            f"version {version}: expected {lowest}, the lowest that can hold this task; it is damaged"
        )
    sizes = dict.fromkeys(("masks", "form", "head", "norm", "scale", "half"), 0)
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
        bytes_head=sizes["head"] + sizes["scale"],
        bytes_norm=sizes["norm"] + sizes["half"],
        bytes_header=len(data) - sum(sizes.values()),
    )
    _check_tensor(entries, MASKS, len(layers) > 0, (sizes["masks"],))
    _check_tensor(entries, DIGESTS, DIGESTS in entries, (len(layers), DIGEST_BYTES))
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
    """Raise TaskFileError where a file's short tensors do not fit what they stand for."""
    for name in (name for name in entries if name.startswith((SCALE, HALF))):
        entry, plain = entries[name], name.removeprefix(SCALE).removeprefix(HALF)
        if name.startswith(HALF):
            if entry.dtype != "F16" or NORM + plain in entries:
                raise TaskFileError(
                    f"tensor {name!r}: {entry.dtype}: expected F16 and no {NORM + plain!r}; it is damaged"
                )
            continue
        codes = entries.get(HEAD + plain, _ABSENT)
        five_bits = codes.dtype == "U8" and prod(codes.shape[2:]) == 1
        good = codes.dtype == "I8" or (five_bits and not sum(codes.shape[1:2]) % CODE_BITS)
        if not good or len(codes.shape) < 2:
            raise TaskFileError(
                f"tensor {name!r} without {HEAD + plain!r} in codes of a byte or five bits; it is damaged"
            )
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


def lowest_version(info: TaskInfo, dtypes: Mapping[str, str]) -> int:
    """Return the version of the file of a task with tensors of these names and safetensors' dtypes.

    >>> lowest_version(TaskInfo(), {"head.weight": "I8", "scale.weight": "F32"})
    3
    """
    names = {name.removeprefix(SCALE) for name in dtypes if name.startswith(SCALE)}
    if any(dtypes.get(HEAD + name) == "U8" for name in names):
        return 5
    texts = isinstance(info.preprocessing, TextPreprocessing)
    if texts or info.head_kind == TOKENS or any(getattr(info, part) for part in _OUTPUTS):
        return 4
    if names or any(name.startswith(HALF) for name in dtypes):
        return 3
    return 2 if info.rule.form != "plain" or info.head_kind == SEGMENTATION else 1


def to_metadata(
    name: str,
    info: TaskInfo,
    layers: tuple[LayerHeader, ...],
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the container's metadata for tensors of ``dtypes``; ``from_metadata`` reads it back.

    >>> sorted(to_metadata("signs", TaskInfo(), ()))
    ['format', 'task', 'version']
    """
    version, rule = lowest_version(info, dtypes), asdict(info.rule)
    outputs = {part: list(found) for part in _OUTPUTS if (found := getattr(info, part))}
    if version == 1:
        del rule["form"]
    values = {
        "name": name,
        "kind": info.kind,
        "classes": list(info.classes),
        "rule": rule,
        "head": info.head_kind,
        "preprocessing": None if info.preprocessing is None else info.preprocessing.to_json(),
        "backbone": {"source": info.backbone.source, "fingerprint": info.backbone.fingerprint},
        "provenance": dict(info.provenance),
        "masks": [[x.name, list(x.shape), x.kept, x.codec, x.bits] for x in layers],
    }
    if outputs:
        values[OUTPUTS] = outputs
    try:
        text = json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"task {name!r}: its description cannot be written as JSON ({error}); "
            "provenance must be plain values without NaN"
        ) from error
    return {"format": FORMAT, "version": str(version), "task": text}


def check_writable(name: str, info: TaskInfo) -> None:
    """Raise InputError for a description that no task file can hold, before the work that would fill the file."""
    metadata = to_metadata(name, info, ())
    # The other half is for layers and tensors.
    size, most = len(metadata["task"].encode()), MAX_HEADER // 2
    if size > most:
        raise InputError(
            f"task {name!r}: classes and provenance are {size} bytes as JSON: expected at most {most}; shorten the "
            "names of the classes"
        )
    from_metadata(metadata)  # what is written here is what a reader accepts


def from_metadata(metadata: Mapping[str, str]) -> tuple[str, TaskInfo, tuple[LayerHeader, ...]]:
    """Return name, info (without the weights' digests) and layers.

    Raises TaskFileError for anything that ``to_metadata`` would not write.
    """
    version = check_format(metadata)
    values = read_json(metadata["task"], "task description")
    good = isinstance(values, dict) and values.keys() - {OUTPUTS} == set(_FIELDS)
    _expect(good, "fields", sorted(_FIELDS))
    backbone, rule, provenance = values["backbone"], values["rule"], values["provenance"]
    good = isinstance(backbone, dict) and backbone.keys() == {"source", "fingerprint"}
    _expect(good and _texts(backbone.values()), "backbone", "source and fingerprint")
    of_rule = {"kind", "threshold"} if version == 1 else {"kind", "threshold", "form"}
    _expect(isinstance(rule, dict) and rule.keys() == of_rule, "rule", "a mask rule")
    _expect(isinstance(provenance, dict), "provenance", "an object")
    _expect(_texts(values[key] for key in ("name", "kind", "head")), "name, kind, head", "text")
    classes = values["classes"]
    _expect(isinstance(classes, list) and _texts(classes), "classes", "names")
    _expect(len(set(classes)) == len(classes), "classes", "each name once")
    try:
        info = TaskInfo(
            kind=values["kind"],
            classes=tuple(classes),
            rule=MaskRule(**rule),
            head_kind=values["head"],
            preprocessing=_preprocessing(values["preprocessing"]),
            backbone=BackboneInfo(backbone["source"], backbone["fingerprint"]),
            provenance=provenance,
            **(_outputs(values[OUTPUTS]) if OUTPUTS in values else {}),
        )
        name = check_name(values["name"])
    except (InputError, TaskNameError) as error:
        raise TaskFileError(f"{error}; the file is damaged") from error
    return name, info, _layers(values["masks"])


def _outputs(values: Any) -> dict[str, tuple[Any, ...]]:
    """The parts of a task's info that came with version 4; what they may hold is TaskInfo's to check."""
    good = isinstance(values, dict) and bool(values) and values.keys() <= set(_OUTPUTS)
    _expect(good, OUTPUTS, f"some of {', '.join(_OUTPUTS)}")
    found = {}
    for part, listed in values.items():
        _expect(isinstance(listed, list) and bool(listed), f"{OUTPUTS} {part}", "a list")
        found[part] = tuple([tuple(each) if isinstance(each, list) else each for each in listed])
    return found


def check_format(metadata: Mapping[str, str]) -> int:
    """Return the version of a task file by its metadata; raises TaskFileError unless this library reads it."""
    found = metadata.get("format", "none")
    if found != FORMAT:
        raise TaskFileError(f"format {found[:40]!r}: expected {FORMAT!r}; it is not a task file")
    version = metadata.get("version", "")
    if _NUMBER.fullmatch(version) and int(version) > VERSION:
        raise TaskFileError(
            f"format version {version}: this library reads up to {VERSION}; upgrade Piggyback"
        )
    if not _NUMBER.fullmatch(version) or metadata.keys() != {"format", "version", "task"}:
        raise TaskFileError(
            f"format version {version[:20]!r}: expected 1 to {VERSION}; the file is damaged"
        )
    return int(version)


def _layers(values: Any) -> tuple[LayerHeader, ...]:
    _expect(isinstance(values, list), "masks", "a list")
    layers = []
    for value in values:
        _expect(isinstance(value, list) and len(value) == 5, "mask", "five values")
        name, shape, kept, codec, bits = value
        _expect(isinstance(name, str) and 0 < len(name) <= 512, "mask name", "1 to 512 characters")
        _expect(name.isprintable(), f"mask name {name[:80]!r}", "printable characters")
        layer = LayerHeader(name, check_shape(name, shape), kept, codec, bits)
        _expect(type(kept) is int and 0 <= kept <= layer.numel, f"{name!r}: kept", "0 to its size")
        _expect(codec in CODECS, f"{name!r}: codec", ", ".join(CODECS))
        _expect(type(bits) is int and bits >= 0, f"{name!r}: bits", "a whole number")
        layers.append(layer)
    names = {layer.name for layer in layers}
    _expect(len(names) == len(layers), "mask names", "each once")
    return tuple(layers)


def _preprocessing(value: Any) -> Prepares | None:
    if value is None:
        return None
    _expect(isinstance(value, dict), "preprocessing", "an object")
    kind = TextPreprocessing if "tokenizer" in value else Preprocessing
    found = kind.from_json(value)
    _expect(found.to_json() == value, "preprocessing", f"{', '.join(found.to_json())} alone")
    return found


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _expect(good: bool, what: str, expected: object) -> None:
    if not good:
        raise TaskFileError(f"task description: {what}: expected {expected}; the file is damaged")
