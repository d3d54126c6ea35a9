"""Manifests: one experiment as data, read from YAML and checked before anything is loaded.

    title, paper        what it shows; where the paper has it
    backbones           NAME: SPEC, or NAME: {spec, checkpoint, pretrained}
    tasks               names of data sets, each with recipe fields of its own
    recipe              recipe fields of all cells
    methods             LABEL: {method, recipe, trials, max_bits, order, published}
    seeds               each cell is repeated with each of them
    reference           the label that differences are taken to
    published           the table of ``published.py`` that results are put beside
    score               decathlon, where the tasks are its ten domains

A recipe field within another is written with a dot: ``augment.flip``, ``rule.kind``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from piggyback.errors import ManifestError, near_misses
from piggyback.training import METHODS, Recipe

PACKNET = "packnet"
"""The one method that learns several tasks in turn, and so is no training method of one task."""

_DECIDED = ("method", "seed")
"""Recipe fields that the cell decides."""


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone of an experiment."""

    name: str
    """In tables and folders."""
    spec: str
    """As ``load_backbone`` takes it."""
    checkpoint: str | None = None
    """A file with its weights, looked for beside the data."""
    pretrained: bool = True


@dataclass(frozen=True)
class MethodChoice:
    """A row of an experiment's table."""

    label: str
    method: str
    """A training method, or ``packnet``."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[Mapping[str, Any], ...] = ({},)
    """Settings that are tried with the first seed; the best on val is kept."""
    max_bits: float | None = None
    """Trials with more bits per weight are not chosen while there are others."""
    order: tuple[str, ...] = ()
    """For PackNet: the order of the tasks; by default the manifest's."""
    published: str | None = None
    """The method among the published numbers that it is put beside; by default none."""


@dataclass(frozen=True)
class Manifest:
    """One experiment: every cell is a backbone, a task, a method and a seed."""

    name: str
    title: str
    backbones: tuple[BackboneChoice, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    methods: tuple[MethodChoice, ...]
    paper: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: str | None = None
    published: str | None = None
    score: str | None = None

    def only(
        self,
        tasks: Collection[str] | None = None,
        labels: Collection[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Manifest:
        """Return the part of it with these tasks, methods and seeds; None keeps all.

        Raises ManifestError for a name that it does not have.
        """
        mine = {method.label: method for method in self.methods}
        _known(self.name, "task", tasks or (), self.tasks)
        _known(self.name, "method", labels or (), mine)
        kept = {k: v for k, v in self.tasks.items() if tasks is None or k in tasks}
        methods = [
            dataclasses.replace(m, order=tuple(task for task in m.order if task in kept))
            for m in self.methods
            if labels is None or m.label in labels
        ]
        return dataclasses.replace(
            self, tasks=kept, methods=tuple(methods), seeds=tuple(seeds or self.seeds)
        )


def shipped() -> dict[str, Path]:
    """Return the manifests that come with the package, by name."""
    folder = Path(str(files("piggyback.experiments") / "manifests"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_manifest(name: str | Path) -> Manifest:
    """Return the manifest of a name that ``shipped`` has, or in a YAML file.

    Raises ManifestError for an unknown name, key, method or recipe field, nearest valid ones named.

    >>> load_manifest("gtsrb-lite0").tasks.keys() >= {"gtsrb", "dtd", "cifar10"}
    True
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        known = shipped()
        if str(name) not in known:
            raise ManifestError(
                f"experiment {str(name)!r}: expected one of {', '.join(known)}, or a .yaml file"
                f"{near_misses(str(name), known)}"
            )
        path = known[str(name)]
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"experiment {str(path)!r} cannot be read: {error.strerror}") from error
    return parse_manifest(text, path.stem)


def parse_manifest(text: str, name: str) -> Manifest:
    """Return the manifest that YAML ``text`` describes; raises ManifestError."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ManifestError(f"experiment {name!r}: {' '.join(str(error).split())}") from error
    content = _mapping(name, "the file", content)
    fields = {f.name for f in dataclasses.fields(Manifest)} - {"name"}
    _known(name, "key", content, fields)
    for needed in ("title", "backbones", "tasks", "methods"):
        if not content.get(needed):
            raise ManifestError(f"experiment {name!r}: expected {needed!r}, found none")
    tasks = {
        str(task): recipe_fields(name, f"task {task!r}", options or {})
        for task, options in _mapping(name, "tasks", content["tasks"]).items()
    }
    methods = tuple(
        _method(name, str(label), values, tuple(tasks))
        for label, values in _mapping(name, "methods", content["methods"]).items()
    )
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ManifestError(f"experiment {name!r}: seeds {seeds!r}: expected a list of integers")
    made = Manifest(
        name=name,
        title=str(content["title"]),
        paper=str(content.get("paper", "")),
        backbones=tuple(_backbones(name, content["backbones"])),
        tasks=tasks,
        methods=methods,
        recipe=recipe_fields(name, "recipe", content.get("recipe") or {}),
        seeds=tuple(seeds),
        reference=content.get("reference"),
        published=content.get("published"),
        score=content.get("score"),
    )
    labels = [method.label for method in methods]
    _known(name, "reference", [made.reference] if made.reference else [], labels)
    _known(name, "score", [made.score] if made.score else [], ["decathlon"])
    return made


def recipe_fields(name: str, where: str, options: Any) -> dict[str, Any]:
    """Return recipe fields by dotted name, checked to exist; raises ManifestError.

    >>> recipe_fields("mine", "recipe", {"augment": {"flip": True}, "epochs": 3})
    {'augment.flip': True, 'epochs': 3}
    """
    flat = dict(_flat(_mapping(name, where, options)))
    _known(name, f"{where}: recipe field", flat, _fields())
    return flat


def _fields() -> dict[str, Any]:
    return {key: value for key, value in _flat(Recipe().to_json()) if key not in _DECIDED}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _backbones(name: str, content: Any) -> Iterator[BackboneChoice]:
    for short, value in _mapping(name, "backbones", content).items():
        options = {"spec": value} if isinstance(value, str) else value
        options = _mapping(name, f"backbone {short!r}", options)
        _known(name, f"backbone {short!r}: key", options, ("spec", "checkpoint", "pretrained"))
        if not isinstance(options.get("spec"), str):
            raise ManifestError(f"experiment {name!r}: backbone {short!r}: expected a spec")
        yield BackboneChoice(str(short), **options)


def _method(name: str, label: str, values: Any, tasks: Sequence[str]) -> MethodChoice:
    where = f"method {label!r}"
    values = dict(_mapping(name, where, values))
    fields = {f.name for f in dataclasses.fields(MethodChoice)} - {"label"}
    _known(name, f"{where}: key", values, fields)
    method = values.get("method", label)
    _known(name, "method", [method], [*METHODS, PACKNET])
    trials = values.get("trials", [{}])
    if not isinstance(trials, list) or not trials:
        raise ManifestError(f"experiment {name!r}: {where}: expected a list of trials")
    order = tuple(values.get("order", tasks if method == PACKNET else ()))
    if order and method != PACKNET:
        raise ManifestError(f"experiment {name!r}: {where}: only {PACKNET} has an order of tasks")
    _known(name, f"{where}: task", order, tasks)
    return MethodChoice(
        label=label,
        method=method,
        recipe=recipe_fields(name, where, values.get("recipe") or {}),
        trials=tuple(recipe_fields(name, f"{where}: trial", trial or {}) for trial in trials),
        max_bits=values.get("max_bits"),
        order=order,
        published=values.get("published"),
    )


def _mapping(name: str, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestError(
            f"experiment {name!r}: {where}: expected keys and values, found {value!r:.80}"
        )
    return value


def _known(name: str, what: str, found: Collection[Any], known: Collection[Any]) -> None:
    for key in found:
        if key not in known:
            names = [str(one) for one in known]
            close = near_misses(str(key), names) or f"; expected one of {', '.join(names)}"
            raise ManifestError(f"experiment {name!r}: unknown {what} {key!r}{close}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as its readers take it: 2e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)
