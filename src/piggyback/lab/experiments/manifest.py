"""Manifests: one experiment as data, read from YAML and checked before anything is loaded.

A recipe field within another is written with a dot: ``augment.flip``, ``rule.kind``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from piggyback.errors import ManifestError, near_misses
from piggyback.lab.datasets import DATASETS
from piggyback.lab.experiments.published import PUBLISHED
from piggyback.lab.tables.rows import PACKNET
from piggyback.taskfile.task import check_name
from piggyback.train import METHODS, Recipe
from piggyback.train.recipe import READ_ONLY, current, flat

_DECIDED = ("method", "seed", *READ_ONLY)
"""Recipe fields that the cell decides, or nobody."""


def recipe_fields(options: Any) -> dict[str, Any]:
    """Return recipe fields by dotted name, checked to exist; raises ValueError. ``Recipe`` checks their values.

    >>> recipe_fields({"augment": {"flip": True}, "epochs": 3})
    {'augment.flip': True, 'epochs': 3}
    """
    if not isinstance(options or {}, Mapping):  # YAML has a key without a value as None
        raise ValueError(f"expected recipe fields and their values, found {options!r:.80}")
    fields = current(flat(options or {}))
    known = [key for key in flat(Recipe().to_json()) if key not in _DECIDED]
    _check_known("recipe field", fields, known)
    return fields


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"expected each once, found {list(values)}")
    return values


def _or_only(field: str) -> BeforeValidator:
    """Lets a text stand for a part of which it is this field."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


Fields = Annotated[dict[str, Any], BeforeValidator(recipe_fields)]
"""Recipe fields by dotted name."""
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(_once)]
Seeds = Annotated[
    tuple[NonNegativeInt, ...], Field(strict=False, min_length=1), AfterValidator(_once)
]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class BackboneChoice(_Part):
    """A backbone of an experiment: SPEC, or {spec, checkpoint, pretrained}."""

    spec: str
    """As ``load_backbone`` takes it."""
    checkpoint: str | None = None
    """A file with its weights, looked for beside the data."""
    pretrained: bool = True


class Source(_Part):
    """A folder of class folders that a task's images come from, as ``load_folder`` reads it; or a table."""

    folder: str
    """Below one of the folders with data sets, or there as FOLDER.tar; or anywhere. Of a table, its file."""
    classes: Names | Annotated[int, Field(gt=1)] | None = None
    """Only these, or so many of the first."""
    train_per_class: PositiveInt | None = None
    """At most so many training images of each class, the first by name; of a table, its first rows."""
    kind: Annotated[
        Literal["classification", "multilabel", "regression", "tokens"],
        Field(exclude_if=lambda kind: kind == "classification"),  # as trainings of before know it
    ] = "classification"
    """Of the task that a table's rows make."""


class MethodChoice(_Part):
    """A line of an experiment's table."""

    method: str
    """A training method, or ``packnet``; by default the line's label."""
    recipe: Fields = {}
    trials: Annotated[tuple[Fields, ...], Field(strict=False, min_length=1)] = ({},)
    """Settings that are tried with the first seed; the best on val is kept."""
    choose: Literal["each", "all"] = "each"
    """each: the best trial of each task; all: the one that is best for all tasks in the mean."""
    max_bits: PositiveFloat | None = None
    """Trials with more bits per weight are not chosen while there are others."""
    order: Names | None = None
    """For PackNet: the order of the tasks; by default the manifest's."""
    published: str | None = None
    """The method among the published numbers that it is put beside; by default none."""


class Manifest(_Part):
    """One experiment: every cell is a backbone, a task, a method and a seed."""

    name: str
    title: Annotated[str, Field(min_length=1)]
    """What it shows."""
    paper: str = ""
    """Where the paper has it."""
    backbones: Annotated[
        dict[str, Annotated[BackboneChoice, _or_only("spec")]], Field(min_length=1)
    ]
    tasks: Annotated[dict[str, Fields], Field(min_length=1)]
    """Names of data sets or sources, each with recipe fields of its own."""
    sources: dict[str, Annotated[Source, _or_only("folder")]] = {}
    recipe: Fields = {}
    """Recipe fields of all cells."""
    methods: Annotated[dict[str, MethodChoice], Field(min_length=1)]
    """By the label of their line in the table."""
    seeds: Seeds = (0,)
    """Each cell is repeated with each of them."""
    reference: str | None = None
    """The label that differences are taken to."""
    published: str | None = None
    """The table of ``published.py`` that results are put beside."""
    score: Literal["decathlon"] | None = None
    """decathlon, where the tasks are its ten domains."""

    @field_validator("methods", mode="before")
    @classmethod
    def _named_by_label(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            label: {"method": label, **part} if isinstance(part, Mapping) else part
            for label, part in value.items()
        }

    @model_validator(mode="after")
    def _names_exist(self) -> Manifest:
        """Check what names another part of the manifest, or something in a table of ours."""
        for task in self.sources:
            check_name(task)
        _check_known("data set or source", self.tasks, [*self.sources, *DATASETS])
        if self.reference is not None:
            _check_known("reference", [self.reference], self.methods)
        if self.published is not None:
            _check_known("published table", [self.published], PUBLISHED)
        for label, method in self.methods.items():
            where = f"methods.{label}: "
            order = method.order or ()
            _check_known("method", [method.method], [*METHODS, PACKNET], where)
            if order and method.method != PACKNET:
                raise ValueError(f"{where}only {PACKNET} has an order of tasks")
            _check_known("task", order, self.tasks, where)
            if method.published is not None:
                if self.published is None:
                    raise ValueError("expected 'published', the table, found none")
                known = {of for _, _, of in PUBLISHED[self.published]}
                _check_known("published method", [method.published], known, where)
        return self

    def kind(self, task: str) -> str:
        """Return what a task is, such as "classification" or "segmentation"."""
        return self.sources[task].kind if task in self.sources else DATASETS[task].kind

    def only(
        self,
        tasks: Collection[str] | None = None,
        labels: Collection[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Manifest:
        """Return the part of it with these tasks, methods and seeds; None keeps all.

        Raises ManifestError for a name that it does not have, and for seeds that are negative or given twice.
        """
        try:
            _check_known("task", tasks or (), self.tasks)
            _check_known("method", labels or (), self.methods)
            wanted = self.seeds if seeds is None else TypeAdapter(Seeds).validate_python(seeds)
        except ValidationError as error:
            problem = f"seeds: {_first_problem(error)}"
            raise ManifestError(f"experiment {self.name!r}: {problem}") from error
        except ValueError as error:
            raise ManifestError(f"experiment {self.name!r}: {error}") from error
        kept = {key: value for key, value in self.tasks.items() if tasks is None or key in tasks}
        methods = {
            label: method
            if method.order is None
            else method.model_copy(update={"order": tuple(t for t in method.order if t in kept)})
            for label, method in self.methods.items()
            if labels is None or label in labels
        }
        return self.model_copy(update={"tasks": kept, "methods": methods, "seeds": wanted})


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
        content = yaml.load(text, Loader=_Loader)
        if not isinstance(content, Mapping):
            raise ValueError(f"expected keys and values, found {content!r:.80}")
        _check_known("key", content, [key for key in Manifest.model_fields if key != "name"])
        return Manifest.model_validate({**content, "name": name})
    except ValidationError as error:
        raise ManifestError(f"experiment {name!r}: {_first_problem(error)}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ManifestError(f"experiment {name!r}: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ManifestError(f"experiment {name!r}: it nests too deep") from None


_PARTS: Mapping[str, type[_Part]] = {
    "backbones": BackboneChoice,
    "sources": Source,
    "methods": MethodChoice,
}


def _first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: where, what was expected, what was found."""
    problem = error.errors()[0]
    place, told = list(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        told = _unknown("key", place.pop(), _PARTS[place[0]].model_fields)
    elif problem["type"] not in ("missing", "value_error"):
        told += f", found {problem['input']!r:.80}"
    return ": ".join(filter(None, [".".join(place), told]))


def _check_known(
    what: str, found: Collection[Any], known: Collection[str], where: str = ""
) -> None:
    for key in found:
        if key not in known:
            raise ValueError(where + _unknown(what, key, known))


def _unknown(what: str, key: Any, known: Collection[str]) -> str:
    close = near_misses(str(key), known) or f"; expected one of {', '.join(known)}"
    return f"unknown {what} {key!r}{close}"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain values, no key twice, and 2e-4 as a number.

    >>> yaml.load("{rate: 2e-4}", Loader=_Loader)
    {'rate': 0.0002}
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)
