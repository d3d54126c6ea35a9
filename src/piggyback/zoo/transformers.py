"""Image classifiers from transformers, made to return their logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from piggyback.errors import BackboneError, first_line, require
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.head import find_head
from piggyback.zoo.weights import fetching, huggingface_reachable, not_cached

_PIL_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic", 1: "bicubic", 4: "bilinear"}
"""PIL's numbers; Lanczos (1) and box (4) become their nearest kin."""


def load_transformers(
    name: str, *, pretrained: bool = True
) -> tuple[nn.Module, str, Preprocessing]:
    """Return an image classifier in float32, its source, and its image processor's numbers.

    ``name`` is a repository of the Hugging Face hub or a local folder. The model keeps its own
    names; a hook makes a call return the logits (batch, classes) instead of an output object.
    """
    transformers = require("transformers", "text")
    spec = f"transformers:{name}"
    folder = Path(name).is_dir()
    cache_only = folder or not huggingface_reachable()
    options = {"local_files_only": True} if cache_only else {}
    away = cache_only and not folder
    with _asking(spec, "configuration", away):
        config = transformers.AutoConfig.from_pretrained(name, **options)
    if type(config) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise BackboneError(
            f"backbone {spec!r} is of type {config.model_type!r}, which has no image classifier in "
            f"transformers {transformers.__version__}: expected an image classification model"
        )
    auto = transformers.AutoModelForImageClassification
    if pretrained:
        with fetching(spec), _asking(spec, "pretrained weights", away):
            module, report = auto.from_pretrained(
                name, config=config, output_loading_info=True, **options
            )
        _check_complete(module, report, spec)
    else:
        module = auto.from_config(config)
    module.register_forward_hook(logits_only)
    return module.float(), spec, _preprocessing(transformers, name, config, options)


def logits_only(module: nn.Module, args: Any, output: Any) -> Tensor:
    """Return the logits (batch, classes) of an image classifier's output; a forward hook."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _check_complete(module: nn.Module, report: Mapping[str, Any], spec: str) -> None:
    """Refuse weights that leave a part of the backbone random; a missing classifier is fine."""
    head = find_head(module)
    missing = [n for n in sorted(report["missing_keys"]) if not n.startswith(f"{head}.")]
    if missing:
        raise BackboneError(
            f"backbone {spec!r}: its weights lack {len(missing)} tensors "
            f"({', '.join(missing[:3])}): expected all but the classifier's"
        )


@contextmanager
def _asking(spec: str, what: str, away: bool) -> Iterator[None]:
    """Turn a refusal of the hub, of its cache where it is ``away``, or of a folder into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if away and isinstance(error, OSError):
            raise not_cached(spec, "the Hugging Face hub cannot be reached", what) from error
        raise BackboneError(f"backbone {spec!r}: {first_line(error)}") from error


def _preprocessing(
    transformers: Any, name: str, config: Any, options: Mapping[str, Any]
) -> Preprocessing:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError):  # a repository without one
        return Preprocessing(_side(getattr(config, "image_size", None)) or 224)
    resized = _side(getattr(processor, "size", None))
    cropped = _side(getattr(processor, "crop_size", None))
    crop_pct = float(getattr(processor, "crop_pct", None) or 1.0)
    if getattr(processor, "do_center_crop", False) and cropped:
        side, crop_pct = cropped, min(cropped / (resized or cropped), 1.0)
    else:
        side = resized or cropped or _side(getattr(config, "image_size", None)) or 224
        if side >= 384:
            crop_pct = 1.0  # ConvNeXt's processor cuts no border from 384 pixels on
    filter_ = getattr(processor, "resample", None)
    normalized = getattr(processor, "do_normalize", True)
    mean, std = (
        (processor.image_mean, processor.image_std) if normalized else ([0.0] * 3, [1.0] * 3)
    )
    return Preprocessing(
        image_size=side,
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bilinear" if filter_ is None else _PIL_FILTERS.get(int(filter_), "bicubic"),
        crop_pct=crop_pct,
    )


def _side(size: Any) -> int | None:
    """The side, in pixels, that a processor's or a configuration's size stands for."""
    if size is None or isinstance(size, int):
        return size
    if isinstance(size, (list, tuple)):
        return int(max(size))
    for key in ("shortest_edge", "height", "longest_edge"):
        value = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
        if value:
            return int(value)
    return None
