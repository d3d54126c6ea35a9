"""The container of a task file: safetensors, written deterministically and read with distrust.

    8 bytes: n, little endian | n bytes of JSON | tensors, one after the other | 32 bytes: SHA-256

Any safetensors reader can open the file. The reader here is our own because a task file is
stricter: every byte belongs to exactly one tensor, JSON keys are unique, and nothing is allocated
before its size is known to be real.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from piggyback.errors import InputError, TaskFileError
from piggyback.strict_json import strict_json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 1 << 20
"""Bytes of JSON; parsed before anything is known to be true, so it must be small."""
MAX_DIMENSIONS = 8
MAX_DEPTH = 64
"""Levels of nested lists and objects."""
CHECKSUM = "checksum"
DIGEST_BYTES = 32

DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
}
"""Torch's name and the bytes of an element by safetensors' name, widest first: tensors lie in this order, so each is
aligned. Not torch's objects: a file's header is read without torch."""
_NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}
_ORDER = list(DTYPES)


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: ``start`` and ``stop`` count bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start


def build(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file's bytes; the same tensors and metadata always give the same bytes.

    >>> import torch
    >>> len(build({"a": torch.zeros(2)}, {})) % 8
    0
    """
    names = sorted(tensors, key=lambda name: (_ORDER.index(dtype_name(name, tensors[name])), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = _json_entry(dtype_name(name, tensor), tensor.shape, offset, end)
        offset = end
    header[CHECKSUM] = _json_entry("U8", (DIGEST_BYTES,), offset, offset + DIGEST_BYTES)
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a tensor's name is not Unicode text ({error})") from error
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in a mapped file
    if len(text) > MAX_HEADER:
        raise InputError(
            f"a header of {len(text)} bytes: expected at most {MAX_HEADER}; shorten the provenance"
        )
    body = [len(text).to_bytes(8, "little"), text, *(tensor_bytes(tensors[n]) for n in names)]
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    return b"".join([*body, digest.digest()])


def header_length(prefix: bytes, size: int) -> int:
    """Return the length of the JSON that follows the first 8 of a file's ``size`` bytes."""
    if size < 8 or len(prefix) < 8:
        raise TaskFileError(
            f"{size} bytes: expected a safetensors file of at least 8; it is cut off, get it again"
        )
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER or length > size - 8:
        raise TaskFileError(
            f"header length {length} in a file of {size} bytes: expected at most "
            f"{min(MAX_HEADER, size - 8)}; it is cut off or not a task file"
        )
    return length


def parse_header(text: bytes, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return metadata, and entries by tensor name that fill a file of ``size`` bytes exactly."""
    header = read_json(text, "header")
    if not isinstance(header, dict):
        raise TaskFileError(
            f"header is {type(header).__name__}: expected a JSON object; it is damaged"
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TaskFileError("__metadata__: expected an object of strings; it is not a task file")
    base = 8 + len(text)
    entries = {name: _entry(name, value, base) for name, value in header.items()}
    position = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise TaskFileError(
                f"tensor {name!r} begins at byte {entry.start}: expected {position}, since tensors "
                "neither overlap nor leave gaps; it is damaged"
            )
        position = entry.stop
    if position != size:
        raise TaskFileError(
            f"{size} bytes: expected {position}, the end of the last tensor; "
            f"it is {'cut off' if size < position else 'followed by other bytes'}, get it again"
        )
    return metadata, entries


def check_digest(data: memoryview, entries: Mapping[str, Entry]) -> None:
    """Raise unless the last 32 bytes are the SHA-256 of all bytes before them."""
    entry = entries.get(CHECKSUM)
    if entry is None or (entry.dtype, entry.shape, entry.stop) != ("U8", (32,), len(data)):
        raise TaskFileError("no checksum at its end: expected 32 bytes; it is not a task file")
    found = hashlib.sha256(data[: entry.start]).digest()
    if found != bytes(data[entry.start :]):
        raise TaskFileError(
            f"SHA-256 of its content is {found.hex()[:16]}...: expected "
            f"{bytes(data[entry.start :]).hex()[:16]}...; it is damaged, get it again"
        )


def read_tensor(data: memoryview, entry: Entry) -> Tensor:
    """Return a copy of one tensor."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[entry.dtype][0])
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[entry.start : entry.stop]), dtype=dtype).view(
        entry.shape
    )


def dtype_name(name: str, tensor: Tensor) -> str:
    """Return safetensors' name of the tensor's dtype."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _NAMES:
        raise InputError(
            f"tensor {name!r} has dtype {tensor.dtype}: a task file holds {', '.join(_NAMES)}; convert it"
        )
    return _NAMES[dtype]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the tensor's values, C order, little endian."""
    import torch

    if not tensor.numel():
        return b""
    plain = tensor.detach().cpu().contiguous()
    return plain.view(-1).view(torch.uint8).numpy().tobytes()


def read_json(text: bytes | str, what: str) -> Any:
    """Return the value of a JSON text without NaN, huge numbers, deep nesting, or what ``strict_json`` refuses.

    >>> read_json('{"a": 1, "a": 2}', "header")
    Traceback (most recent call last):
    ...
    piggyback.errors.TaskFileError: header cannot be read as JSON (key 'a' appears twice); it is damaged
    """
    try:
        value = strict_json(text, parse_constant=_constant, parse_int=_integer, parse_float=_real)
        if _deeper(value, MAX_DEPTH):
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
    except ValueError as error:
        raise TaskFileError(f"{what} cannot be read as JSON ({error}); it is damaged") from error
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"an integer of {len(digits)} digits: expected at most 20")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large for 64 bits")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects nest deeper than so many levels."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(item, levels - 1) for item in inside)


def _json_entry(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def _entry(name: str, value: Any, base: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise TaskFileError(f"tensor {name!r}: expected dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TaskFileError(
            f"tensor {name!r}: dtype {dtype!r}: expected one of {', '.join(DTYPES)}"
        )
    shape = check_shape(name, shape)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise TaskFileError(f"tensor {name!r}: data_offsets: expected two numbers of bytes")
    start, stop = offsets
    need = math.prod(shape) * DTYPES[dtype][1]
    if stop - start != need:
        raise TaskFileError(
            f"tensor {name!r}: {stop - start} bytes: expected {need} for {dtype} {shape}; "
            "it is damaged"
        )
    return Entry(dtype, shape, base + start, base + stop)


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Return a shape read from JSON as a tuple of sizes."""
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(_is_size(size) and size < 2**31 for size in shape)
    ):
        raise TaskFileError(
            f"tensor {name!r}: shape {str(shape)[:80]}: expected at most {MAX_DIMENSIONS} sizes "
            "below 2^31"
        )
    return tuple(shape)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
