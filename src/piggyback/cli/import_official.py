"""``piggyback import-official``: a task file from a pack of the paper's authors."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from piggyback.cli.options import CheckpointOption
from piggyback.cli.screen import results
from piggyback.lab.official import SPECS
from piggyback.names import check_name
from piggyback.taskfile.disk import check_output
from piggyback.taskfile.header import keep_task

Architecture = enum.Enum("Architecture", {name: name for name in SPECS})  # type: ignore[misc]


def run(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A file of masks, NAME.pt.")],
    arch: Annotated[Architecture, typer.Option(help="The network that the pack is for.")],
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Which of the pack's data sets.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What to write; by default DATASET.safetensors, in this folder."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="The backbone, if not torchvision's weights of 2017."),
    ] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Turn a pack of the paper's authors into a task file.

    Reads their masks and classifier without running anything that is in the pack,
    and checks every shape against the backbone. A pack does not say which weights
    it was made for: evaluate the task before you rely on it.

    \b
    Examples:
      piggyback import-official packed.pt --arch vgg16 --dataset flowers
      piggyback import-official packed.pt --arch resnet50 --dataset sketches \\
        --checkpoint resnet50_places365.pth.tar --out sketches.safetensors
    """
    from piggyback.lab.official.packs import check_pack, import_official
    from piggyback.taskfile.file import save_file
    from piggyback.zoo.load import load_backbone

    check_pack(pack, dataset)  # before a network is downloaded for it
    out = out or Path(f"{check_name(dataset)}.safetensors")
    check_output(out, "--out")
    keep_task(out, "--out")
    loaded = load_backbone(backbone or SPECS[arch.value], checkpoint=checkpoint)
    task = import_official(pack, dataset, arch.value, loaded)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(task, out)
    results().print(
        f"wrote {out}: {task.info.rule.kind} masks of {task.weights:,} weights in {len(task.masks)} layers, "
        f"{100 * task.density:.2f}% kept, {len(task.info.classes)} classes",
        soft_wrap=True,
    )
