"""Options that several commands share, and those of training, made from the fields of ``Recipe`` and their texts."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from piggyback.errors import InputError
from piggyback.train.recipe import READ_ONLY, Recipe, group_of
from piggyback.zoo import default_backbone

DEFAULT_BACKBONE = default_backbone()
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="SPEC",
        help="efficientnet_lite0 (1, 2), timm:NAME, torchvision:NAME, transformers:NAME, "
        "minilm_l6, or path/to/file.py:function.",
    ),
]
OtherBackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone", metavar="SPEC", help="The backbone, if not the one that the file names."
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Load the backbone's weights from this state dict instead."),
]
HeadOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The backbone's classifier layer, if it is not found."),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME",
        help="For a table: the column that holds image or text, label, split or group, if it has another name. "
        "May be repeated.",
    ),
]
KindOption = Annotated[
    Literal["classification", "multilabel", "regression", "tokens"],
    typer.Option(
        "--kind",
        help="What a table's labels are: one class, several labels, numbers, or a tag for each word.",
    ),
]
SeparatorOption = Annotated[
    str,
    typer.Option(
        "--separator", metavar="TEXT", help="What stands between several labels in a cell."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output, and nothing else there.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the server's token; by default $PIGGYBACK_TOKEN."),
]

REGULARIZERS = "regularizers"
FieldPath = tuple[str, ...]
"""``("augment", "flip")`` for a field of a dataclass within the recipe; its option is ``--augment-flip``."""


def takes_recipe(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of ``Recipe``, as its ``recipe``.

    Fields in ``without`` get no option and keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {path: made for path, made in options_of(Recipe) if path[0] not in without}
        own = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {path: given.pop(option.name) for path, option in options.items()}
            command(**given, recipe=_built(Recipe, values))

        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own.parameters.values()
            if parameter.name != "recipe"
        ]
        parameters = [*kept, *options.values()]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def options_of(
    kind: type, path: FieldPath = (), group: str = ""
) -> Iterator[tuple[FieldPath, inspect.Parameter]]:
    """Return a dataclass's fields as parameters of a command, in sections of the help page."""
    hints = typing.get_type_hints(kind)
    docs = field_docs(kind)
    for field in dataclasses.fields(kind):
        hint, here = hints[field.name], (*path, field.name)
        section = group or group_of(kind, field.name)
        if ".".join(here) in READ_ONLY:
            continue
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), here, section)
            continue
        taken, default = _as_typer_takes_it(field, hint)
        text, names, metavar = docs.get(field.name) or _summary(kind), [], None
        if field.name == REGULARIZERS:
            names, metavar = ["--regularizer"], "KIND:OPTION=NUMBER,..."
        elif taken == list[str]:
            metavar = "TEXT"
        if metavar is not None:
            text += " May be repeated."
        option = typer.Option(
            *names,
            help=text.replace("``", ""),
            metavar=metavar,
            rich_help_panel=section or None,
        )
        yield (
            here,
            inspect.Parameter(
                "_".join(here),
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[taken, option],
            ),
        )


def field_docs(kind: type) -> dict[str, str]:
    """Return the text below each field of a dataclass and its bases, in one line each.

    >>> field_docs(Recipe)["batch_size"]
    'Images per step, over all processes together.'
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


def _summary(kind: type) -> str:
    """The first sentence of a class's description."""
    first = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return first.rstrip(".:") + "."


def _as_typer_takes_it(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, Any]:
    """A field's type and default, for typer."""
    factory = field.default_factory
    default: Any = factory() if callable(factory) else field.default
    inner = hint
    if get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(inner) is tuple:
        return list[str], list(default or ())
    return hint, default


def _built(kind: Any, values: Mapping[FieldPath, Any]) -> Any:
    """The dataclass that the options' values describe."""
    hints = typing.get_type_hints(kind)
    made: dict[str, Any] = {}
    for first in dict.fromkeys(path[0] for path in values):
        inside = {path[1:]: value for path, value in values.items() if path[0] == first}
        value = inside[()] if () in inside else _built(hints[first], inside)
        if first == REGULARIZERS:
            value = tuple(regularizer_of(text) for text in value)
        elif isinstance(value, list):
            value = tuple(value) or None
        made[first] = value
    return kind(**made)


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
        values = {**Recipe().to_json(), REGULARIZERS: [{"kind": kind, **options}]}
        (made,) = Recipe.from_json(values).regularizers
    except ValueError as error:  # also InputError, whose text shows the whole recipe
        raise InputError(
            f"regularizer {text!r}: expected KIND:OPTION=NUMBER,..., such as PullToKeep:strength="
            "1e-5, TargetDensity:density=0.9,strength=1e-4 or EntropyPrice:price=1e-5"
        ) from error
    return made


def columns_of(given: Sequence[str] | None) -> dict[str, str]:
    """Return the columns that ``ROLE=NAME`` options name, by role.

    >>> columns_of(["text=review", "label=mood"])
    {'text': 'review', 'label': 'mood'}
    """
    found: dict[str, str] = {}
    for each in given or ():
        role, equals, name = each.partition("=")
        if not equals or not name or role in found:
            raise InputError(
                f"--column {each!r}: expected ROLE=NAME, each role once, such as text=review"
            )
        found[role] = name
    return found


def only(names: Collection[str], given: str, what: str, between: str = ",") -> list[str]:
    """Return ``given``, cut at ``between``, as a list, each one of ``names``; raises InputError."""
    asked = [part.strip() for part in given.split(between) if part.strip()]
    wrong = [part for part in asked if part not in names]
    if wrong or not asked or len(set(asked)) != len(asked):
        raise InputError(f"{what} {given!r}: expected some of {between.join(names)}, each once")
    return asked
