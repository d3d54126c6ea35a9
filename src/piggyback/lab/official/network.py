"""Which parameter the authors' packs mean by an index: the n-th module of the network without its classifier.

It follows from torchvision's own module tree, which has kept the order of 2017; no number is written down here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import nn

from piggyback.errors import BackboneMismatchError, InputError, near_misses
from piggyback.taskfile.task import Task

SPECS: Mapping[str, str] = {
    "vgg16": "torchvision:vgg16.IMAGENET1K_V1",
    "vgg16bn": "torchvision:vgg16_bn.IMAGENET1K_V1",
    "resnet50": "torchvision:resnet50.IMAGENET1K_V1",
    "densenet121": "torchvision:densenet121.IMAGENET1K_V1",
}
"""The authors' names of architectures, and the weights of 2017 that their masks belong to."""


def shared_weights(arch: str, module: nn.Module) -> dict[int, str]:
    """Return which parameter the mask of each index in ``shared.modules()`` belongs to.

    Raises InputError for an unknown ``arch``, BackboneMismatchError where ``module`` is not torchvision's network of
    that family, whose order of modules the indices count.

    >>> with torch.device("meta"):
    ...     net = torchvision.models.resnet50()
    >>> list(shared_weights("resnet50", net).items())[:2]
    [(1, 'conv1.weight'), (7, 'layer1.0.conv1.weight')]
    """
    names = {id(child): name for name, child in module.named_modules()}
    return {
        index: f"{names[id(child)]}.weight"
        for index, child in enumerate(_shared(arch, module).modules())
        if isinstance(child, (nn.Conv2d, nn.Linear))
    }


def architecture_of(task: Task) -> tuple[str, nn.Module]:
    """Return the authors' name of the architecture whose weights ``task`` masks, and that network without values.

    Raises InputError where it is none of theirs.
    """
    found = {name: mask.shape for name, mask in task.masks.items()}
    for arch, spec in SPECS.items():
        with torch.device("meta"):
            module = torchvision.models.get_model(spec.partition(":")[2].partition(".")[0])
        params = dict(module.named_parameters())
        if found == {
            name: tuple(params[name].shape) for name in shared_weights(arch, module).values()
        }:
            return arch, module
    raise InputError(
        f"task {task.name!r} masks {len(found)} weights: expected all those of torchvision's {', '.join(SPECS)}, "
        "the only networks that the authors' packs are for"
    )


def _vgg(module: nn.Module) -> nn.Module:
    """Features, a reshape, the two hidden layers with ReLU and dropout: one flat sequence."""
    features, classifier = module.get_submodule("features"), module.get_submodule("classifier")
    return nn.Sequential(*features.children(), nn.Flatten(), *list(classifier.children())[:-1])


def _resnet(module: nn.Module) -> nn.Module:
    children = [(name, child) for name, child in module.named_children() if name != "fc"]
    return nn.Sequential(OrderedDict(children))


def _densenet(module: nn.Module) -> nn.Module:
    return module.get_submodule("features")


_FAMILIES: Mapping[str, tuple[type[nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "vgg16": (torchvision.models.VGG, _vgg),
    "vgg16bn": (torchvision.models.VGG, _vgg),
    "resnet50": (torchvision.models.ResNet, _resnet),
    "densenet121": (torchvision.models.DenseNet, _densenet),
}


def _shared(arch: str, module: nn.Module) -> nn.Module:
    if arch not in _FAMILIES:
        raise InputError(
            f"architecture {arch!r}: expected one of {', '.join(SPECS)}{near_misses(arch, SPECS)}"
        )
    family, arrange = _FAMILIES[arch]
    if not isinstance(module, family):
        raise BackboneMismatchError(
            f"architecture {arch!r} with a {type(module).__module__}.{type(module).__name__}: expected torchvision's "
            f"{family.__name__}, whose modules the packs count; load {SPECS[arch]}"
        )
    return arrange(module)
