"""Backbones from the user's own Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from torch import nn

from piggyback.errors import BackboneError, near_misses
from piggyback.images.preprocessing import Preprocessing


def load_factory(spec: str) -> tuple[nn.Module, str, Preprocessing | None]:
    """Return what ``path/to/file.py:factory`` builds, ``spec``, and its preprocessing if any.

    ``factory`` is called without arguments and returns an nn.Module, or one and a Preprocessing.
    """
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise BackboneError(
            f"backbone {spec!r}: no file {path_text!r}; expected path/to/file.py:factory"
        )
    # The name is the path's own, so that two files of one name do not meet in sys.modules.
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    module_name = f"piggyback_backbone_{unique}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise BackboneError(f"backbone {spec!r}: {path_text!r} is not a Python file")
    code = importlib.util.module_from_spec(found)
    sys.modules[module_name] = code
    try:
        found.loader.exec_module(code)
    except BaseException:
        del sys.modules[module_name]
        raise
    factory = getattr(code, name, None)
    if not callable(factory):
        known = [n for n, value in vars(code).items() if callable(value) and not n.startswith("_")]
        raise BackboneError(
            f"backbone {spec!r}: {path.name} has no function {name!r}{near_misses(name, known)}"
        )
    built = factory()
    module, preprocessing = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(module, nn.Module) or not isinstance(
        preprocessing, (Preprocessing, type(None))
    ):
        raise BackboneError(
            f"backbone {spec!r}: {name}() returned {type(built).__name__}: "
            "expected an nn.Module, or an nn.Module and a Preprocessing"
        )
    return module, spec, preprocessing
