"""Compiled networks, and accelerators where there are some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piggyback.network.backbone import Backbone
from piggyback.train import EpochRow, ImageData, Listener, Recipe, train


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(
    backbone: Backbone, data: ImageData, recipe: Callable[..., Recipe]
) -> None:
    plain = train(backbone, data, "a", recipe("head", epochs=2))
    fast = train(backbone, data, "a", recipe("head", epochs=2, compile=True))
    assert fast.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, abs=0.2)
    assert fast.accuracy == pytest.approx(plain.accuracy, abs=15)


class Stop(Listener):
    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["masks", "finetune"])
def test_on_a_gpu_a_resumed_run_ends_as_an_undisturbed_one(
    method: str,
    backbone: Backbone,
    data: ImageData,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    options = recipe(method, epochs=4, amp="bf16", channels_last="yes")
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    whole = train(backbone, data, "a", options)
    assert whole.provenance["machine"]["device"] == "cuda"
    with pytest.raises(KeyboardInterrupt):
        train(backbone, data, "a", options, tmp_path, listener=Stop())
    resumed = train(backbone, data, "a", options, tmp_path, resume=True)
    assert [row.train_loss for row in resumed.history] == [row.train_loss for row in whole.history]
    assert resumed.accuracy == whole.accuracy
    for name, tensor in backbone.module.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])
