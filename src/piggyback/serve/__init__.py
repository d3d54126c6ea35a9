"""Many tasks answered from one network in memory: an engine, and what carries its answers to others."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine
    from piggyback.serve.http.app import create_app
    from piggyback.serve.options import EngineOptions

__all__ = ["Engine", "EngineOptions", "create_app"]


def __getattr__(name: str) -> Any:
    """Load the engine when it is asked for: ``piggyback serve --help`` needs no torch."""
    homes = {
        "Engine": "piggyback.serve.engine",
        "EngineOptions": "piggyback.serve.options",
        "create_app": "piggyback.serve.http",
    }
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
