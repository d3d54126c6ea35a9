"""Other people's trainers write task files: a callback for Lightning, and one for the Trainer of transformers.

Each is imported, with its framework, when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piggyback.callbacks.lightning import LightningTask as LightningTask
    from piggyback.callbacks.transformers import TrainerTask as TrainerTask

_HOMES = {
    "LightningTask": "piggyback.callbacks.lightning",
    "TrainerTask": "piggyback.callbacks.transformers",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a callback's class; raises MissingExtraError where its framework is not installed."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
