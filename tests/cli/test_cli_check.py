"""``piggyback check``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from support.cli_toys import COLOURS, Command


def test_counts_are_shown_and_files_written(piggyback: Command, colours: Path) -> None:
    ran = piggyback("check", colours, "--out", "found")
    assert ran.code == 0
    for name in COLOURS:
        assert name in ran.out
    values = json.loads(Path("found/check.json").read_text())
    assert values["counts"]["red"] == {"train": 20, "test": 6}
    with Image.open("found/classes.png") as sheet:
        assert sheet.width > 400


def test_what_training_refuses_ends_with_1(piggyback: Command, colours: Path) -> None:
    shutil.copytree(colours, "own")
    Path("own/train/red/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = piggyback("check", "own")
    assert ran.code == 1
    assert "torn.png" in ran.out
    assert "torn.png" in piggyback("check", "own", "--json").out
    piggyback("check", "nowhere").refuses("nowhere")
