"""Image classifiers from torchvision."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from piggyback.errors import BackboneError, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.zoo.weights import cached_download, fetching, not_cached, reachable


def load_torchvision(name: str, *, pretrained: bool = True) -> tuple[nn.Module, str, Preprocessing]:
    """Return a torchvision classifier, its source with the weights' name, and its preprocessing.

    ``name`` may say which weights, as ``resnet50.IMAGENET1K_V1``; otherwise torchvision's default.
    """
    architecture, _, tag = name.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise BackboneError(
            f"backbone 'torchvision:{name}': torchvision {torchvision.__version__} has no "
            f"classification model {architecture!r}{near_misses(architecture, known)}"
        )
    offered = torchvision.models.get_model_weights(architecture)
    if tag and tag not in offered.__members__:
        raise BackboneError(
            f"backbone 'torchvision:{name}': no weights {tag!r}: expected one of "
            f"{', '.join(offered.__members__) or '(none)'}"
        )
    weights = offered[tag] if tag else getattr(offered, "DEFAULT", None)
    spec = f"torchvision:{name}"
    if pretrained:
        if weights is None:
            raise BackboneError(
                f"backbone {spec!r}: torchvision has no pretrained weights for it; "
                "give a file with checkpoint="
            )
        spec = f"torchvision:{architecture}.{weights.name}"
        if cached_download(weights.url) is None and not reachable(weights.url):
            raise not_cached(spec, f"{weights.url} cannot be reached")
    # Without weights these two warn that their default initialisation is slow and will change.
    slow = not pretrained and architecture in ("googlenet", "inception_v3")
    options = {"init_weights": True} if slow else {}
    with fetching(spec):
        module: nn.Module = torchvision.models.get_model(
            architecture, weights=weights if pretrained else None, **options
        )
    _drop_auxiliary(module)
    return module, spec, Preprocessing() if weights is None else _preprocessing(weights)


def _drop_auxiliary(module: nn.Module) -> None:
    """Remove GoogLeNet's and Inception's second classifiers, whose outputs train mode adds."""
    if getattr(module, "aux_logits", False):
        module.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)


def _preprocessing(weights: Any) -> Preprocessing:
    preset = weights.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        image_size=crop,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=min(crop / resize, 1.0),
    )
