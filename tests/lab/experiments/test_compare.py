"""The comparison's proof finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from piggyback.lab.experiments.compare import compare, prove
from piggyback.lab.experiments.manifest import BackboneChoice
from piggyback.lab.experiments.sources import Toy
from piggyback.network.backbone import Backbone
from piggyback.taskfile.file import load_file
from piggyback.train import ImageData, Recipe, train

RECIPE = Recipe(
    epochs=2,
    mask_lr=2e-3,
    head_lr=2e-2,
    batch_size=16,
    amp="no",
    channels_last="no",
)


@pytest.fixture
def backbone() -> Backbone:
    return Toy().backbone(BackboneChoice(spec=""), None)


@pytest.fixture
def data() -> dict[str, ImageData]:
    return {name: Toy().data(name) for name in ("signs", "letters")}


def test_one_row_per_run_and_files_of_the_best_seed(backbone, data, tmp_path):
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    told: list[str] = []
    compared = compare(
        backbone,
        data,
        ["head", "masks"],
        RECIPE,
        tmp_path,
        seeds=[3, 4],
        listener=told.append,
    )
    runs = [(row.seed, row.task, row.method) for row in compared.rows]
    assert runs == list(product((3, 4), ("signs", "letters"), ("head", "masks")))
    assert told[:2] == ["signs head seed 3", "signs masks seed 3"]
    assert load_file(tmp_path / "runs/letters/head-seed4/letters.safetensors").name == "letters"
    assert compared.proof is not None
    assert compared.proof.identical
    assert compared.proof.forgotten == ()
    assert len(compared.proof.tasks) == 8
    for name, file in compared.files.items():
        kept = load_file(file).info.provenance
        rivals = [r for r in compared.rows if (r.task, r.method) == (name, "masks")]
        assert kept["recipe"]["method"] == "masks"
        assert kept["val_accuracy"] == pytest.approx(max(r.val_accuracy for r in rivals), abs=1e-3)
    after = backbone.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_proof_tells_a_wrong_score_and_a_changed_backbone(backbone, data):
    result = train(backbone, data["signs"], "signs", RECIPE)
    good = prove(backbone, [result], data, result.task.info.backbone.fingerprint)
    assert good.identical
    assert good.forgotten == ()
    wrong = replace(result, accuracy=result.accuracy + 1)
    bad = prove(backbone, [wrong], data, "0" * 64)
    assert not bad.identical
    assert bad.forgotten == ("signs-masks-0",)


def test_a_finished_run_is_not_repeated(backbone, data, tmp_path):
    only = {"letters": data["letters"]}
    first = compare(backbone, only, ["finetune"], RECIPE, tmp_path)
    again = compare(backbone, only, ["finetune"], RECIPE, tmp_path, resume=True)
    assert again.rows == first.rows  # the seconds too
    assert first.proof is None
    assert first.files == {}
