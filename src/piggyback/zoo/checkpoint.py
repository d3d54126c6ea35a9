"""State dicts from safetensors or torch files, without arbitrary pickles, loaded strictly."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from piggyback.errors import BackboneError
from piggyback.network.fingerprint import IGNORED
from piggyback.zoo.hub import first_line

_NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the state dict, next to epoch, optimizer and the like."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""DenseNet's layers had names with a dot in them, ``norm.1``, which torch has not allowed since 0.4."""

_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    TypeError,
)
"""What torch.load and safetensors raise for files that are not theirs or are damaged."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote, by name.

    A state dict nested under ``state_dict`` or ``model``, and a common prefix ``module.``, are
    undone, as the Places365 checkpoints have them, and DenseNet's names of 2017 are today's. Only
    tensors and plain containers are unpickled.
    Raises BackboneError for a file that is missing, damaged, or holds anything else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BackboneError(f"checkpoint {str(path)!r}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise BackboneError(
            f"checkpoint {str(path)!r} cannot be read: expected tensors in safetensors' or torch's "
            f"format, without pickled objects{_detail(error)}"
        ) from error
    return _tensors(found, path)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy ``state`` into ``module``; BackboneError, and no change, if names or shapes differ.

    Batch norm's counters may be missing: files of before torch 0.4.1 have none.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(IGNORED)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if not (missing or unexpected or shapes):
        module.load_state_dict(dict(state))
        return
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing ({_few(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected ({_few(unexpected)})")
    if shapes:
        faults.append(f"{len(shapes)} of another shape ({_few(shapes)})")
    raise BackboneError(
        f"{origin} does not fit {type(module).__name__}, of {len(own)} tensors "
        f"{'; '.join(faults)}: expected the state dict of this very architecture"
    )


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a checkpoint file held."""
    for _ in range(2):
        for key in _NESTED:
            if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
                found = found[key]
                break
    if not isinstance(found, Mapping) or not found:
        raise BackboneError(
            f"checkpoint {str(path)!r} holds a {type(found).__name__}: expected a state dict, "
            f"alone or under one of {', '.join(_NESTED)}"
        )
    state = {_OLD_DENSENET.sub(r"\1\2", str(name)): value for name, value in found.items()}
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise BackboneError(
            f"checkpoint {str(path)!r}: {_few(others)} are no tensors: expected a state dict, "
            f"alone or under one of {', '.join(_NESTED)}"
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _detail(error: Exception) -> str:
    """What went wrong; nothing of torch's page on how to unpickle anyway, which is unsafe."""
    if isinstance(error, pickle.UnpicklingError):
        return ""
    return f" ({type(error).__name__}: {first_line(error)})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
