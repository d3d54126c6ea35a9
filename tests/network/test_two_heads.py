from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from piggyback.network.head import merge_heads
from piggyback.zoo.load import load_backbone


@pytest.mark.parametrize("model", ["efficientformerv2_s0", "swiftformer_xs"])
def test_two_classifiers_on_the_same_features_become_one(model: str) -> None:
    module = timm.create_model(model, num_classes=10).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = module(x)
        merge_heads(module)
        torch.testing.assert_close(module(x), expected)
    assert not any(name.startswith("head_dist") for name in module.state_dict())


def test_both_answers_follow_a_new_head_also_in_a_copy() -> None:
    backbone = load_backbone("timm:efficientformerv2_s0", pretrained=False)
    assert backbone.head == "head"
    x = torch.zeros(1, 3, 224, 224)
    twin = copy.deepcopy(backbone.module)
    twin.head = nn.Linear(twin.head.in_features, 3)  # type: ignore[union-attr, arg-type]
    assert twin(x).shape == (1, 3)
    assert backbone.module(x).shape == (1, 1000)


def test_other_models_stay_as_they_are() -> None:
    module = timm.create_model("deit_tiny_distilled_patch16_224")
    merge_heads(module)
    assert isinstance(module.head_dist, nn.Linear)
