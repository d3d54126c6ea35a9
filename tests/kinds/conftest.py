"""Small networks and images that a training finishes on in a second."""

from __future__ import annotations

from support.training_toys import backbone, data, recipe  # noqa: F401
