"""A network that came by name, with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from piggyback.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Backbone:
    """A network ready to be frozen, and what belongs to it."""

    module: nn.Module
    """In eval mode, on the CPU; takes (batch, 3, side, side), returns logits (batch, classes)."""
    source: str
    """How to load it again; names the weights where the zoo has several."""
    preprocessing: Preprocessing | None
    """None only where a file's factory gave none."""
    head: str
    """Dotted name of the classifier."""
    size_given: bool = False
    """Whether the caller chose the image size in ``preprocessing``; training then keeps it."""
