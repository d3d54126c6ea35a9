"""``piggyback compare``: methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.options import (
    DEFAULT_BACKBONE,
    BackboneOption,
    CheckpointOption,
    ColumnOption,
    HeadOption,
    JsonOption,
    KindOption,
    SeparatorOption,
    SkipBadOption,
    columns_of,
    only,
    takes_recipe,
)
from piggyback.cli.screen import ScreenListener, notes, results, resumable, write_json
from piggyback.errors import InputError, require
from piggyback.names import check_name
from piggyback.train.recipe import Recipe

if TYPE_CHECKING:
    from piggyback.lab.experiments.compare import Proof


@takes_recipe("method", "seed", "prune", "prune_epochs")
def run(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DIR",
            help="A task's name and its folder of images, or table of texts; or a data set's name. May be repeated.",
        ),
    ],
    recipe: Recipe,
    backbone: BackboneOption = DEFAULT_BACKBONE,
    methods: Annotated[
        str, typer.Option(metavar="A,B,...", help="What to compare.")
    ] = "head,masks,finetune",
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of the runs; by default 0. May be repeated."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for runs, task files, tables and plots.")
    ] = Path("piggyback-compare"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep finished runs in that folder, continue the others."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace finished runs that had other settings.")
    ] = False,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    skip_bad: SkipBadOption = False,
    column: ColumnOption = None,
    kind: KindOption = "classification",
    separator: SeparatorOption = ",",
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Train several methods on one or more tasks; make one table.

    Written to the folder: table.csv, table.json, table.md, accuracy.png (accuracy
    against bytes), density.png (weights kept in each layer), tasks/NAME.safetensors.
    At the end all tasks go into one model and are measured again: none is forgotten.

    \b
    Examples:
      piggyback compare --data signs=photos/signs
      piggyback compare --data a=A --data b=B --methods head,masks --seed 1
      piggyback compare --data signs=photos/signs --json > rows.json
    """
    compute_with(threads, device)
    require("matplotlib", "plots")

    from piggyback.cli.loading import check_folder, load_images, load_sized
    from piggyback.lab.experiments.compare import compare
    from piggyback.lab.tables.formats import run_record, runs_screen
    from piggyback.train.methods import METHODS

    chosen = only(METHODS, methods, "--methods")
    seeds = seed or [0]
    if len(set(seeds)) != len(seeds):
        raise InputError(f"--seed {' '.join(map(str, seeds))}: expected each once")
    folders = dict(_named(text) for text in data)
    if len(folders) != len(data):
        raise InputError(f"--data {' '.join(data)}: expected a different NAME for each")
    check_folder(out, "--out", folders.values())
    images = {
        name: load_images(folder, name, skip_bad, columns_of(column), kind, separator)
        for name, folder in folders.items()
    }
    network = load_sized(backbone, images.values(), recipe.image_size, checkpoint, head)
    with resumable(out, "--resume"):
        compared = compare(
            network,
            images,
            chosen,
            recipe,
            out,
            seeds=seeds,
            resume=resume,
            overwrite=overwrite,
            listener=ScreenListener,
        )
    screen = notes() if json else results()
    screen.print(runs_screen(compared.rows))
    if compared.proof is not None:
        show_proof(screen, compared.proof)
    for path in (*compared.written, *compared.files.values()):
        screen.print(f"wrote {path}", soft_wrap=True)
    if json:
        write_json([run_record(row) for row in compared.rows])


def show_proof(screen: Console, proof: Proof) -> None:
    """Print whether the tasks, measured again in one model, and the backbone are as they were."""
    for task in proof.tasks:
        if task.alone != task.together:
            screen.print(
                f"{task.task}: {task.alone:.2f}% alone, {task.together:.2f}% beside others"
            )
    if not proof.forgotten:
        count = f"{len(proof.tasks)} task{'s' if len(proof.tasks) > 1 else ''}"
        screen.print(f"all in one model, {count}: each as accurate as when it was trained")
    word = "bit-identical" if proof.identical else "CHANGED"
    screen.print(f"backbone {word}: {proof.before[:16]} before, {proof.after[:16]} after")


def _named(text: str) -> tuple[str, Path]:
    from piggyback.lab.datasets import DATASETS

    if text in DATASETS:
        return text, Path(text)
    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise InputError(f"--data {text!r}: expected NAME=DIR, such as signs=photos/signs")
    return check_name(name), Path(folder)
