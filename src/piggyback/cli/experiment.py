"""``piggyback experiment``: the paper's tables, and others, one command each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.options import JsonOption, only
from piggyback.cli.screen import ScreenListener, notes, results, resumable, table, write_json
from piggyback.errors import InputError, TrainingError, require
from piggyback.taskfile.disk import check_output

if TYPE_CHECKING:  # help pages need none of it
    from piggyback.lab.experiments.manifest import Source
    from piggyback.lab.experiments.runner import Experiment
    from piggyback.lab.experiments.sources import Sources

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="As `piggyback experiment list` shows it, or a .yaml file."
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Folder with data sets, each in a folder of its name. May be repeated. "
        "By default $PIGGYBACK_DATA, ./data and ../shared/data.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder for runs, tables and plots; by default experiments/NAME."
    ),
]
TasksOption = Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these tasks.")]
MethodsOption = Annotated[
    str | None, typer.Option(metavar="A;B;...", help="Only these lines of the table.")
]
SeedOption = Annotated[
    list[int] | None, typer.Option(help="Seeds instead of the manifest's. May be repeated.")
]
ToyOption = Annotated[
    bool,
    typer.Option(
        "--toy", help="Made-up images and a tiny network: checks in a minute that everything runs."
    ),
]


def list_experiments(data: DataOption = None, json: JsonOption = False) -> None:
    """List the experiments of the package and what each still lacks."""
    from piggyback.lab.experiments.manifest import load_manifest, shipped

    rows = []
    for name in shipped():
        manifest = load_manifest(name)
        rows.append(
            {
                "name": name,
                "title": manifest.title,
                "paper": manifest.paper,
                "backbones": list(manifest.backbones),
                "tasks": list(manifest.tasks),
                "methods": list(manifest.methods),
                "missing": list(_from_disk(data, manifest.sources).missing(manifest)),
            }
        )
    if json:
        write_json(rows)
        return
    listed = table("experiment", ">tasks", ">methods", ">missing")
    for row in rows:
        of_paper = f" (paper: {row['paper']})" if row["paper"] else ""
        title = Text.assemble((str(row["name"]), "bold"), f"\n{row['title']}{of_paper}")
        counts = (len(row[key]) for key in ("tasks", "methods", "missing"))
        listed.add_row(title, *(str(count or "-") for count in counts))
    results().print(listed)
    results().print("missing: data sets and checkpoints; `run NAME --dry-run` says how to get them")


def run_experiment(
    name: NameArgument,
    data: DataOption = None,
    out: OutOption = None,
    tasks: TasksOption = None,
    methods: MethodsOption = None,
    seed: SeedOption = None,
    workers: Annotated[
        int,
        typer.Option(help="Parallel trainings, each with its own device or share of the cores."),
    ] = 1,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch missing data sets that torchvision can fetch.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list the trainings, what they cost and what is missing."
        ),
    ] = False,
    toy_size: ToyOption = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Train what is not finished; write the table and plots.

    The best of a method's trials is chosen on val with the first seed, then repeated
    with the others. Stop it at any time: the same command goes on where it stopped.

    \b
    Examples:
      piggyback experiment run table2 --toy
      piggyback experiment run mine.yaml
      piggyback experiment run table2 --tasks cubs,flowers --dry-run
      piggyback experiment run table2 --data sets --workers 4
    """
    if workers > 1 and device is not None and ":" in device:
        raise InputError(
            f"--device {device}: of several --workers each has its own; leave it out, or set CUDA_VISIBLE_DEVICES"
        )
    compute_with(threads, device)
    experiment = _experiment(name, data, out, tasks, methods, seed, toy_size, download)
    if dry_run:
        _show_costs(experiment, json)
        return
    from piggyback.lab.experiments.report import draw

    with resumable(experiment.out):
        experiment.run(
            workers=workers, listener=ScreenListener, log=lambda line: notes().print(line)
        )
    _show(experiment, json)
    for path in draw(experiment):
        (notes() if json else results()).print(f"wrote {path}", soft_wrap=True)
    if failed := experiment.failed:
        raise TrainingError(
            f"{len(failed)} cell{'s' if len(failed) > 1 else ''} failed, the first: "
            f"{failed[0].error}; the same command tries again"
        )


def show_experiment(
    name: NameArgument,
    out: OutOption = None,
    tasks: TasksOption = None,
    methods: MethodsOption = None,
    seed: SeedOption = None,
    toy_size: ToyOption = False,
    json: JsonOption = False,
) -> None:
    """Show the table of what is finished, without training.

    Table and plots are written anew.
    """
    experiment = _experiment(name, None, out, tasks, methods, seed, toy_size)
    if not experiment.out.is_dir():
        raise InputError(
            f"experiment {name!r}: no folder {str(experiment.out)!r}; give --out, or run it first"
        )
    _show(experiment, json)


def run() -> None:
    """Run a table of many trainings that a manifest describes.

    \b
    Examples:
      piggyback experiment list
      piggyback experiment run table2 --toy
      piggyback experiment run mine.yaml
    """


VERBS = {"list": list_experiments, "run": run_experiment, "show": show_experiment}


def _from_disk(
    data: list[Path] | None, folders: Mapping[str, Source], download: bool = False
) -> Sources:
    from piggyback.lab.datasets import default_roots
    from piggyback.lab.experiments.sources import Sources

    return Sources(tuple(data or default_roots()), download, folders)


def _experiment(
    name: str,
    data: list[Path] | None,
    out: Path | None,
    tasks: str | None,
    methods: str | None,
    seeds: list[int] | None,
    toy_size: bool,
    download: bool = False,
) -> Experiment:
    require("matplotlib", "plots")

    from piggyback.lab.experiments.manifest import load_manifest
    from piggyback.lab.experiments.runner import Experiment
    from piggyback.lab.experiments.sources import Toy, toy

    whole = load_manifest(name)
    manifest = whole.only(
        None if tasks is None else only(whole.tasks, tasks, "--tasks"),
        None if methods is None else only(whole.methods, methods, "--methods", ";"),
        seeds,
    )
    folder = out or Path("experiments", whole.name + ("-toy" if toy_size else ""))
    check_output(folder, "--out", folder=True)
    if toy_size:
        return Experiment(toy(manifest), Toy(), folder)
    sources = _from_disk(data, manifest.sources, download)
    return Experiment(manifest, sources, folder)


def _show(experiment: Experiment, json: bool) -> None:
    from piggyback.lab.experiments.report import table_of, write
    from piggyback.lab.tables.formats import table_screen, verdicts

    written = write(experiment)
    screen = notes() if json else results()
    screen.print(table_screen(table_of(experiment), experiment.manifest.title))
    for line in verdicts(experiment.rows):
        screen.print(line, markup=False, soft_wrap=True)
    if count := len(experiment.waiting):
        screen.print(f"{count} training{'s are' if count > 1 else ' is'} not finished")
    for path in written:
        screen.print(f"wrote {path}", soft_wrap=True)
    if json:
        write_json([row.to_json() for row in experiment.rows])


def _show_costs(experiment: Experiment, json: bool) -> None:
    from piggyback.lab.experiments.report import costs

    lines = costs(experiment)
    lacking = experiment.sources.missing(experiment.manifest)
    if json:
        write_json({"lines": [vars(line) for line in lines], "missing": lacking})
        return
    costly = table("backbone", "method", ">trainings", ">done", ">images passed", ">hours left")
    for line in lines:
        hours = "-" if line.hours is None else f"{line.hours:.1f}"
        costly.add_row(
            line.backbone, line.label, str(line.runs), str(line.done), f"{line.images:,}", hours
        )
    screen, tasks = results(), experiment.manifest.tasks
    screen.print(costly)
    total = sum(line.runs for line in lines)
    screen.print(f"{total} trainings on {len(tasks)} tasks: {', '.join(tasks)}")
    for lack in lacking.values():
        screen.print(f"missing: {lack}", soft_wrap=True)
