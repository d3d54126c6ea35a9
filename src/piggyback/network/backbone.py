"""A network that came by name with what belongs to it, and what a task file says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from piggyback.texts.preprocessing import Prepares

if TYPE_CHECKING:
    from torch import nn  # a file's header is read without it


@dataclass(frozen=True)
class Backbone:
    """A network ready to be frozen, and what belongs to it."""

    module: nn.Module = field(repr=False)
    """In eval mode, on the CPU; takes (batch, 3, side, side), or tokens int64 (batch, length), returns logits
    (batch, classes)."""
    source: str
    """How to load it again; names the weights where the zoo has several."""
    preprocessing: Prepares | None
    """Of images, or of texts; None only where a file's factory gave none."""
    head: str
    """Dotted name of the classifier."""
    size_given: bool = False
    """Whether the caller chose the image size in ``preprocessing``; training then keeps it."""


@dataclass(frozen=True)
class BackboneInfo:
    """The backbone that a task belongs to: where it comes from, and its content."""

    source: str = ""
    """How to load it, as ``load_backbone`` takes it; empty when it was built by hand."""
    fingerprint: str = ""
    """SHA-256, hex, over the names and contents of all its tensors but the classifier's."""
    weights: Mapping[str, str] = field(default_factory=dict, repr=False)
    """SHA-256, hex, of each masked weight's dtype, shape and content."""
