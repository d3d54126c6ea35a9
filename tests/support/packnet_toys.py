"""Recipes and image sets for PackNet's tests, small enough that a sequence takes a second."""

from __future__ import annotations

import torch

from piggyback.train import ImageData, Recipe, from_tensors


def stripes() -> ImageData:
    """100 images of 16 x 16: stripes across or along, under noise."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(100) % 2
    images = (torch.rand(100, 3, 16, 16, generator=generator) * 90).byte()
    images[labels == 0, :, ::2] += 120
    images[labels == 1, :, :, ::2] += 120
    return from_tensors("stripes", ["across", "along"], (images, labels))


def packing(**options: object) -> Recipe:
    """A short recipe in float32, for sequences that must repeat to the bit."""
    settings = {
        "epochs": 2,
        "finetune_lr": 1e-2,
        "amp": "no",
        "channels_last": "no",
        "tensorboard": False,
    }
    return Recipe("packnet", **{**settings, **options})
