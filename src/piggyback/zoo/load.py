"""Backbones by name: what to load, from where, and what its images go through."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from piggyback.errors import BackboneError, InputError, check_is, first_line, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.network.head import find_head
from piggyback.texts.preprocessing import Prepares, TextPreprocessing
from piggyback.zoo import runs_code
from piggyback.zoo.file import load_factory
from piggyback.zoo.segmentation import PREFIX, inner_spec, segmentation_of
from piggyback.zoo.timm import LITE, load_lite, load_timm
from piggyback.zoo.torchvision import load_torchvision
from piggyback.zoo.transformers import MINILM, TOKENS, load_minilm, load_transformers
from piggyback.zoo.weights import load_strictly, read_state_dict, state_for
from piggyback.zoo.wide_resnet import WIDE, load_wide_resnet

_ZOOS = ("timm", "torchvision", "transformers")


def load_backbone(
    spec: str,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    head: str | None = None,
) -> Backbone:
    """Return the backbone that ``spec`` names, with pretrained weights, in eval mode.

    ==================================  =========================================================
    ``spec``                            what it is
    ==================================  =========================================================
    ``efficientnet_lite0`` (1, 2)       ImageNet weights from an installed package; no network
    ``timm:resnet50``                   timm, also with a tag (``timm:resnet50.a1_in1k``)
    ``torchvision:resnet50``            also with weights (``torchvision:resnet50.IMAGENET1K_V1``)
    ``transformers:microsoft/resnet-50``  an image classifier of the hub, or a folder
    ``transformers:distilbert-base-cased``  a text classifier, or an encoder, whose mean over the tokens is classified
    ``tokens:transformers:NAME``        the same, a class for every token
    ``minilm_l6``                       a sentence encoder's weights from an installed package; no network
    ``wide_resnet28_4``                 Wide ResNet-28-4 for 64 pixels, of the Visual Decathlon; no weights
    ``segmentation:vgg16``              features of a timm network or VGG, a score for every pixel
    ``path/to/file.py:factory``         a function that returns a module; runs that file's code
    ==================================  =========================================================

    ``checkpoint``: a state dict to load strictly instead (``.safetensors``, or what ``torch.save``
    wrote); its classifier may have another number of classes. ``image_size``: the side, in pixels,
    that images will have, where it is not the network's own. ``head`` names the classifier where
    ``find_head`` cannot tell.

    Raises BackboneError for an unknown name (near misses listed), and, with what to do, for weights
    that are neither cached nor to be had.

    >>> backbone = load_backbone("timm:resnet18", pretrained=False)
    >>> backbone.head, backbone.preprocessing.image_size
    ('fc', 224)
    """
    check_is(
        "backbone",
        spec,
        str,
        "the name of one, such as 'timm:resnet50'; give a module to MultiTaskModel",
    )
    if spec.startswith(PREFIX):
        inner = load_backbone(
            inner_spec(spec),
            pretrained=pretrained,
            checkpoint=checkpoint,
            image_size=image_size,
            head=head,
        )
        return segmentation_of(inner)
    wanted = pretrained and checkpoint is None
    state = None if checkpoint is None else read_state_dict(checkpoint)
    module, source, preprocessing = _from(spec, wanted, image_size)
    head = find_head(module) if head is None else head
    if state is not None:
        origin = f"checkpoint {str(checkpoint)!r}"
        state = state_for(module, head, state, origin)
        _fit_head(module, head, state)
        load_strictly(module, state, origin)
    module.eval().float()  # images are float32; a checkpoint or a factory may have come in another precision
    if isinstance(preprocessing, TextPreprocessing):
        _check_reads(module, preprocessing, spec, image_size)
        return Backbone(module, source, preprocessing, head)
    native = None if preprocessing is None else preprocessing.image_size
    if image_size is not None and image_size != native:
        preprocessing = replace(preprocessing or Preprocessing(), image_size=image_size)
        if (why := refusal(module, image_size)) is not None:
            raise BackboneError(
                f"backbone {spec!r} does not take images of {image_size} x {image_size} pixels ({why}); "
                "choose a larger size, or a multiple of its patch size"
            )
    return Backbone(module, source, preprocessing, head, size_given=image_size is not None)


@torch.no_grad()
def _check_reads(
    module: nn.Module, preprocessing: TextPreprocessing, spec: str, image_size: int | None
) -> None:
    """Raise where a network in eval mode does not answer for a text, or is to take images."""
    if image_size is not None:
        raise InputError(
            f"image size {image_size} for backbone {spec!r}, which reads texts: leave it out"
        )
    try:
        module(preprocessing.example())
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BackboneError(
            f"backbone {spec!r} does not answer for a text's tokens alone ({first_line(error)}): expected an encoder, "
            "or a classifier"
        ) from error


@torch.no_grad()
def refusal(module: nn.Module, image_size: int) -> str | None:
    """Return why ``module``, in eval mode, does not take images of this size; None if it does.

    One empty image runs through, since only that tells. Modes are put back.

    >>> refusal(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)), 2) is None
    True
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        module(next(module.parameters()).new_zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        return first_line(error)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return None


def _from(
    spec: str, pretrained: bool, image_size: int | None
) -> tuple[nn.Module, str, Prepares | None]:
    if spec == MINILM:
        return load_minilm(pretrained=pretrained)
    if spec in LITE:
        return load_lite(spec, pretrained=pretrained)
    if spec == WIDE:
        return load_wide_resnet(pretrained=pretrained)
    if runs_code(spec):
        return load_factory(spec)
    zoo, _, name = spec.removeprefix(TOKENS).partition(":")
    if spec.startswith(TOKENS) and zoo != "transformers":
        raise BackboneError(
            f"backbone {spec!r}: expected {TOKENS}transformers:NAME, a network that reads texts"
        )
    if name and zoo == "timm":
        return load_timm(name, pretrained=pretrained, image_size=image_size)
    if name and zoo == "torchvision":
        return load_torchvision(name, pretrained=pretrained)
    if name and zoo == "transformers":
        return load_transformers(name, pretrained=pretrained, tokens=spec.startswith(TOKENS))
    packaged = (*LITE, WIDE, MINILM)
    guesses = (f"{known}:{name or zoo}" for known in (*_ZOOS, "segmentation"))
    raise BackboneError(
        f"backbone {spec!r}: expected {', '.join(f'{known}:NAME' for known in _ZOOS)}, "
        f"{PREFIX}NAME, path/to/file.py:factory, or one of {', '.join(packaged)}"
        f"{near_misses(spec, [*packaged, *guesses])}"
    )


def _fit_head(module: nn.Module, head: str, state: Mapping[str, Tensor]) -> None:
    """Give the classifier the checkpoint's number of classes."""
    layer, weight = module.get_submodule(head), state.get(f"{head}.weight")
    if weight is None or not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return
    if weight.shape[1:] != layer.weight.shape[1:] or len(weight) == len(layer.weight):
        return
    layer.weight = nn.Parameter(torch.empty_like(weight, dtype=layer.weight.dtype))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty(len(weight), dtype=layer.bias.dtype))
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(weight))
