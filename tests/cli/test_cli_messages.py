"""Errors and notices speak Python to those who call the library, and options to those who type a command."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import piggyback as package
from support.cli_toys import FAST

SOURCE = Path(package.__file__).parent


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--batch-size", "0"), "--batch-size 0: expected"),
        (("--augment-shift", "3"), "--augment-shift 3.0: expected"),
        (("--rule-threshold", "nan"), "--rule-threshold nan: expected"),
        (("--max-length", "9"), "--max-length 9 for images"),
        (("--tune", "--method", "head", "--warmup", "1"), "--warmup 1.0: expected"),
        (("--method", "lora", "--lora-rank", "3", "--lora-bytes", "9"), "--lora-bytes allows"),
        (("--backbone", "segmentation:resnet18"), "--checkpoint"),
    ],
)
def test_a_refused_setting_is_named_as_it_was_typed(
    piggyback, colours, toy, options, told, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = ("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, *options)
    piggyback(*given).refuses(told)


def test_advice_is_an_option_that_the_command_has(piggyback, colours, toy, tmp_path):
    """A name within a path or in quotes stays what it is."""
    out = tmp_path / "head= (skip_bad=True)"
    given = ("train", "--data", colours, "--backbone", f"{toy}:build", "--out", out, *FAST)
    assert piggyback(*given).code == 0
    ran = piggyback(*given, "--seed", 1)
    ran.refuses(f"run folder {str(out)!r}", "another folder (--out), or replace it (--overwrite)")
    Path("bad/train/a=").mkdir(parents=True)
    for number in range(2):
        Path(f"bad/train/a=/{number}.png").write_bytes(b"no image")
    ran = piggyback("train", "--data", "bad", "--backbone", f"{toy}:build")
    ran.refuses("skip such images (--skip-bad)", "/a=/0.png")


def test_the_library_names_no_option():
    """Below the command line, and what only it uses, a message names parameters: see ``cli/messages.py``."""
    found = []
    for file in SOURCE.rglob("*.py"):
        if file.relative_to(SOURCE).parts[0] in ("cli", "lab"):
            continue
        tree = ast.parse(file.read_text())
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in texts
            ):
                whole = node.value.replace("piggyback predict --out DIR", "")  # a whole command
                if re.search(r"(?:^|[ (])--[a-z]", whole):
                    found.append(f"{file.name}:{node.lineno}: {node.value}")
    assert not found
