"""``piggyback train``: one task, one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.loading import called, named
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
    takes_recipe,
)
from piggyback.errors import InputError, TaskNameError
from piggyback.names import check_name
from piggyback.taskfile.disk import check_output
from piggyback.taskfile.header import keep_task
from piggyback.train.recipe import Recipe

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx")
"""What ends the name of a file, where a folder's is expected."""


@takes_recipe("prune", "prune_epochs")
def run(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Images: DIR/train/CLASS/FILE, with val/ and test/ if you have them; or DIR/CLASS/FILE, "
            "one folder per class; DIR/train/images and labels for segmentation; or a data set's name. "
            "Or a table, FILE.csv, .tsv, .jsonl or .parquet, with columns image or text, label and, if you have it, "
            "split; tars in WebDataset's layout, FILE.tar, 'DIR/*.tar' or DIR; or hf:NAME or torchvision:CLASS:ROOT, "
            "a Hugging Face or torchvision data set. NAME=SOURCE names the task, too.",
        ),
    ],
    recipe: Recipe,
    backbone: BackboneOption = DEFAULT_BACKBONE,
    name: Annotated[
        str | None,
        typer.Option(help="The task's name; by default the task file's or the image folder's."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The task file, NAME.safetensors, or the run's folder; by default runs/NAME.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a stopped run from its checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished run that had other settings.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Start from this task file: its masks, and the head rows of classes that both have.",
        ),
    ] = None,
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
    """Learn one task from images or texts; write its task file.

    The run's folder gets the task file, NAME.safetensors, logs (CSV, JSON) and,
    while it runs, a checkpoint. The best epoch is chosen on val and measured once
    on test; missing splits are cut from train.

    \b
    Examples:
      piggyback train --data photos/signs
      piggyback train --data photos/signs --backbone timm:resnet50 --out runs/r50
      piggyback train --data photos/signs --out tasks/signs.safetensors
      piggyback train --data photos/signs --resume
      piggyback train --data photos/more --from signs.safetensors --epochs 20
      piggyback train --data camvid --backbone segmentation:efficientnet_lite0
      piggyback train --data photos.csv --kind multilabel --column label=tags
      piggyback train --data reviews.csv --column text=review --backbone minilm_l6
      piggyback train --data ner.tsv --kind tokens --backbone minilm_l6
    """
    compute_with(threads, device)
    file = out if out is not None and out.suffix == ".safetensors" else None
    if out is not None and file is None and out.suffix.lower() in _FILES and not out.is_dir():
        raise InputError(
            f"--out {str(out)!r}: expected a name ending in .safetensors, or a folder's"
        )
    before, data = named(data)
    name = name or before
    task = name or (file.stem if file else called(data))
    try:
        check_name(task)
    except TaskNameError as error:
        raise TaskNameError(f"{error}{'' if name else '; name it with --name'}") from None
    folder = Path("runs") / task if out is None or file else out
    if file is not None:
        check_output(file, "--out")
        mine = (
            each.read_bytes() == file.read_bytes() for each in folder.glob(f"{task}*.safetensors")
        )
        if file.is_file() and not overwrite and not any(mine):
            keep_task(file, "--out", "choose another name, or replace it with --overwrite")
    check_output(folder, "--out" if folder == out else "run folder", folder=True)

    from piggyback.cli.loading import load_images, load_sized
    from piggyback.cli.screen import ScreenListener, results, resumable, write_json
    from piggyback.lab.tables.formats import run_record, runs_screen
    from piggyback.lab.tables.rows import row_of
    from piggyback.taskfile.disk import write_file
    from piggyback.taskfile.file import load_file
    from piggyback.train import train

    begun = None if start is None else load_file(start)
    images = load_images(data, task, skip_bad, columns_of(column), kind, separator)
    seen = None
    if begun is not None and images.train.what == "images":
        seen = getattr(begun.info.preprocessing, "image_size", None)
    network = load_sized(backbone, [images], recipe.image_size or seen, checkpoint, head)
    listener = ScreenListener()
    with resumable(folder, "--resume"):
        result = train(
            network,
            images,
            task,
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            listener=listener,
            start=begun,
        )
    place = result.path
    if file is not None and result.path is not None:
        write_file(file, result.path.read_bytes())
        place = file
    row = row_of(result)
    if json:
        write_json({**run_record(row), "file": str(place)})
        return
    screen = results()
    screen.print(runs_screen([row]))
    screen.print(f"wrote {place}", soft_wrap=True)
