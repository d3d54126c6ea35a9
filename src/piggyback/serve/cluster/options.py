"""What a cluster is told, and how a config file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from piggyback.errors import InputError
from piggyback.names import read_token
from piggyback.serve.http.limits import Limits
from piggyback.serve.options import EngineOptions, parse_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class ClusterOptions:
    """How many engines answer from which tasks, and what each may take."""

    tasks: str
    """A directory that every machine sees under this name, or an fsspec URL."""
    backbone: str
    memory: int | str = "2GiB"
    """Of each replica: live copies and packed tasks."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)
    replicas: int = 1
    autoscale: tuple[int, int] | None = None
    """Fewest and most replicas; ``replicas`` is not used then."""
    cpus: float = 1.0
    """Cores a replica reserves, for Ray to place it; fractions are fine. The engine's own threads
    are ``engine.workers``."""
    gpus: float = 0.0
    warm: int = 256
    """Tasks that a replica tells the router it has at hand; beyond, the least recently asked goes first."""

    def __post_init__(self) -> None:
        for name in ("tasks", "backbone"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(
                    f"{name}: expected a non-empty text, found {getattr(self, name)!r}"
                )
        parse_bytes(self.memory)
        _check_count("replicas", self.replicas, 1)
        _check_count("warm", self.warm, 1)
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise InputError(f"{name}: expected a number of at least 0, found {value!r}")
        if self.autoscale is not None:
            low, high = self.autoscale
            _check_count("autoscale's fewest", low, 1)
            _check_count("autoscale's most", high, low)


def from_args(args: Mapping[str, Any]) -> ClusterOptions:
    """Return the options that a config file's ``args`` mean; raises InputError, naming what is wrong.

    Keys are the fields of `ClusterOptions`; ``engine`` and ``limits`` are mappings, ``autoscale``
    is ``[fewest, most]``. A token is not written into the file: ``token_file`` names one that holds
    it, or the environment has ``PIGGYBACK_TOKEN``.

    >>> from_args({"tasks": "s3://bucket/tasks", "backbone": "timm:resnet18", "autoscale": [1, 4]}).autoscale
    (1, 4)
    """
    given = dict(args)
    token_file = given.pop("token_file", None)
    if "token" in given:
        raise InputError(
            "args.token: a config file is no place for a token; name a file that holds it "
            "(token_file), or set PIGGYBACK_TOKEN"
        )
    if token_file is not None and not isinstance(token_file, str):
        raise InputError(f"args.token_file: expected a file's name, found {token_file!r}")
    given["token"] = read_token(token_file)
    for name, kind in (("engine", EngineOptions), ("limits", Limits)):
        if name in given:
            given[name] = _filled(kind, given[name], f"args.{name}")
    if given.get("autoscale") is not None:
        given["autoscale"] = _pair(given["autoscale"])
    options = _filled(ClusterOptions, given, "args")
    if "://" not in options.tasks and not Path(options.tasks).is_absolute():
        raise InputError(
            f"args.tasks: {options.tasks!r} is a relative path, and every process has a folder of its own; "
            "expected an absolute path that all machines have, or a URL"
        )
    return options


def _filled(kind: type[T], values: Any, where: str) -> T:
    """An object of a dataclass from a mapping that has its fields and no others."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a mapping, found {values!r}")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known), key=str):
        raise InputError(f"{where}.{unknown[0]}: no such option; expected {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(
            f"{where}: {error}; expected the types and names of {kind.__name__}"
        ) from error


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"args.autoscale: expected [fewest, most], found {value!r}")
    return value[0], value[1]


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, found {value!r}")
