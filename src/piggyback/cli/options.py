"""Options made from a dataclass: its fields give names, types, defaults; the texts below, help."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import typer

from piggyback.errors import InputError
from piggyback.train.recipe import READ_ONLY, Recipe, group_of

REGULARIZERS = "regularizers"


@dataclass(frozen=True)
class Choice:
    """One field, possibly of a dataclass within the dataclass, as an option."""

    path: tuple[str, ...]
    kind: Any
    """Its type, as typer takes it."""
    default: Any
    help: str
    group: str = ""
    """The title of the help page's panel that it stands in."""

    @property
    def name(self) -> str:
        """The parameter's name: ``augment_flip`` for ``augment.flip``."""
        return "_".join(self.path)

    def parameter(self) -> inspect.Parameter:
        """Return it as a parameter of a command."""
        text, names, metavar = self.help.replace("``", ""), [], None
        if self.name == REGULARIZERS:
            names, metavar = ["--regularizer"], "KIND:OPTION=NUMBER,..."
        elif self.kind == list[str]:
            metavar = "TEXT"
        if metavar is not None:
            text += " May be repeated."
        option = typer.Option(
            *names, help=text, metavar=metavar, rich_help_panel=self.group or None
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=self.default,
            annotation=typing.Annotated[self.kind, option],
        )


def takes_recipe(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of ``Recipe``, as its ``recipe``.

    Fields in ``without`` get no option and keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        choices = [choice for choice in choices_of(Recipe) if choice.path[0] not in without]
        own = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {choice.path: given.pop(choice.name) for choice in choices}
            command(**given, recipe=_built(Recipe, values))

        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            if parameter.name != "recipe"
        ]
        parameters = [*kept, *(choice.parameter() for choice in choices)]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def choices_of(kind: type, path: tuple[str, ...] = (), group: str = "") -> Iterator[Choice]:
    """Return the options of a dataclass, those of dataclasses within it by their path."""
    hints = typing.get_type_hints(kind)
    docs = field_docs(kind)
    for field in dataclasses.fields(kind):
        hint, here = hints[field.name], (*path, field.name)
        title = group or group_of(kind, field.name)
        if ".".join(here) in READ_ONLY:
            continue
        if dataclasses.is_dataclass(hint):
            yield from choices_of(typing.cast(type, hint), here, title)
            continue
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        taken, default = _as_option(field.name, hint, default)
        yield Choice(here, taken, default, docs.get(field.name) or _doc_of(kind), title)


def field_docs(kind: type) -> dict[str, str]:
    """Return the text below each field of a class, in one line each.

    >>> field_docs(Recipe)["epochs"]
    'Passes over the training images; by default as many as make about 800 steps, but 5 to 60, and 480 steps or more.'
    """
    found = {}
    for part in filter(dataclasses.is_dataclass, kind.__mro__):
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        for line, below in itertools.pairwise(typing.cast(ast.ClassDef, tree).body):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=text)),
                ):
                    found[name] = " ".join(str(text).split())
    return found


def _doc_of(kind: type) -> str:
    """The first sentence of a class's description."""
    first = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return first.rstrip(".:") + "."


def _as_option(name: str, hint: Any, default: Any) -> tuple[Any, Any]:
    """Type and default as typer takes them."""
    if name == REGULARIZERS:
        return list[str], []
    inner = _without_none(hint)
    if get_origin(inner) is Literal:
        words = enum.Enum(name, {word: word for word in get_args(inner)})  # type: ignore[misc]
        return words, words(default)
    if get_origin(inner) is tuple:
        return list[str], list(default or ())
    return (typing.Optional[inner] if inner is not hint else inner), default  # noqa: UP045


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return hint


def _built(kind: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """The dataclass that the options' values describe."""
    hints = typing.get_type_hints(kind)
    made: dict[str, Any] = {}
    for first in dict.fromkeys(path[0] for path in values):
        inside = {path[1:]: value for path, value in values.items() if path[0] == first}
        made[first] = inside[()] if () in inside else _built(hints[first], inside)
        if isinstance(made[first], enum.Enum):
            made[first] = made[first].value
        if isinstance(made[first], list):
            made[first] = _listed(first, made[first])
    return kind(**made)


def _listed(name: str, given: list[str]) -> Any:
    if name == REGULARIZERS:
        return tuple(regularizer_of(text) for text in given)
    return tuple(given) or None


def regularizer_of(text: str) -> Any:
    """Return the regulariser that ``Kind:option=number,option=number`` describes.

    >>> regularizer_of("TargetDensity:density=0.9,strength=1e-4")
    TargetDensity(density=0.9, strength=0.0001)
    """
    kind, _, rest = text.partition(":")
    try:
        options = {
            key.strip(): float(value)
            for key, _, value in (part.partition("=") for part in rest.split(",") if part)
        }
        (made,) = Recipe.from_json(
            {**Recipe().to_json(), REGULARIZERS: [{"kind": kind, **options}]}
        ).regularizers
    except ValueError as error:  # also InputError, whose text shows the whole recipe
        raise InputError(
            f"regularizer {text!r}: expected KIND:OPTION=NUMBER,..., such as PullToKeep:strength="
            "1e-5, TargetDensity:density=0.9,strength=1e-4 or EntropyPrice:price=1e-5"
        ) from error
    return made


def only(names: Collection[str], given: str, what: str, between: str = ",") -> list[str]:
    """Return ``given``, cut at ``between``, as a list, each one of ``names``; raises InputError."""
    asked = [part.strip() for part in given.split(between) if part.strip()]
    wrong = [part for part in asked if part not in names]
    if wrong or not asked or len(set(asked)) != len(asked):
        raise InputError(f"{what} {given!r}: expected some of {between.join(names)}, each once")
    return asked
