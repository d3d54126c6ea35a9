"""Packs in the authors' layout, for small networks of their families, in every format torch has had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.vgg import make_layers

from piggyback.network.backbone import Backbone
from support.old_torch import save_old

HEADS = {"vgg16": "classifier.6", "vgg16bn": "classifier.6", "resnet50": "fc"}


def small(arch: str) -> Backbone:
    """A network of the architecture's family that is small in every respect."""
    if arch == "resnet50":
        net: nn.Module = torchvision.models.ResNet(Bottleneck, [2, 1, 1, 1], width_per_group=2)
    elif arch == "densenet121":
        net = torchvision.models.DenseNet(4, (2, 1), 8, num_classes=7)
    else:
        features = make_layers([4, "M", 6, "M"], batch_norm=arch == "vgg16bn")
        with torch.device("meta"):
            net = torchvision.models.VGG(nn.Sequential(), num_classes=1)
        net.features = features
        net.classifier = nn.Sequential(
            *(nn.Linear(294, 9), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(9, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 7)),
        )
    return Backbone(net.eval(), f"small-{arch}", None, HEADS.get(arch, "classifier"))


class View(nn.Module):
    """The layer that the authors put between convolutions and hidden layers."""


def authors_shared(arch: str, net: Any) -> nn.Module:
    """``model.shared`` as the authors' networks describe it, the readable twin of the mapping."""
    if arch == "densenet121":
        return net.features
    shared = nn.Sequential()
    if arch == "resnet50":
        for name in (
            "conv1",
            "bn1",
            "relu",
            "maxpool",
            *(f"layer{n}" for n in range(1, 5)),
            "avgpool",
        ):
            shared.add_module(name, getattr(net, name))
        return shared
    fc6, fc7, _ = [layer for layer in net.classifier if isinstance(layer, nn.Linear)]
    tail = [View(), fc6, nn.ReLU(), nn.Dropout(), fc7, nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*net.features, *tail)


def made_pack(arch: str, net: nn.Module, *, ternary: bool = False, classes: int = 5) -> Any:
    """What the authors' packing script saves, with random masks."""
    low = -1 if ternary else 0
    masks = {
        index: torch.randint(low, 2, layer.weight.shape).to(torch.uint8)
        for index, layer in enumerate(authors_shared(arch, net).modules())
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    features = net.get_submodule(HEADS.get(arch, "classifier")).in_features
    return {
        "dataset2masks": {"flowers": masks, "cubs_cropped": dict(masks)},
        "dataset2classifiers": {
            "flowers": nn.Linear(features, classes),
            "cubs_cropped": nn.Linear(features, 3),
        },
    }


FORMATS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "old": lambda pack, path: torch.save(pack, path, _use_new_zipfile_serialization=False),
    "torch 0.2": save_old,
    "torch 0.2 on a GPU": lambda pack, path: save_old(pack, path, cuda=True),
}
