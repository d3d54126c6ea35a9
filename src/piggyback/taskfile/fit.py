"""Does a task belong to a backbone? Asked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from piggyback.errors import BackboneMismatchError, InputError
from piggyback.network.backbone import BackboneInfo
from piggyback.network.fingerprint import tensor_digest
from piggyback.taskfile.checks import checked_coefficients
from piggyback.taskfile.task import Task


def check_fits(
    task: Task,
    weights: Mapping[str, tuple[int, ...]],
    norm: Mapping[str, Tensor],
    whole: str,
) -> None:
    """Raise BackboneMismatchError unless ``task`` was learned on this backbone.

    ``weights`` gives the shapes of the parameters that may be masked, ``norm`` the tensors that a task may bring
    its own of, ``whole`` the backbone's fingerprint. Raises InputError for a mask that has not a bit per weight,
    and for coefficients that are not those of its mask rule's form.
    """
    wanted = {name: mask.shape for name, mask in task.masks.items()}
    wanted |= {name: tuple(tensor.shape) for name, tensor in task.norm.items()}
    shapes = {**weights, **{name: tuple(tensor.shape) for name, tensor in norm.items()}}
    missing = [name for name in task.masks if name not in weights]
    missing += [name for name in task.norm if name not in norm]
    source = f" ({task.info.backbone.source})" if task.info.backbone.source else ""
    if missing:
        raise BackboneMismatchError(
            f"task {task.name!r} is for another architecture{source}: {len(missing)} of its {len(wanted)} "
            f"tensors are not in this backbone, the first {missing[0]!r}; "
            "load the backbone that the task file names"
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise BackboneMismatchError(
                f"task {task.name!r} is for another architecture{source}: {name!r} has shape {shape} in the "
                f"task, {shapes[name]} in this backbone; load the backbone that the task file names"
            )
    check_fingerprint(task.name, task.info.backbone, whole)
    for name, mask in task.masks.items():
        for plane in (mask.keep, *(() if mask.negative is None else (mask.negative,))):
            if plane.numel() != -(-mask.numel // 8):
                raise InputError(
                    f"task {task.name!r}: the mask of {name!r} has {plane.numel()} bytes: expected "
                    f"{-(-mask.numel // 8)} for {mask.shape}; make it with pack()"
                )
    checked_coefficients(task)


def check_fingerprint(name: str, backbone: BackboneInfo, whole: str) -> None:
    """Raise BackboneMismatchError where a task names another fingerprint than ``whole``; one that names none passes.

    >>> check_fingerprint("signs", BackboneInfo("timm:resnet50", "ab"), "ab")
    """
    found = backbone.fingerprint
    if found and found != whole:
        source = f" ({backbone.source})" if backbone.source else ""
        raise BackboneMismatchError(
            f"task {name!r} was learned on other weights{source}: its backbone has fingerprint "
            f"{found[:16]}, this one {whole[:16]}; load the very weights it was trained on"
        )


def differing_weights(task: Task, module: nn.Module) -> list[str]:
    """Return the names of the masked weights whose content is not what the task was learned on."""
    params = dict(module.named_parameters())
    known = task.info.backbone.weights
    return [
        n for n, digest in known.items() if n not in params or tensor_digest(params[n]) != digest
    ]
