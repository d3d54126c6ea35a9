"""``piggyback bake``: plain models that give the task's own answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from piggyback.model.multitask import MultiTaskModel
from piggyback.zoo.load import load_backbone
from support.cli_toys import COLOURS, Command


@pytest.fixture
def model(trained: Path, toy: str) -> MultiTaskModel:
    """The live model."""
    backbone = load_backbone(f"{toy}:build")
    made = MultiTaskModel(backbone.module, head=backbone.head).eval()
    made.load_task(trained)
    return made


def test_a_baked_state_dict_loads_into_the_plain_network(
    piggyback: Command, trained: Path, toy: str, model: MultiTaskModel
) -> None:
    ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", "plain.safetensors")
    assert ran.code == 0
    plain = load_backbone(f"{toy}:other").module
    plain[-1] = torch.nn.Linear(24, 3)
    plain.load_state_dict(load_file("plain.safetensors"))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain.eval()(x), model(x, task="colours"))
    with safe_open("plain.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(COLOURS)


def test_onnx_gives_the_live_models_answers_for_any_batch(
    piggyback: Command, trained: Path, toy: str, model: MultiTaskModel
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", "task.onnx")
    assert ran.code == 0, ran.err
    assert "largest difference from the live model" in ran.out
    session = onnxruntime.InferenceSession("task.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16)
        (found,) = session.run(["logits"], {"images": x.numpy()})
        assert torch.allclose(torch.from_numpy(found), model(x, task="colours"), atol=1e-4)
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["preprocessing"])["image_size"] == 16


def test_without_the_extra_one_line_says_what_to_install(
    piggyback: Command, trained: Path, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", "task.onnx")
    assert ran.code == 1
    assert 'pip install "torch-piggyback[onnx]"' in ran.err


def test_other_names_are_refused(piggyback: Command, trained: Path, toy: str) -> None:
    before = trained.read_bytes()
    for name, told in (
        ("model.pt", "ending in .safetensors or .onnx"),
        (trained, "task file itself"),
    ):
        ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", name)
        assert ran.code == 1
        assert told in ran.err
    assert trained.read_bytes() == before


def test_a_file_s_name_is_no_markup(piggyback: Command, trained: Path, toy: str) -> None:
    Path("plain[").mkdir()
    to = Path("plain[") / "old].safetensors"
    ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", to)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"wrote {to}: ")
