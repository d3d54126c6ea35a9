"""Where a network's classifier is: the layer that every task has its own copy of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from piggyback.errors import SelectionError
from piggyback.network.norm import is_norm
from piggyback.network.segmentation import SegmentationNetwork

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_USUAL = (
    "fc", "classifier", "classification_head", "head", "heads", "last_linear", "logits", "output", "out", "score",
)  # fmt: skip
"""What classifiers are called in torchvision, transformers and most code, in order of trust."""

_SECOND = ("head_dist", "aux_head", "distillation_classifier", "classifier_distill")
"""Second classifiers whose outputs are mixed with the first's, even in eval mode."""
_BOXES = ("bbox_pred", "bbox_predictor", "bbox_embed", "regression_head")  # of detectors
_SAME_FEATURES = ("EfficientFormer", "EfficientFormerV2", "SwiftFormer")
"""timm's classes that return (head(x) + head_dist(x)) / 2; elsewhere the two see different tokens."""


def find_head(module: nn.Module) -> str:
    """Return the name of the classifier: an nn.Linear, or an nn.Conv2d with a 1 x 1 kernel.

    Asked in this order: timm's ``get_classifier()``; attributes with the usual names (``fc``,
    ``classifier``, ``head``, ...), of which the last linear layer or 1 x 1 convolution counts;
    else the last layer with weights. Raises SelectionError with the candidates when that is
    neither, when it may be part of the body, when there may be several classifiers, or when the
    outputs of two are mixed.

    >>> find_head(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5)))
    '2'
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        raise SelectionError(
            f"the model is a single {type(module).__name__}: expected layers before the "
            "classifier; wrap it in nn.Sequential"
        )
    if isinstance(module, SegmentationNetwork):
        return "head"
    _refuse_two_heads(module)
    named = any(isinstance(getattr(module, name, None), nn.Linear) for name in _USUAL[:3])
    if getattr(module, "base_model", None) is module and not named:  # a body of transformers
        raise _unclear(module, "it is a body without one")
    if name := _timm_head(module):
        return name
    name = _usual_head(module) or _last_layer(module)
    _refuse_listed(module, name)
    _refuse_beside(module, name)
    _refuse_branches(module, name)
    return name


def _last_layer(module: nn.Module) -> str:
    """The last layer with weights, where that can be a classifier; raises SelectionError where it may be the body's."""
    attentions = {n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}
    layers = [(n, m) for n, m in _products(module) if n.rpartition(".")[0] not in attentions]
    if not layers or not _can_be_head(layers[-1][1]):
        raise _unclear(
            module, "the last layer with weights is not a linear layer or 1 x 1 convolution"
        )
    name, last = layers[-1]
    parts = list(module.modules())
    for part in parts[parts.index(last) + 1 :]:
        if is_norm(part) and _widths(last)[1] in (
            getattr(part, "num_features", None),
            getattr(part, "num_channels", None),
            *getattr(part, "normalized_shape", ()),
        ):
            raise _unclear(module, f"the outputs of the last layer, {name!r}, are normalised")
    if block := _repeated_block(module, name):
        raise _unclear(
            module, f"the last layer, {name!r}, is part of {block!r}, one of several equal blocks"
        )
    # Defined first and run last: a layer that takes what the last one gives, outside of any sequence with it.
    for other, layer in layers[:-1]:
        beside = other.rpartition(".")[0] == name.rpartition(".")[0]
        in_order = beside and isinstance(
            module.get_submodule(name.rpartition(".")[0]), nn.Sequential
        )
        fed = _can_be_head(layer) and _widths(layer)[0] == _widths(last)[1] != _widths(layer)[1]
        if beside and not in_order and fed:
            raise _unclear(module, f"{other!r} could follow the last layer, {name!r}")
    return name


def _repeated_block(module: nn.Module, name: str) -> str | None:
    """The block of a list or sequence that holds the layer, where another block there has such a layer, too."""
    parts = name.split(".")
    for end, part in enumerate(parts[:-1], 1):
        block, inside = ".".join(parts[:end]), ".".join(parts[end:])
        if part.isdigit():
            around = module.get_submodule(".".join(parts[: end - 1]))
            others = [child for key, child in around.named_children() if key != part]
            if any(inside in dict(child.named_modules()) for child in others):
                return block
    return None


def _refuse_beside(module: nn.Module, name: str) -> None:
    """Raise SelectionError where a layer beside the classifier is one, too: it feeds no other layer.

    It takes the same features, or has as many outputs, which may be mixed.
    """
    parent, head = name.rpartition(".")[0], module.get_submodule(name)
    around = module.get_submodule(parent)
    if isinstance(around, nn.Sequential):
        return
    taken = {_widths(layer)[0] for _, layer in _products(module)}
    for key, other in around.named_children():
        if other is head or not _can_be_head(other) or type(other) is not type(head):
            continue
        both = f"{parent}.{key}" if parent else key
        if _widths(other)[1] in taken:
            continue
        if _widths(other)[0] == _widths(head)[0]:
            raise _unclear(module, f"{both!r} and {name!r} take the same features: it may have two")
        if _widths(other)[1] == _widths(head)[1]:
            raise _unclear(module, f"{both!r} and {name!r} have as many outputs: it may mix them")


def _refuse_branches(module: nn.Module, name: str) -> None:
    """Raise SelectionError where a part beside one that holds the classifier takes the same and feeds no layer."""
    taken = {_widths(layer)[0] for _, layer in _products(module)}
    parts, head = name.split("."), module.get_submodule(name)
    for end in range(len(parts)):
        around = module.get_submodule(".".join(parts[:end]))
        if isinstance(around, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            continue
        branches = {key: _products(part) for key, part in around.named_children()}
        features = _widths(branches[parts[end]][0][1])[0]
        for key, layers in branches.items():
            if key == parts[end] or not layers or not _can_be_head(layers[-1][1]):
                continue
            (_, first), (last, fed) = layers[0], layers[-1]
            other = ".".join([*parts[:end], key])
            if fed is head or _widths(first)[0] != features or _widths(fed)[1] in taken:
                continue
            if not _repeated_block(module, f"{other}.{last}"):  # else it is the body
                raise _unclear(module, f"{other!r} takes the same features: it may have two")


def _refuse_listed(module: nn.Module, name: str) -> None:
    """Raise SelectionError where the classifier is in one of several equal heads of a list or dict."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        path, inside = ".".join(parts[:end]), ".".join(parts[end:])
        around = module.get_submodule(".".join(parts[: end - 1]))
        if not isinstance(around, (nn.ModuleList, nn.ModuleDict)):
            continue
        for key, other in around.named_children():
            twin = dict(other.named_modules()).get(inside)
            if key == parts[end - 1] or twin is None or not _can_be_head(twin):
                continue
            if _widths(twin)[0] == _widths(module.get_submodule(name))[0]:
                raise _unclear(module, f"{path!r} is one of several equal heads")


def _widths(layer: nn.Module) -> tuple[Any, Any]:
    """Inputs and outputs of a linear layer or convolution."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


class FollowHead(nn.Module):
    """Stands where the second classifier was and answers what ``head`` does at the time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._model[0].head(x)  # type: ignore[operator]
        return logits


@torch.no_grad()
def merge_heads(module: nn.Module) -> None:
    """Fold the second classifier into the first, in place; the mean of two linear maps is one.

    Does nothing to any other model. The outputs are the same up to rounding.
    """
    if type(module).__name__ not in _SAME_FEATURES:
        return
    first, second = module.head, getattr(module, "head_dist", None)
    if not isinstance(first, nn.Linear) or not isinstance(second, nn.Linear):
        return
    first.weight.copy_((first.weight + second.weight) / 2)
    first.bias.copy_((first.bias + second.bias) / 2)
    module.head_dist = FollowHead(module)


def _timm_head(module: nn.Module) -> str | None:
    get = getattr(module, "get_classifier", None)
    if not callable(get):
        return None
    found = get()
    if isinstance(found, (tuple, list)):
        found = [m for m in found if not isinstance(m, FollowHead)]
        found = found[0] if len(found) == 1 else found
    if isinstance(found, (list, nn.ModuleList)) and len(found) > 1:
        raise _unclear(module, f"it has {len(found)} classifiers whose outputs are mixed")
    if isinstance(found, nn.Identity):
        raise _unclear(module, "its classifier was removed (num_classes=0)")
    if not isinstance(found, nn.Module):
        return None
    for name, child in module.named_modules():
        if child is found:
            return _last_inside(name, child)
    return None


def _usual_head(module: nn.Module) -> str | None:
    children = dict(module.named_children())
    for name in _USUAL:
        if name in children and (inside := _last_inside(name, children[name])):
            return inside
    return None


def _last_inside(path: str, found: nn.Module) -> str | None:
    """The last linear layer or 1 x 1 convolution at or below ``found``."""
    if _can_be_head(found):
        return path
    names = [name for name, m in _products(found) if _can_be_head(m)]
    return f"{path}.{names[-1]}" if names else None


def _refuse_two_heads(module: nn.Module) -> None:
    for name, part in module.named_modules():
        last = name.rpartition(".")[2]
        if last in _SECOND and not isinstance(part, (nn.Identity, FollowHead)):
            raise _unclear(module, f"a second classifier, {name!r}, is mixed into its output")
        if last in _BOXES:
            raise _unclear(module, f"{name!r} finds boxes beside it")


def _products(module: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, *CONVOLUTIONS)
    return [(name, m) for name, m in module.named_modules() if isinstance(m, kinds)]


def _can_be_head(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def _unclear(module: nn.Module, why: str) -> SelectionError:
    candidates = [name for name, m in _products(module) if _can_be_head(m)][-4:]
    listed = f" (candidates: {', '.join(candidates)})" if candidates else ""
    return SelectionError(
        f"cannot tell which layer of {type(module).__name__} is the classifier: {why}; "
        f"name it with head={listed}"
    )
