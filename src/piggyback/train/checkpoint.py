"""Checkpoints: one safetensors file, no pickle, replaced in one step.

    tensors     live/NAME          what training changes besides the optimizer's state
                optimizer/I/KEY    state of the I-th parameter; masked weights keep their scores
                best/NAME          the best result so far
    metadata    identity           recipe, data, backbone: which run this is
                progress           where it is, and its history
                crc                of everything above

No random state: every random number of a run is a function of its place (see ``hashing.py``).
"""

from __future__ import annotations

import json
import reprlib
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from piggyback.errors import CheckpointError
from piggyback.strict_json import strict_json
from piggyback.taskfile.disk import write_file
from piggyback.train.methods import Learner
from piggyback.train.recipe import Augment, Recipe, current, flat

VERSION = 1
CHECKPOINT = "checkpoint.safetensors"
"""The checkpoint's name in a run's folder."""
_KEY = "piggyback_checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on."""

    identity: Mapping[str, Any]
    progress: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path`` in one step; raises CheckpointError, the old file intact."""
    tensors = _plain(checkpoint.tensors)
    body = json.dumps({"identity": checkpoint.identity, "progress": checkpoint.progress})
    header = {"version": VERSION, "crc": _crc(body, tensors), "body": body}
    write_file(path, save(tensors, {_KEY: json.dumps(header)}))


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in ``path``; CheckpointError for a damaged file or another version."""
    advice = "delete it to start anew"
    try:
        with safe_open(path, framework="pt") as file:
            header = strict_json((file.metadata() or {})[_KEY])
            version, body, crc = header["version"], header["body"], header["crc"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = strict_json(body)
        identity, progress = content["identity"], content["progress"]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: {error}; {advice}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: expected a file of this library's training, found none of "
            f"its metadata; {advice}"
        ) from error
    if version != VERSION:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has version {version!r}: expected {VERSION}; {advice}"
        )
    if crc != _crc(body, tensors):
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: checksum differs; {advice}")
    return Checkpoint(identity, progress, tensors)


def check_identity(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the first field that differs, unless both are the same run.

    A recipe from before a field was added counts as having that field's default; one removed since does not count.
    """
    plain = json.loads(json.dumps(wanted))
    there, here = flat(_completed(saved)), flat(_completed(plain))
    if "data.learned_from" not in there:  # older runs did not sum up their images
        here.pop("data.learned_from", None)
    # Digests come last: a field that a person set says more.
    for field in sorted(
        there.keys() | here.keys(), key=lambda field: ("learned_from" in field, field)
    ):
        if there.get(field) != here.get(field):
            raise CheckpointError(
                f"{str(path)!r} belongs to another run: {field} is {reprlib.repr(there.get(field))} there, "
                f"{reprlib.repr(here.get(field))} now; choose another folder, delete this one, or start anew, "
                "without resume=True"
            )


def _completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """``saved`` with the fields that recipes have got since, at their defaults, and without those they have lost."""
    recipe = json.loads(json.dumps(Recipe(augment=Augment(border="mirror")).identity()))
    for name, value in current(saved.get("recipe", {})).items():
        inside = isinstance(value, dict) and isinstance(recipe.get(name), dict)
        recipe[name] = {**recipe[name], **value} if inside else value
    return {**saved, "recipe": recipe}


def learner_tensors(learner: Learner) -> dict[str, Tensor]:
    """Return what a learner trains and its optimizer's state, by ``live/NAME`` and ``optimizer/I/KEY``."""
    tensors = {f"live/{name}": tensor for name, tensor in learner.live().items()}
    state = optimizer_tensors(learner.optimizer)
    return tensors | {f"optimizer/{name}": tensor for name, tensor in state.items()}


def load_learner(learner: Learner, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put back what ``learner_tensors`` took, by part; raises CheckpointError where it does not fit."""
    load_live(learner.live(), parts["live"])
    load_optimizer(learner.optimizer, parts["optimizer"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as ``I/KEY`` tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took; raises CheckpointError where it does not fit."""
    now = optimizer.state_dict()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    fused = any(group.get("fused") for group in optimizer.param_groups)
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        param = params[int(index)]
        if fused:
            tensor = tensor.to(param.device)  # also the step counter, which else stays on the CPU
        if tensor.shape == param.shape:
            # As the parameter lies in memory: another layout would change rounding and cost time.
            tensor = torch.empty_like(param, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": now["param_groups"]})


def by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's tensors by the part they belong to and the name in it.

    >>> by_part({"live/head/bias": torch.zeros(2)})
    defaultdict(<class 'dict'>, {'live': {'head/bias': tensor([0., 0.])}})
    """
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = tensor
    return parts


@torch.no_grad()
def load_live(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the live ones of these names; CheckpointError where they do not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in live.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"checkpoint tensor {name!r}: expected shape {wanted.get(name)}, "
                f"found {found.get(name)}"
            )
    for name, tensor in live.items():
        tensor.copy_(tensors[name])


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, in C order, sharing no memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        made = tensor.detach().cpu().contiguous()
        if made.data_ptr() in seen:
            made = made.clone()
        seen.add(made.data_ptr())
        plain[name] = made
    return plain


def _crc(body: str, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(body.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
