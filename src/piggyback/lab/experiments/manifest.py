"""Manifests: one experiment as data, read from YAML and checked before anything is loaded.

    title, paper        what it shows; where the paper has it
    backbones           NAME: SPEC, or NAME: {spec, checkpoint, pretrained}
    tasks               names of data sets or sources, each with recipe fields of its own
    sources             NAME: FOLDER of class folders, or NAME: {folder, classes, train_per_class}
    recipe              recipe fields of all cells
    methods             LABEL: {method, recipe, trials, choose, max_bits, order, published}
    seeds               each cell is repeated with each of them
    reference           the label that differences are taken to
    published           the table of ``published.py`` that results are put beside
    score               decathlon, where the tasks are its ten domains

A recipe field within another is written with a dot: ``augment.flip``, ``rule.kind``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from piggyback.errors import ManifestError, near_misses
from piggyback.lab.datasets import DATASETS
from piggyback.lab.experiments.published import PUBLISHED
from piggyback.lab.experiments.strict_yaml import read_yaml
from piggyback.taskfile.task import check_name
from piggyback.train import METHODS, Recipe
from piggyback.train.recipe import READ_ONLY

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
    choose: str = "each"
    """each: the best trial of each task; all: the one that is best for all tasks in the mean."""
    max_bits: float | None = None
    """Trials with more bits per weight are not chosen while there are others."""
    order: tuple[str, ...] = ()
    """For PackNet: the order of the tasks; by default the manifest's."""
    published: str | None = None
    """The method among the published numbers that it is put beside; by default none."""


@dataclass(frozen=True)
class Source:
    """A folder of class folders that a task's images come from, as ``load_folder`` reads it."""

    folder: str
    """Below one of the folders with data sets, or there as FOLDER.tar; or anywhere."""
    classes: tuple[str, ...] | int | None = None
    """Only these, or so many of the first."""
    train_per_class: int | None = None
    """At most so many training images of each class, the first by name."""


@dataclass(frozen=True)
class Manifest:
    """One experiment: every cell is a backbone, a task, a method and a seed."""

    name: str
    title: str
    backbones: tuple[BackboneChoice, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    methods: tuple[MethodChoice, ...]
    sources: Mapping[str, Source] = field(default_factory=dict)
    paper: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: str | None = None
    published: str | None = None
    score: str | None = None

    def kind(self, task: str) -> str:
        """Return what a task is: "classification" or "segmentation"."""
        return "classification" if task in self.sources else DATASETS[task].kind

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
        wanted = _seeds(self.name, list(seeds or self.seeds))
        return dataclasses.replace(self, tasks=kept, methods=tuple(methods), seeds=wanted)


def shipped() -> dict[str, Path]:
    """Return the manifests that come with the package, by name."""
    folder = Path(str(files("piggyback.lab.experiments") / "manifests"))
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
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ManifestError(f"experiment {str(path)!r} cannot be read: {why}") from error
    return parse_manifest(text, path.stem)


def parse_manifest(text: str, name: str) -> Manifest:
    """Return the manifest that YAML ``text`` describes; raises ManifestError."""
    try:
        content = read_yaml(text)
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
    made = Manifest(
        name=name,
        title=str(content["title"]),
        sources=_sources(name, content.get("sources") or {}),
        paper=str(content.get("paper", "")),
        backbones=tuple(_backbones(name, content["backbones"])),
        tasks=tasks,
        methods=methods,
        recipe=recipe_fields(name, "recipe", content.get("recipe") or {}),
        seeds=_seeds(name, content.get("seeds", [0])),
        reference=content.get("reference"),
        published=content.get("published"),
        score=content.get("score"),
    )
    labels = [method.label for method in methods]
    _known(name, "data set or source", tasks, [*made.sources, *DATASETS])
    _known(name, "reference", [made.reference] if made.reference else [], labels)
    _known(name, "score", [made.score] if made.score else [], ["decathlon"])
    _known(name, "published table", [made.published] if made.published else [], list(PUBLISHED))
    beside = {method.label: method.published for method in methods if method.published is not None}
    if beside and not made.published:
        raise ManifestError(f"experiment {name!r}: expected 'published', the table, found none")
    for label, method in beside.items():
        known = {of for _, _, of in PUBLISHED[str(made.published)].values}
        _known(name, f"published method of {label!r}", [method], known)
    return made


def recipe_fields(name: str, where: str, options: Any) -> dict[str, Any]:
    """Return recipe fields by dotted name, checked to exist; raises ManifestError.

    >>> recipe_fields("mine", "recipe", {"augment": {"flip": True}, "epochs": 3})
    {'augment.flip': True, 'epochs': 3}
    """
    flat = dict(_flat(_mapping(name, where, options)))
    defaults = _fields()
    _known(name, f"{where}: recipe field", flat, defaults)
    for key, value in flat.items():
        expected, kinds = _kinds(defaults[key])
        if type(value) not in kinds:
            raise _wrong(name, f"{where}: {key}", expected, value)
    return flat


def _kinds(default: Any) -> tuple[str, tuple[type, ...]]:
    """What a recipe field with this default takes, in words and as types."""
    if isinstance(default, bool):
        return "true or false", (bool,)
    if isinstance(default, str):
        return "a word, in quotes if it is no or yes", (str,)  # YAML has these as booleans
    if isinstance(default, (int, float)):
        return "a number", (int, float)
    if default is None:
        return "a number, a list or null", (int, float, list, type(None))
    return "a list", (list,)


def _seeds(name: str, seeds: Any) -> tuple[int, ...]:
    good = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or not seeds or len(set(seeds)) < len(seeds):
        raise _wrong(name, "seeds", "a list of integers from 0, each once", seeds)
    return tuple(seeds)


def _fields() -> dict[str, Any]:
    return {
        key: value for key, value in _flat(Recipe().to_json()) if key not in (*_DECIDED, *READ_ONLY)
    }


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
        for key, value in {"spec": None, **options}.items():
            kind, words = (bool, "true or false") if key == "pretrained" else (str, "a text")
            if type(value) is not kind:
                raise _wrong(name, f"backbone {short!r}: {key}", words, value)
        yield BackboneChoice(str(short), **options)


def _sources(name: str, content: Any) -> dict[str, Source]:
    found = {}
    for task, value in _mapping(name, "sources", content).items():
        where = f"source {task!r}"
        options = dict(
            _mapping(name, where, {"folder": value} if isinstance(value, str) else value)
        )
        _known(name, f"{where}: key", options, [f.name for f in dataclasses.fields(Source)])
        if type(options.get("folder")) is not str:
            raise _wrong(name, f"{where}: folder", "a text", options.get("folder"))
        classes, most = options.get("classes"), options.get("train_per_class")
        if isinstance(classes, list) and classes and all(type(one) is str for one in classes):
            options["classes"] = tuple(classes)
        elif classes is not None and not (type(classes) is int and classes > 1):
            raise _wrong(name, f"{where}: classes", "a list of names, or a number from 2", classes)
        if most is not None and not (type(most) is int and most > 0):
            raise _wrong(name, f"{where}: train_per_class", "a number from 1", most)
        found[check_name(str(task))] = Source(**options)
    return found


def _method(name: str, label: str, values: Any, tasks: Sequence[str]) -> MethodChoice:
    where = f"method {label!r}"
    values = dict(_mapping(name, where, values))
    fields = {f.name for f in dataclasses.fields(MethodChoice)} - {"label"}
    _known(name, f"{where}: key", values, fields)
    method = values.get("method", label)
    _known(name, "method", [method], [*METHODS, PACKNET])
    trials = values.get("trials", [{}])
    if not isinstance(trials, list) or not trials:
        raise _wrong(name, f"{where}: trials", "a list of settings", trials)
    order = values.get("order", list(tasks) if method == PACKNET else [])
    if order and method != PACKNET:
        raise ManifestError(f"experiment {name!r}: {where}: only {PACKNET} has an order of tasks")
    if not isinstance(order, list) or any(order.count(task) > 1 for task in order):
        raise _wrong(name, f"{where}: order", "a list of tasks, each once", order)
    _known(name, f"{where}: task", order, tasks)
    together = values.get("choose", "each")
    _known(name, f"{where}: choose", [together], ("each", "all"))
    bits = values.get("max_bits")
    if bits is not None and not (type(bits) in (int, float) and bits > 0):
        raise _wrong(name, f"{where}: max_bits", "a number above 0", bits)
    return MethodChoice(
        label=label,
        method=method,
        recipe=recipe_fields(name, where, values.get("recipe") or {}),
        trials=tuple(recipe_fields(name, f"{where}: trial", trial or {}) for trial in trials),
        choose=together,
        max_bits=bits,
        order=tuple(order),
        published=values.get("published"),
    )


def _mapping(name: str, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(name, where, "keys and values", value)
    return value


def _wrong(name: str, where: str, expected: str, found: object) -> ManifestError:
    return ManifestError(f"experiment {name!r}: {where}: expected {expected}, found {found!r:.80}")


def _known(name: str, what: str, found: Collection[Any], known: Collection[Any]) -> None:
    for key in found:
        if key not in known:
            names = [str(one) for one in known]
            close = near_misses(str(key), names) or f"; expected one of {', '.join(names)}"
            raise ManifestError(f"experiment {name!r}: unknown {what} {key!r}{close}")
