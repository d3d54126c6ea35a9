"""The packs of the paper's authors: read without running anything in them, and written.

Reading order: packs.py, network.py, torch_files.py.
"""

from __future__ import annotations

from collections.abc import Mapping

SPECS: Mapping[str, str] = {
    "vgg16": "torchvision:vgg16.IMAGENET1K_V1",
    "vgg16bn": "torchvision:vgg16_bn.IMAGENET1K_V1",
    "resnet50": "torchvision:resnet50.IMAGENET1K_V1",
    "densenet121": "torchvision:densenet121.IMAGENET1K_V1",
}
"""The authors' names of architectures, and the weights of 2017 that their masks belong to."""
