"""Commands that read a task file: ``evaluate``, ``inspect``, ``verify``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from piggyback.taskfile.file import load_file
from piggyback.zoo.load import load_backbone
from support.cli_toys import COLOURS, Command


def test_evaluate_repeats_the_test_accuracy(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    ran = piggyback("evaluate", trained, "--data", colours, "--backbone", f"{toy}:build", "--json")
    told = json.loads(ran.out)
    known = load_file(trained).info.provenance["test_accuracy"]
    assert told["accuracy"] == pytest.approx(known, abs=1e-3)
    assert (told["images"], tuple(told["classes"])) == (18, COLOURS)


def test_evaluate_takes_a_plain_folder_of_classes(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    ran = piggyback(
        *("evaluate", trained, "--data", colours / "train", "--backbone", f"{toy}:build"),
        "--per-class",
    )
    assert "of 60 images right" in ran.out
    assert all(name in ran.out for name in COLOURS)


def test_evaluate_names_the_splits_that_are_there(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    ran = piggyback(
        *("evaluate", trained, "--data", colours, "--backbone", f"{toy}:build"),
        *("--split", "val"),
    )
    assert ran.code == 1
    assert "no split 'val': it holds train, test; choose one with --split" in ran.err


def test_inspect_shows_the_header(piggyback: Command, trained: Path, toy: str) -> None:
    ran = piggyback("inspect", trained)
    assert ran.code == 0
    for text in (
        "colours (classification",
        "3: blue, green, red",
        "16 x 16",
        "0.weight",
        "3.weight",
    ):
        assert text in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_inspect_json_agrees_with_the_task(piggyback: Command, trained: Path) -> None:
    told = json.loads(piggyback("inspect", trained, "--json").out)
    task = load_file(trained)
    assert told["density"] == pytest.approx(task.density)
    assert told["classes"] == list(COLOURS)
    assert told["bytes"]["total"] == trained.stat().st_size
    assert sum(told["bytes"].values()) == 2 * told["bytes"]["total"]
    assert told["bits_per_weight"] == pytest.approx(8 * told["bytes"]["masks"] / task.weights)
    densities = {layer["name"]: layer["density"] for layer in told["layers"]}
    assert densities == pytest.approx({name: mask.density for name, mask in task.masks.items()})
    assert told["backbone"]["fingerprint"] == task.info.backbone.fingerprint


def test_inspect_writes_a_card(piggyback: Command, trained: Path) -> None:
    card = piggyback("inspect", trained, "--card").out
    assert "\n# colours\n" in card
    assert "3: blue, green, red" in card


def test_verify_accepts_the_same_weights(piggyback: Command, trained: Path, toy: str) -> None:
    ran = piggyback("verify", trained, "--backbone", f"{toy}:build")
    assert ran.code == 0
    assert "to the bit" in ran.out


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("other", "differs in 2 of 2 masked weights"),
        ("nudged", "other tensors (normalisation, biases) do not"),
        ("deeper", "1 of them missing: another architecture"),
    ],
)
def test_verify_says_what_differs(
    piggyback: Command, trained: Path, toy: str, factory: str, told: str
) -> None:
    ran = piggyback("verify", trained, "--backbone", f"{toy}:{factory}")
    assert ran.code == 1
    assert told in " ".join(ran.out.split())
    assert ran.err == ""
    assert max(map(len, ran.out.splitlines())) <= 80


def test_verify_takes_weights_from_a_checkpoint(
    piggyback: Command, trained: Path, toy: str
) -> None:
    state = load_backbone(f"{toy}:build").module.state_dict()
    save_file(state, "same.safetensors")
    state["3.weight"] = state["3.weight"] + torch.tensor(1e-6)
    save_file(state, "changed.safetensors")
    arguments = ("verify", trained, "--backbone", f"{toy}:other", "--json", "--checkpoint")
    assert json.loads(piggyback(*arguments, "same.safetensors").out)["match"] is True
    ran = piggyback(*arguments, "changed.safetensors")
    assert ran.code == 1
    assert json.loads(ran.out)["differing"] == ["3.weight"]
