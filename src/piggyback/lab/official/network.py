"""Which parameter the authors' packs mean by an index: the n-th module of the network without its classifier.

It follows from torchvision's own module tree, which has kept the order of 2017; no number is written down here.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torchvision
from torch import nn

from piggyback.errors import BackboneMismatchError, InputError, near_misses
from piggyback.lab.official import SPECS
from piggyback.taskfile.task import Task


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
        if found == weight_shapes(arch, module):
            return arch, module
    raise InputError(
        f"task {task.name!r} masks {len(found)} weights: expected all those of torchvision's {', '.join(SPECS)}, "
        "the only networks that the authors' packs are for"
    )


def weight_shapes(arch: str, module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that ``shared_weights`` names."""
    names = shared_weights(arch, module).values()
    return {name: tuple(module.get_parameter(name).shape) for name in names}


def _shared(arch: str, module: nn.Module) -> nn.Module:
    """The authors' ``model.shared``: the network without its classifier."""
    if arch not in SPECS:
        raise InputError(
            f"architecture {arch!r}: expected one of {', '.join(SPECS)}{near_misses(arch, SPECS)}"
        )
    family = "VGG" if arch.startswith("vgg") else "ResNet" if arch == "resnet50" else "DenseNet"
    kind: type[nn.Module] = getattr(torchvision.models, family)
    if not isinstance(module, kind):
        raise BackboneMismatchError(
            f"architecture {arch!r} with a {type(module).__module__}.{type(module).__name__}: expected torchvision's "
            f"{family}, whose modules the packs count; load {SPECS[arch]}"
        )
    if family == "ResNet":
        return nn.Sequential(OrderedDict((n, m) for n, m in module.named_children() if n != "fc"))
    features = module.get_submodule("features")
    if family == "DenseNet":
        return features
    # Features, a reshape, the two hidden layers with ReLU and dropout: one flat sequence.
    hidden = list(module.get_submodule("classifier").children())[:-1]
    return nn.Sequential(*features.children(), nn.Flatten(), *hidden)
