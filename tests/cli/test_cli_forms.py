"""A task whose mask rule has a form, from the command line's options to a baked model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from cli_toys import FAST, Command
from safetensors.torch import load_file as load_tensors

from piggyback.masks.packing import unpack
from piggyback.tasks.file import load_file

GOLDEN = Path(__file__).parent.parent / "golden"


def test_train_evaluate_and_bake_an_affine_task(
    piggyback: Command, colours: Path, toy: str
) -> None:
    backbone = f"{toy}:build"
    ran = piggyback(
        *("train", "--data", colours, "--backbone", backbone, "--out", "out", *FAST),
        *("--rule-form", "affine", "--form-lr", "0.01"),
    )
    assert ran.code == 0, ran.err
    path = Path("out/colours.safetensors")
    task = load_file(path)
    assert task.info.rule.form == "affine"
    ran = piggyback("evaluate", path, "--data", colours, "--backbone", backbone, "--json")
    assert json.loads(ran.out)["accuracy"] == task.info.provenance["test_accuracy"]
    ran = piggyback("bake", path, "--backbone", backbone, "--to", "baked.safetensors")
    assert ran.code == 0, ran.err
    baked = load_tensors("baked.safetensors")
    for name, numbers in task.coefficients.items():
        assert (numbers != torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
        dropped = baked[name][~unpack(task.masks[name])]
        assert dropped.numel()
        assert dropped.all(), "what is not kept is k0 W + k1"


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
