"""Names the commands, imports the one that is asked for, and turns errors into one line."""

from __future__ import annotations

import importlib
import io
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from piggyback import __version__
from piggyback.cli.messages import in_options, takes_options
from piggyback.errors import InputError, PiggybackError, PiggybackWarning
from piggyback.names import plain

COMMANDS = {
    "quickstart": "Learn two tasks on one frozen network, in minutes, on the CPU.",
    "train": "Learn one task from images or texts; write its task file.",
    "compare": "Train several methods on one or more tasks; make one table.",
    "experiment": "Run a table of many trainings that a manifest describes.",
    "data": "List the paper's data sets; show where each is stored, or how to get it.",
    "check": "Check a data set: counts, unreadable files, duplicates, sizes.",
    "evaluate": "Measure a task file on labelled images or texts.",
    "predict": "Answer for images or texts with one or more task files.",
    "serve": "Answer over HTTP for every task file in a folder, from one network.",
    "inspect": "Show what is in a task file.",
    "bake": "Write a task as a plain model: a state dict, ONNX, or a folder for transformers.",
    "verify": "Check a backbone's weights against a task file.",
    "import-official": "Turn a pack of the paper's authors into a task file.",
    "export-official": "Turn task files into a pack in the authors' format.",
}
"""In the order of the help. Each is a module of this package with a function ``run``, and ``VERBS`` if it has some; it
imports torch, and what needs torch, inside ``run``: help, and what needs no network, are there at once."""

_FORMAT_WARNING = warnings.formatwarning

_TYPE = re.compile(r"<(?:list\[)?(int|float|str|path)(?: range|\])?>")
_VALUES = {"int": "N", "float": "NUMBER", "str": "TEXT", "path": "PATH"}

_OPTIONS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class Commands(TyperGroup):
    """Imports a command's module when it is asked for, as completion does."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ``args`` begin with, loaded."""
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = load(args[0])
        return super().resolve_command(ctx, args)


class Command(TyperCommand):
    """Shows its options in sections, by ``rich_help_panel``, in plain text; those without one come first."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the arguments; an empty one would be the current folder where a path is expected."""
        for before, part in zip(["", *args], args, strict=False):
            if part == "" or (part.startswith("--") and part.endswith("=")):
                where = f"{before if part == '' else part} ''".lstrip()
                raise InputError(f"{where}: an empty argument; is a shell variable not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; messages speak of its options."""
        takes_options(self.params)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the line of usage; in brackets what may be left out."""
        given = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        names = (str(p.metavar) if p.required else f"[{p.metavar}]" for p in given)
        return [*([self.options_metavar] if self.options_metavar else []), *names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options into the help, their values in words for people, not Python's types."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                panel = getattr(param, "rich_help_panel", None) or kind
                name = record[0].split(" <")[0] if kind == "Arguments" else record[0]
                name = _TYPE.sub(lambda found: _VALUES[found[1]], name)
                sections.setdefault(panel, []).append((name, record[1]))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; exits with 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    warnings.formatwarning = _warning_line
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a console or pipe that cannot show a name shows its code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = [part for part in given if part != "--debug"]
    try:
        if given and given[0] in COMMANDS:  # the options of the root cost more than most help pages
            load(given[0])(args=given[1:], prog_name=f"piggyback {given[0]}")
        application()(args=given, prog_name="piggyback")
    except KeyboardInterrupt:  # while a command's modules are loaded; later ones are told by typer
        sys.exit(130)
    except Exception as error:
        message = _one_line(error)
        if message is None or debug:
            raise
        typer.echo(f"error: {plain(message)}", err=True)
    sys.exit(1)


def application() -> typer.Typer:
    """Return the command line with a light stand-in for each command."""
    app = typer.Typer(cls=Commands, no_args_is_help=True, **_OPTIONS)
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        app.command(name, help=summary, short_help=summary)(_stand_in)
    return app


def load(name: str) -> Any:
    """Return the command called ``name`` with its options; imports its module."""
    module = importlib.import_module(f"piggyback.cli.{name.replace('-', '_')}")
    app = typer.Typer(add_completion=False, **_OPTIONS)
    if hasattr(module, "VERBS"):
        app.callback()(module.run)
        for verb, run in module.VERBS.items():
            app.command(verb, cls=Command)(run)
    else:
        app.command(name, cls=Command)(module.run)
    return typer.main.get_command(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"piggyback {__version__}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error; may stand anywhere in the line."
        ),
    ] = False,
) -> None:
    """One frozen pretrained network, many tasks: a bit per weight and a small head each.

    Start with: piggyback quickstart
    """


def _stand_in() -> None:
    """Never runs: ``Commands`` puts the real command in its place."""


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of ours in one line, without the place in the code; others as Python shows them, codes escaped."""
    if issubclass(category, PiggybackWarning):
        return f"warning: {plain(in_options(str(message)))}\n"
    shown = _FORMAT_WARNING(message, category, filename, lineno, line)
    return "\n".join(map(plain, shown.split("\n")))


def _one_line(error: Exception) -> str | None:
    """The message of an error that its reader can mend; None for a defect of this program."""
    if isinstance(error, PiggybackError):
        return in_options(" ".join(str(error).split()))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return None
