"""A task file whose mask rule has a form: inspected, evaluated, baked; no option learns one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_tensors

from piggyback.masks.bits import unpack
from piggyback.taskfile.file import load_file, save_file
from support.cli_toys import FAST, Command

GOLDEN = Path(__file__).parent.parent / "golden"


def test_evaluate_and_bake_an_affine_task(piggyback: Command, colours: Path, toy: str) -> None:
    backbone = f"{toy}:build"
    ran = piggyback(
        *("train", "--data", colours, "--backbone", backbone, "--out", "out", *FAST),
    )
    assert ran.code == 0, ran.err
    path = Path("out/affine.safetensors")
    learned = load_file("out/colours.safetensors")
    info = replace(learned.info, rule=replace(learned.info.rule, form="affine"))
    numbers = {name: torch.tensor([0.1, 0.01, 0.0, 0.9]) for name in learned.masks}
    save_file(replace(learned, info=info, coefficients=numbers), path)
    ran = piggyback("evaluate", path, "--data", colours, "--backbone", backbone, "--json")
    assert json.loads(ran.out)["accuracy"] > 50
    ran = piggyback("bake", path, "--backbone", backbone, "--to", "baked.safetensors")
    assert ran.code == 0, ran.err
    baked = load_tensors("baked.safetensors")
    for name, mask in learned.masks.items():
        dropped = baked[name][~unpack(mask)]
        assert dropped.numel()
        assert dropped.all(), "what is not kept is k0 W + k1"


@pytest.mark.parametrize("option", ["--rule-form", "--form-lr"])
def test_no_option_asks_for_a_form(piggyback: Command, option: str) -> None:
    for command in ("train", "compare"):
        ran = piggyback(command, "--data", "x", option, "1")
        assert ran.code == 2
        assert option in ran.err


def test_inspect_names_the_form_and_its_bytes(piggyback: Command) -> None:
    path = GOLDEN / "v2-channel.safetensors"
    shown = piggyback("inspect", path).out
    assert "format 2" in shown
    assert "ternary, channel form" in " ".join(shown.split())
    assert "coefficients 60 B" in " ".join(shown.split())
    told = json.loads(piggyback("inspect", path, "--json").out)
    assert told["rule"] == {"kind": "ternary", "threshold": 0.005, "form": "channel"}
    assert told["bytes"]["form"] == 60
    assert sum(told["bytes"].values()) == 2 * told["bytes"]["total"]
    plain = piggyback("inspect", GOLDEN / "v1-ternary.safetensors").out
    assert "form," not in plain
    assert "coefficients" not in plain
