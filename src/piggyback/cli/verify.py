"""``piggyback verify``: is this the backbone that a task was learned on?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piggyback.cli.computing import ThreadsOption, compute_with
from piggyback.cli.options import CheckpointOption, HeadOption, JsonOption, OtherBackboneOption
from piggyback.cli.screen import results, write_json
from piggyback.taskfile.header import read_header

_SHOWN = 10


def run(
    task: Annotated[Path, typer.Argument(metavar="FILE", help="A task file.")],
    backbone: OtherBackboneOption = None,
    checkpoint: CheckpointOption = None,
    head: HeadOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Check a backbone's weights against a task file.

    Loads the backbone and compares it, to the bit, with the fingerprint in the file.
    Exits with 0 if they agree, with 1 if not, and says which weights differ.

    \b
    Examples:
      piggyback verify tasks/signs.safetensors
      piggyback verify tasks/signs.safetensors --checkpoint mine.safetensors
    """
    compute_with(threads)
    header = read_header(task)

    from piggyback.cli.loading import backbone_of
    from piggyback.network.fingerprint import fingerprint
    from piggyback.taskfile.file import load_file
    from piggyback.taskfile.task import KEEP

    found = backbone_of(header, backbone, checkpoint, head)
    info = load_file(task).info
    known = info.backbone
    held = {name for name, _ in found.module.named_parameters(remove_duplicate=False)}
    whole, weights = fingerprint(
        found.module,
        [name for name in known.weights if name in held],
        None if info.head_kind == KEEP else found.head,
    )
    same = whole == known.fingerprint
    differing = [name for name, digest in known.weights.items() if weights.get(name) != digest]
    if json:
        write_json(
            {
                "task": header.name,
                "match": same,
                "expected": known.fingerprint,
                "found": whole,
                "differing": differing,
            }
        )
    else:
        screen = results()
        screen.print(f"expected  {known.fingerprint}")
        screen.print(f"found     {whole}")
        for line in _verdict(same, differing, len(known.weights), held):
            screen.print(line)
    if not same:
        raise typer.Exit(1)


def _verdict(same: bool, differing: list[str], masked: int, held: set[str]) -> list[str]:
    if same:
        return ["the backbone is the one that the task was learned on, to the bit"]
    if not differing:
        return [
            f"the backbone differs: its {masked} masked weights agree, other tensors "
            "(normalisation, biases) do not"
        ]
    missing = sum(name not in held for name in differing)
    why = f", {missing} of them missing: another architecture" if missing else ""
    more = [f"  and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
    return [
        f"the backbone differs in {len(differing)} of {masked} masked weights{why}",
        *(f"  {name}" for name in differing[:_SHOWN]),
        *more,
    ]
