"""Segmentation networks by name: the features of a pretrained classification network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import timm
import torch
from torch import Tensor, nn

from piggyback.errors import BackboneError, first_line
from piggyback.network.backbone import Backbone
from piggyback.network.segmentation import (
    ChannelsFirst,
    FullyConvolutionalVGG,
    SegmentationNetwork,
)
from piggyback.texts.preprocessing import as_images
from piggyback.zoo.timm import LITE

PREFIX = "segmentation:"


def inner_spec(spec: str) -> str:
    """Return the classification backbone behind a segmentation one; a bare name is timm's.

    >>> inner_spec("segmentation:efficientnet_lite0"), inner_spec("segmentation:vgg16")
    ('efficientnet_lite0', 'timm:vgg16')
    """
    name = spec.removeprefix(PREFIX)
    return name if ":" in name or name in LITE else f"timm:{name}"


def segmentation_of(backbone: Backbone) -> Backbone:
    """Return a segmentation network with the weights of a classification one.

    VGG becomes fully convolutional, with its hidden linear layers; of any other timm network the
    features are taken that timm's ``features_only`` gives. The head has one class until a task
    brings its own. Raises BackboneError for a network that has no such features.
    """
    source = f"{PREFIX}{backbone.source}"
    zoo, _, name = backbone.source.rpartition(":")
    if zoo in ("timm", "torchvision") and name.startswith("vgg"):
        network = _vgg(backbone.module, source)
    elif zoo == "timm" or backbone.source in LITE:
        network = _timm_features(backbone, source)
    else:
        raise BackboneError(
            f"backbone {source!r}: expected {PREFIX}NAME of a timm network, a VGG of torchvision, "
            f"or one of {', '.join(PREFIX + lite for lite in LITE)}"
        )
    return replace(backbone, module=network.eval(), source=source, head="head")


def _timm_features(backbone: Backbone, source: str) -> SegmentationNetwork:
    name = backbone.source.removeprefix("timm:")
    name = f"tf_{name}" if name in LITE else name.partition(".")[0]
    try:
        features = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        raise BackboneError(
            f"backbone {source!r}: timm gives no features_only network of it "
            f"({first_line(error)}); choose another"
        ) from error
    _copy_weights(features, backbone.module.state_dict(), source)
    channels = features.feature_info.channels()
    if str(getattr(features, "output_fmt", "")).endswith("NHWC"):
        features = ChannelsFirst(features)
    network = SegmentationNetwork(features, channels)
    side = 64 if backbone.preprocessing is None else as_images(backbone.preprocessing).image_size
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, side, side))
    return network


def _copy_weights(features: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill ``features`` by name; timm joins some names with '_' there, or puts 'model.' first."""
    known = {_plain(name): tensor for name, tensor in state.items()}
    wanted = features.state_dict()
    found = {name: known[_plain(name)] for name in wanted if _plain(name) in known}
    different = [n for n in wanted if n not in found or found[n].shape != wanted[n].shape]
    if different:
        raise BackboneError(
            f"backbone {source!r}: {len(different)} of the {len(wanted)} tensors of its features "
            f"are not in the classification network, the first {different[0]!r}; choose another"
        )
    features.load_state_dict(found)


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _vgg(module: nn.Module, source: str) -> SegmentationNetwork:
    """Fully convolutional VGG out of timm's, whose hidden layers are convolutions already, or
    torchvision's, whose are linear."""
    layers = module.get_submodule("features")
    timms = hasattr(module, "pre_logits")
    names = ("pre_logits.fc1", "pre_logits.fc2") if timms else ("classifier.0", "classifier.3")
    hidden = [module.get_submodule(name) for name in names]
    if not isinstance(layers, nn.Sequential):
        raise BackboneError(f"backbone {source!r}: its features are not an nn.Sequential")
    channels, pooled = 0, []  # what each pooling passes on
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        elif isinstance(layer, nn.MaxPool2d):
            pooled.append(channels)
    fc6, fc7 = _as_conv(hidden[0], 7), _as_conv(hidden[1], 1)
    network = FullyConvolutionalVGG(layers, fc6, fc7)
    return SegmentationNetwork(network, (*pooled[2:4], fc7.out_channels))


def _as_conv(layer: nn.Module, kernel: int) -> nn.Conv2d:
    """The convolution that gives at one place what a hidden layer gives for the whole map."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    outputs, inputs = len(weight), weight[0].numel() // kernel**2
    made = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, device="meta")
    made.weight = nn.Parameter(weight.detach().reshape(outputs, inputs, kernel, kernel))
    made.bias = nn.Parameter(bias.detach())
    return made
