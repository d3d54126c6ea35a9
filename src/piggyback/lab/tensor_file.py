"""Files of the baselines LoRA and PackNet: safetensors whose metadata has JSON on what the tensors are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from piggyback.errors import BackboneMismatchError, TaskFileError
from piggyback.taskfile.container import strict_json


def read_tensors(
    path: str | os.PathLike[str], key: str, what: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors in the file at ``path`` and the JSON object that its metadata has as ``key``.

    Raises TaskFileError for a file that is damaged, or without ``key``: no file of ``what``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
            names = file.keys() if text is not None else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise TaskFileError(f"it cannot be read ({error}); get it again") from error
    values = None if text is None else strict_json(text, f"metadata {key!r}")
    if not isinstance(values, dict):
        raise TaskFileError(
            f"expected a file of {what}, whose metadata has {key!r}; for a task file, use MultiTaskModel.load_task"
        )
    return tensors, values


def check_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, *, mismatch: bool
) -> None:
    """Raise unless both have the same names, and by these the same shapes and dtypes.

    TaskFileError, for a damaged file, or BackboneMismatchError with ``mismatch``.
    """

    def kind(tensors: Mapping[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "missing"
        return f"{tuple(tensors[name].shape)} {tensors[name].dtype}"

    for name in sorted(expected.keys() | found.keys()):
        there, here = kind(found, name), kind(expected, name)
        if there != here:
            text = f"{what}: tensor {name!r} is {there} in the file: expected {here}"
            if mismatch:
                raise BackboneMismatchError(f"{text}, as in this backbone; load another one")
            raise TaskFileError(f"{text}; it is damaged")
