"""Heads: a task's own classifier, put where the backbone's stood."""

from __future__ import annotations

import numbers
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, TaskFileError
from piggyback.kinds import KINDS, kind_of
from piggyback.network.segmentation import SegmentationHead
from piggyback.network.text import TokenHead
from piggyback.taskfile.container import MAX_HEADER
from piggyback.taskfile.task import KEEP, ROW_HEADS, Task, TaskInfo


def head_kind(head: nn.Module, original: nn.Module) -> str:
    """Return how ``load_head`` can build ``head`` again: ``linear``, ``conv``, ``segmentation`` or ``tokens`` from
    its tensors, else ``custom``.

    >>> head_kind(nn.Linear(4, 2), original=nn.Linear(4, 1000))
    'linear'
    """
    if type(head) is nn.Linear:
        return "linear"
    if type(head) is nn.Conv2d and _geometry(head) == _geometry(original):
        return "conv"
    if type(head) is SegmentationHead:
        return "segmentation"
    if type(head) is TokenHead:
        return "tokens"
    return "custom"


def new_head(original: nn.Module, classes: int, kind: str = "classification") -> nn.Module:
    """Return a freshly initialised head of the original's kind, inputs, dtype and device, with ``classes`` outputs.

    ``kind`` is the task's, which may want an answer for every token. Raises InputError where the original is not a
    linear layer, a convolution or a segmentation head.

    >>> new_head(nn.Linear(4, 1000, bias=False), 3)
    Linear(in_features=4, out_features=3, bias=False)
    """
    if isinstance(original, SegmentationHead):
        return SegmentationHead(original.channels, classes, **_like(original))
    if isinstance(original, nn.Linear):
        shape: tuple[int, ...] = (classes, original.in_features)
    elif isinstance(original, nn.Conv2d) and original.groups == 1:
        shape = (classes, original.in_channels, *original.kernel_size)
    else:
        raise InputError(
            f"the backbone's head is a {type(original).__name__}: expected Linear, Conv2d "
            "or SegmentationHead to copy its shape from; pass head=<your module> instead"
        )
    per_token = kind in KINDS and kind_of(TaskInfo(kind)).per_token
    return _build(shape, original.bias is not None, original, _like(original), per_token)


def load_head(task: Task, original: nn.Module, custom: nn.Module | None = None) -> nn.Module:
    """Return the task's head with its tensors copied in; ``custom`` is the module to use instead of a new one.

    Raises InputError where a custom head's module is missing, TaskFileError where tensors, kind and classes do not
    fit each other or the backbone's features.
    """
    kind, tensors = task.info.head_kind, task.head
    if kind == KEEP:
        if custom not in (None, original):
            raise InputError(
                f"task {task.name!r} keeps the backbone's own head: expected no other; leave head= out"
            )
        if tensors:
            raise TaskFileError(
                f"task {task.name!r} keeps the backbone's own head: expected no tensors of one, found {len(tensors)}"
            )
        return original
    if custom is None and kind not in (*ROW_HEADS, "segmentation"):
        raise InputError(
            f"task {task.name!r}: its head is a custom module: pass head=<a module with its state dict>"
        )
    if custom is not None:
        head = custom
    elif kind == "segmentation":
        head = _segmentation_head(task, original)
    else:
        head = _from_tensors(task, original)
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        raise TaskFileError(
            f"task {task.name!r}: head tensors {found}: expected {wanted} behind this backbone"
        )
    check_classes(task.info, head)
    head.load_state_dict(dict(tensors))
    return head.to(_like(original)["device"]).requires_grad_(False)


def head_tensors(info: TaskInfo, head: nn.Module) -> dict[str, Tensor]:
    """Return what a task with this head has of it: copies of its state dict, nothing of the backbone's own."""
    if info.head_kind == KEEP:
        return {}
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes given by number or by name; raises InputError for none or twice the same.

    >>> class_names(3)
    ('0', '1', '2')
    """
    given: Any = classes.tolist() if hasattr(classes, "tolist") else classes  # of NumPy and torch
    if isinstance(given, int) and not isinstance(given, bool):
        if given > MAX_HEADER:
            raise InputError(f"classes {given}: expected fewer, as a task file's header holds")
        given = range(given)
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise InputError(f"classes {classes!r:.200}: expected a number or a list of names")
    if wrong := [name for name in given if not _names_a_class(name)]:
        raise InputError(f"class {wrong[0]!r:.200}: expected a name or a whole number")
    names = tuple(map(str, given))
    if not names or len({unicodedata.normalize("NFC", name) for name in names}) != len(names):
        raise InputError(f"classes {classes!r:.200}: expected a number >= 1 or distinct names")
    return names


def _names_a_class(value: Any) -> bool:
    """Whether ``value`` is a whole number, or a text that a task file can hold and a person can see."""
    if isinstance(value, str):
        return bool(value.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_classes(info: TaskInfo, head: nn.Module) -> None:
    """Raise InputError where a head's outputs are not one per class, label or number."""
    outputs = getattr(head, "out_features", getattr(head, "out_channels", None))
    labelled = info.kind in KINDS
    if labelled and info.classes and outputs not in (None, len(info.classes)):
        raise InputError(
            f"a head with {outputs} outputs for {len(info.classes)} classes: expected one per class"
        )


def _from_tensors(task: Task, original: nn.Module) -> nn.Module:
    """A linear or convolutional head of the task's shapes, not yet with its values."""
    weight = task.head.get("weight")
    kind = task.info.head_kind
    dimensions = 4 if kind == "conv" else 2
    if weight is None or weight.ndim != dimensions or not task.head.keys() <= {"weight", "bias"}:
        raise TaskFileError(
            f"task {task.name!r}: head of kind {kind!r} with tensors "
            f"{ {name: tuple(t.shape) for name, t in task.head.items()} }: expected a weight of "
            f"{dimensions} dimensions and at most a bias"
        )
    features = getattr(original, "in_features", getattr(original, "in_channels", weight.shape[1]))
    if weight.shape[1] != features:
        raise TaskFileError(
            f"task {task.name!r}: its head takes {weight.shape[1]} features: expected {features} "
            "behind this backbone"
        )
    shape, bias = tuple(weight.shape), "bias" in task.head
    return _empty(lambda like: _build(shape, bias, original, like, kind == "tokens"), original)


def _segmentation_head(task: Task, original: nn.Module) -> nn.Module:
    """A segmentation head for the original's features, with a class for each of its last biases."""
    if not isinstance(original, SegmentationHead):
        raise TaskFileError(
            f"task {task.name!r}: its head scores every pixel: expected a segmentation network "
            "behind it; load the backbone 'segmentation:NAME' that the task file names"
        )
    bias = task.head.get(f"score.{len(original.channels) - 1}.bias")
    if bias is None or bias.ndim != 1 or not len(bias):
        raise TaskFileError(
            f"task {task.name!r}: head tensors {sorted(task.head)}: expected a weight and a bias "
            f"for each of {len(original.channels)} scales"
        )
    channels, classes = original.channels, len(bias)
    return _empty(lambda like: SegmentationHead(channels, classes, **like), original)


def _empty(build: Callable[[dict[str, Any]], nn.Module], original: nn.Module) -> nn.Module:
    """A head without values: to draw some would change the random numbers of whatever else runs."""
    like = _like(original)
    with torch.inference_mode(False):  # it shall be good for gradients wherever it is loaded
        return build({**like, "device": "meta"}).to_empty(device=like["device"])


def _build(
    shape: tuple[int, ...], bias: bool, original: nn.Module, like: dict[str, Any], per_token: bool
) -> nn.Module:
    outputs, inputs, *kernel = shape
    if not kernel:
        return (TokenHead if per_token else nn.Linear)(inputs, outputs, bias=bias, **like)
    size = (kernel[0], kernel[1])
    return nn.Conv2d(inputs, outputs, size, bias=bias, **_geometry(original), **like)


def _geometry(module: nn.Module) -> dict[str, Any]:
    """What a convolution's tensors do not tell; torch's defaults for a module that is none."""
    like = module if isinstance(module, nn.Conv2d) else nn.Conv2d(1, 1, 1, device="meta")
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(like, name) for name in names}


def _like(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's parameters; torch's defaults where it has none."""
    first = next(module.parameters(), torch.empty(0))
    return {"device": first.device, "dtype": first.dtype}
