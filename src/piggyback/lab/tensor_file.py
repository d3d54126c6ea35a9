"""Files of the baselines LoRA and PackNet: safetensors whose metadata has JSON on what the tensors are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from piggyback.errors import PiggybackError, TaskFileError

Notes = TypeVar("Notes", bound=BaseModel)


def read_tensors(
    path: str | os.PathLike[str], key: str, notes: type[Notes]
) -> tuple[dict[str, Tensor], Notes]:
    """Return the tensors in the file at ``path``, and what its metadata has as ``key``.

    Raises TaskFileError for a file that is damaged, or without such ``notes``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
            names = file.keys() if text is not None else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise TaskFileError(f"it cannot be read ({error}); get it again") from error
    if text is None:
        raise TaskFileError(
            f"expected a file of the method {key}, whose metadata has {key!r}; "
            "for a task file, use MultiTaskModel.load_task"
        )
    try:
        return tensors, notes.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise TaskFileError(
            f"metadata {key!r}: {place}: {problem['msg']}; it is damaged"
        ) from error


def check_tensors(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: str,
    error: type[PiggybackError],
) -> None:
    """Raise ``error`` unless both have the same names, and by these the same shapes and dtypes."""

    def kind(tensors: Mapping[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "missing"
        return f"{tuple(tensors[name].shape)} {tensors[name].dtype}"

    for name in sorted(expected.keys() | found.keys()):
        there, here = kind(found, name), kind(expected, name)
        if there != here:
            raise error(
                f"{what}: tensor {name!r} is {there} in the file: expected {here}; "
                "it is damaged, or of another backbone"
            )
