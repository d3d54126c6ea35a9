"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piggyback.zoo import default_backbone

DEFAULT_BACKBONE = default_backbone()
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        metavar="SPEC",
        help="efficientnet_lite0 (1, 2), timm:NAME, torchvision:NAME, transformers:NAME, "
        "or path/to/file.py:function.",
    ),
]
OtherBackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone", metavar="SPEC", help="The backbone, where not the one that the file names."
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
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output, and nothing else there.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the server's token; by default $PIGGYBACK_TOKEN."),
]
