"""Commands that read a task file: ``evaluate``, ``inspect``, ``verify``, ``bake``."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from piggyback.masks.bits import unpack_mask
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.file import load_file, save_file
from piggyback.zoo.load import load_backbone
from support.cli_toys import COLOURS

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def model(trained: Path, toy: str) -> MultiTaskModel:
    """The live model."""
    found = load_backbone(f"{toy}:build")
    made = MultiTaskModel(found.module, head=found.head).eval()
    made.load_task(trained)
    return made


def test_evaluate_repeats_the_test_accuracy(piggyback, trained, colours, network):
    told = json.loads(piggyback("evaluate", trained, "--data", colours, *network, "--json").out)
    known = load_file(trained).info.provenance["test_accuracy"]
    assert told["accuracy"] == pytest.approx(known, abs=1e-3)
    assert (told["images"], tuple(told["classes"])) == (18, COLOURS)


def test_evaluate_takes_a_plain_folder_or_a_split_that_is_there(
    piggyback, trained, colours, network
):
    ran = piggyback("evaluate", trained, "--data", colours / "train", *network, "--per-class")
    assert "of 60 images right" in ran.out
    assert all(name in ran.out for name in COLOURS)
    ran = piggyback("evaluate", trained, "--data", colours, *network, "--split", "val")
    ran.refuses("no split 'val'", "train, test", "--split")


def test_inspect_shows_the_header(piggyback, trained):
    ran = piggyback("inspect", trained)
    assert ran.code == 0
    for text in ("colours (classification", "3: blue, green, red", "16 x 16", "0.weight"):
        assert text in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "0.weight" not in piggyback("inspect", trained, "--no-layers").out
    card = piggyback("inspect", trained, "--card").out
    assert "\n# colours\n" in card
    assert "3: blue, green, red" in card


def test_two_ways_to_write_one_result_are_refused(piggyback, trained):
    piggyback("inspect", trained, "--json", "--card").refuses("--json and --card")
    line = ("predict", "a.png", "--task", trained, "--json", "--format", "csv")
    piggyback(*line).refuses("--json and --format csv")


def test_inspect_json_agrees_with_the_task(piggyback, trained):
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


def test_inspect_names_a_form_and_its_bytes(piggyback):
    path = GOLDEN / "v2-channel.safetensors"
    shown = " ".join(piggyback("inspect", path).out.split())
    for text in ("format 2", "ternary, channel form", "coefficients 60 B"):
        assert text in shown
    told = json.loads(piggyback("inspect", path, "--json").out)
    assert told["rule"] == {"kind": "ternary", "threshold": 0.005, "form": "channel"}
    assert told["bytes"]["form"] == 60
    assert "form," not in piggyback("inspect", GOLDEN / "v1-ternary.safetensors").out


def test_verify_accepts_the_same_weights(piggyback, trained, network):
    ran = piggyback("verify", trained, *network)
    assert ran.code == 0
    assert "to the bit" in ran.out


def test_a_task_that_keeps_the_backbones_head_is_verified_with_it_and_not_exported(
    piggyback, toy, network, tmp_path
):
    found = load_backbone(f"{toy}:build")
    model = MultiTaskModel(found.module, head=found.head)
    model.start_task("tone", head="keep")
    model.finish_task()
    model.save_task("tone", tmp_path / "tone.safetensors")
    ran = piggyback("verify", tmp_path / "tone.safetensors", *network)
    assert (ran.code, "to the bit" in ran.out) == (0, True)
    ran = piggyback("bake", tmp_path / "tone.safetensors", "--to", tmp_path / "a.onnx", *network)
    ran.refuses("task 'tone'", ".safetensors")
    for line in (("evaluate", "tone.safetensors", "--data", "."), ("predict", "--text", "x")):
        ran = piggyback(*line, *("--task", "tone.safetensors") * (line[0] == "predict"), *network)
        ran.refuses("task 'tone'", "own head", "MultiTaskModel")


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("other", "differs in 2 of 2 masked weights"),
        ("nudged", "other tensors (normalisation, biases) do not"),
        ("deeper", "1 of them missing: another architecture"),
    ],
)
def test_verify_says_what_differs(piggyback, trained, toy, factory, told):
    ran = piggyback("verify", trained, "--backbone", f"{toy}:{factory}")
    assert (ran.code, ran.err) == (1, "")
    assert told in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80


def test_verify_takes_weights_from_a_checkpoint(piggyback, trained, toy):
    state = load_backbone(f"{toy}:build").module.state_dict()
    save_tensors(state, "same.safetensors")
    state["3.weight"] = state["3.weight"] + torch.tensor(1e-6)
    save_tensors(state, "changed.safetensors")
    arguments = ("verify", trained, "--backbone", f"{toy}:other", "--json", "--checkpoint")
    assert json.loads(piggyback(*arguments, "same.safetensors").out)["match"] is True
    ran = piggyback(*arguments, "changed.safetensors")
    assert ran.code == 1
    assert json.loads(ran.out)["differing"] == ["3.weight"]


def test_a_baked_state_dict_loads_into_the_plain_network(piggyback, trained, toy, network, model):
    Path("plain[").mkdir()
    to = Path("plain[") / "old].safetensors"  # a name is not markup
    ran = piggyback("bake", trained, *network, "--to", to)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"wrote {to}: ")
    plain = load_backbone(f"{toy}:other").module
    plain[-1] = torch.nn.Linear(24, 3)
    plain.load_state_dict(load_tensors(to))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain.eval()(x), model(x, task="colours"))
    with safe_open(to, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(COLOURS)


def test_a_task_with_a_form_is_evaluated_and_baked(piggyback, trained, colours, network):
    learned = load_file(trained)
    info = replace(learned.info, rule=replace(learned.info.rule, form="affine"))
    numbers = {name: torch.tensor([0.1, 0.01, 0.0, 0.9]) for name in learned.masks}
    save_file(replace(learned, info=info, coefficients=numbers), "affine.safetensors")
    ran = piggyback("evaluate", "affine.safetensors", "--data", colours, *network, "--json")
    assert json.loads(ran.out)["accuracy"] > 50
    ran = piggyback("bake", "affine.safetensors", *network, "--to", "baked.safetensors")
    assert ran.code == 0, ran.err
    baked = load_tensors("baked.safetensors")
    for name, mask in learned.masks.items():
        dropped = baked[name][~unpack_mask(mask)]
        assert dropped.numel()
        assert dropped.all(), "what is not kept is k0 W + k1"


def test_onnx_gives_the_live_models_answers_for_any_batch(piggyback, trained, network, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ran = piggyback("bake", trained, *network, "--to", "task.onnx")
    assert ran.code == 0, ran.err
    assert "largest difference from the live model" in ran.out
    session = onnxruntime.InferenceSession("task.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16)
        (found,) = session.run(["logits"], {"images": x.numpy()})
        assert torch.allclose(torch.from_numpy(found), model(x, task="colours"), atol=1e-4)
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["preprocessing"])["image_size"] == 16


def test_bake_refuses_other_names_and_names_the_extra(piggyback, trained, network, monkeypatch):
    before = trained.read_bytes()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    shutil.copy(trained, "another.safetensors")
    for name, told in (
        ("model.pt", "ending in .safetensors or .onnx"),
        (trained, "is the file of task"),
        ("another.safetensors", "is the file of task"),
        ("task.onnx", 'pip install ".[onnx]"'),
    ):
        piggyback("bake", trained, *network, "--to", name).refuses(told)
    assert trained.read_bytes() == before
