"""``piggyback export-official``: task files as a pack that the paper's authors' code reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piggyback.cli.screen import results
from piggyback.taskfile.disk import check_output
from piggyback.taskfile.header import keep_task


def run(
    tasks: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Task files of one network.")
    ],
    out: Annotated[Path, typer.Option(metavar="PACK", help="What to write: NAME.pt.")],
) -> None:
    """Turn task files into a pack in the authors' format.

    For VGG-16, VGG-16-BN, ResNet-50 and DenseNet-121 as torchvision builds them, with
    plain masks on every weight but the classifier's. Names of classes are lost, and a
    task with its own normalisation is refused: a pack cannot hold it.

    \b
    Examples:
      piggyback export-official flowers.safetensors --out packed.pt
      piggyback export-official flowers.safetensors cubs.safetensors --out all.pt
    """
    from piggyback.lab.official.network import architecture_of
    from piggyback.lab.official.packs import export_official, save_official
    from piggyback.taskfile.file import load_file

    check_output(out, "--out")
    keep_task(out, "--out")
    loaded = [load_file(file) for file in tasks]
    arch, module = architecture_of(loaded[0])
    save_official(export_official(loaded, arch, module), out)
    results().print(
        f"wrote {out}: {arch}, {', '.join(task.name for task in loaded)}, "
        f"{out.stat().st_size:,} bytes",
        soft_wrap=True,
    )
