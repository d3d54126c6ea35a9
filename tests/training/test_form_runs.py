"""Training tasks whose mask rule has a form: stopped and resumed to the bit, and the same accuracy from the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piggyback.backbones.backbone import Backbone
from piggyback.masks.rule import MaskRule
from piggyback.model import MultiTaskModel
from piggyback.tasks.file import load_file, read_header
from piggyback.training import EpochRow, ImageData, Listener, Recipe, train
from piggyback.training.evaluate import measure

RULES = {
    "channel": MaskRule("ternary", form="channel"),
    "affine": MaskRule(form="affine"),
}


class Stopped(BaseException):
    """Stands for the end of the process."""


class StopAfter(Listener):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch == self.epoch:
            raise Stopped


@pytest.mark.parametrize("form", RULES)
def test_a_resumed_run_ends_in_the_same_bits_and_its_file_scores_the_same(
    form: str,
    backbone: Backbone,
    data: ImageData,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    options = recipe(rule=RULES[form], form_lr=2e-2, norm="trained", checkpoint_minutes=0.0)
    whole = train(backbone, data, "a", options, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(backbone, data, "a", options, tmp_path / "parts", listener=StopAfter(2))
    resumed = train(backbone, data, "a", options, tmp_path / "parts", resume=True)
    assert [row.val_loss for row in resumed.history] == [row.val_loss for row in whole.history]
    one, other = whole.task, resumed.task
    assert one is not None
    assert other is not None
    assert one.coefficients.keys() == one.masks.keys() == {"0.weight", "3.weight"}
    start = torch.tensor([0.0, 0.0, 0.0, 1.0]) if form == "affine" else torch.ones(12)
    assert (one.coefficients["0.weight"] - start).abs().max() > 0.05
    for name, mask in one.masks.items():
        assert torch.equal(mask.keep, other.masks[name].keep)
        assert torch.equal(one.coefficients[name], other.coefficients[name])

    path = tmp_path / "whole" / "a.safetensors"
    header = read_header(path)
    assert (header.version, header.info.rule) == (2, RULES[form])
    assert whole.bits_per_weight == pytest.approx(header.bits_per_weight)
    assert header.info.provenance["recipe"]["rule"]["form"] == form
    model = MultiTaskModel(backbone)
    model.load_task(path)
    model.set_task("a")
    found = measure(model.backbone, data.test, backbone.preprocessing, device=torch.device("cpu"))
    assert found.accuracy == whole.accuracy
    assert torch.equal(load_file(path).coefficients["3.weight"], one.coefficients["3.weight"])


def test_form_lr_is_the_coefficients_own_rate(
    backbone: Backbone, data: ImageData, recipe: Callable[..., Recipe]
) -> None:
    def moved(rate: float) -> float:
        options = recipe(rule=RULES["channel"], form_lr=rate, epochs=1)
        task = train(backbone, data, "a", options).task
        assert task is not None
        return float((task.coefficients["3.weight"] - 1).abs().max())

    assert moved(1e-6) < 1e-4 < moved(1e-3)
