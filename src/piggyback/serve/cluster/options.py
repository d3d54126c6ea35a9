"""What a cluster is told, and how a config file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from piggyback.errors import InputError
from piggyback.names import read_token
from piggyback.serve.http.limits import Limits
from piggyback.serve.options import EngineOptions, from_mapping, parse_bytes


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
    local_only: bool = False
    """Whether only requests for an address or "localhost" are answered, as by ``run`` on loopback without a token."""
    replicas: int = 1
    autoscale: tuple[int, int] | None = None
    """Fewest and most replicas; ``replicas`` is not used then."""
    cpus: float = 1.0
    """Cores that a replica reserves, for Ray to place it; the engine's own threads are ``engine.workers``."""
    gpus: float = 0.0
    warm: int = 256
    """Tasks that a replica tells the router it has at hand; beyond, the least recently asked goes first."""

    def __post_init__(self) -> None:
        for name in ("tasks", "backbone"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected a non-empty text")
        parse_bytes(self.memory, "memory")
        for name, least in (("replicas", 1), ("warm", 1), ("cpus", 0), ("gpus", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} {getattr(self, name)}: expected at least {least}")
        if self.autoscale is not None and not 1 <= self.autoscale[0] <= self.autoscale[1]:
            raise InputError(
                f"autoscale {list(self.autoscale)}: expected [fewest, most], 1 or more"
            )


def from_args(args: Mapping[str, Any]) -> ClusterOptions:
    """Return the options that a config file's ``args`` mean; raises InputError, naming what is wrong.

    A token is not written into the file: ``token_file`` names one that holds it, or $PIGGYBACK_TOKEN is the token.

    >>> from_args({"tasks": "s3://bucket/tasks", "backbone": "timm:resnet18", "autoscale": [1, 4]}).autoscale
    (1, 4)
    """
    given = dict(args)
    if "token" in given:
        raise InputError(
            "args.token: a config file is not the place for a token; name a file that holds it "
            "(token_file), or set PIGGYBACK_TOKEN"
        )
    token = read_token(given.pop("token_file", None))
    for name, kind in (("engine", EngineOptions), ("limits", Limits)):
        if name in given:
            given[name] = from_mapping(kind, given[name], partial(_place, f"args.{name}"))
    options = from_mapping(ClusterOptions, {**given, "token": token}, partial(_place, "args"))
    if "://" not in options.tasks and not Path(options.tasks).is_absolute():
        raise InputError(
            f"args.tasks: {options.tasks!r} is a relative path, and every process has its own working folder; "
            "expected an absolute path that all machines have, or a URL"
        )
    return options


def _place(where: str, name: str) -> str:
    return f"{where}.{name}" if name else where
