"""Where a network's classifier is, and models with two of them."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from piggyback.errors import SelectionError
from piggyback.network.head import find_head, merge_heads
from piggyback.zoo.load import load_backbone


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "fc"),
        ("mobilenetv3_small_050", "classifier"),
        ("vit_tiny_patch16_224", "head"),
        ("convnext_atto", "head.fc"),
        ("regnetx_002", "head.fc"),
        ("dpn48b", "classifier"),  # a 1 x 1 convolution
        ("ghostnet_050", "classifier"),
    ],
)
def test_timm_models(name: str, expected: str) -> None:
    model = timm.create_model(name)
    assert find_head(model) == expected
    assert isinstance(model.get_submodule(expected), (nn.Linear, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "fc"),
        ("alexnet", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("densenet121", "classifier"),
        ("mobilenet_v3_small", "classifier.3"),
        ("shufflenet_v2_x0_5", "fc"),
        ("swin_t", "head"),
        ("vit_b_32", "heads.head"),
        ("maxvit_t", "classifier.5"),
    ],
)
def test_torchvision_models(name: str, expected: str) -> None:
    assert find_head(torchvision.models.get_model(name)) == expected


def test_a_plain_network_ends_with_its_classifier() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3)), nn.Softmax(1))
    assert find_head(net) == "2.0"
    assert find_head(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1))) == "1"


def test_a_usual_name_is_trusted_before_the_order() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)
            self.body = nn.Linear(8, 8)

    assert find_head(Net()) == "fc"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 8, 3)), r"head= \(candidates: 0\)"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), "cannot tell"),
        (nn.Sequential(nn.ReLU()), "cannot tell"),
        (nn.Linear(4, 2), "a single Linear"),
    ],
)
def test_what_cannot_be_told_is_an_error(net: nn.Module, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        find_head(net)


def test_two_classifiers_that_are_averaged_are_an_error() -> None:
    with pytest.raises(SelectionError, match="'head_dist'"):
        find_head(timm.create_model("deit_tiny_distilled_patch16_224"))
    with pytest.raises(SelectionError, match="2 classifiers"):
        find_head(timm.create_model("crossvit_tiny_240"))


def test_a_removed_classifier_is_an_error() -> None:
    with pytest.raises(SelectionError, match="num_classes=0"):
        find_head(timm.create_model("resnet18", num_classes=0))


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
