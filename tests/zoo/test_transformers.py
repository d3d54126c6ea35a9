from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from piggyback.errors import BackboneError
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.select import select_weights
from piggyback.zoo.load import load_backbone

transformers = pytest.importorskip("transformers")
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "image_size": 32}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(**SMALL, intermediate_size=32, patch_size=8, num_labels=5)
        return transformers.ViTForImageClassification(config)
    if kind == "convnext":
        config = transformers.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_labels=5, image_size=32
        )
        return transformers.ConvNextForImageClassification(config)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


def saved(model: Any, folder: Path, processor: Any = None) -> str:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.mark.parametrize(
    ("kind", "head"),
    [("vit", "classifier"), ("convnext", "classifier"), ("resnet", "classifier.1")],
)
def test_a_local_folder(tmp_path: Path, offline: Path, kind: str, head: str) -> None:
    model = build(kind).eval()
    backbone = load_backbone(saved(model, tmp_path))
    assert backbone.head == head
    assert not backbone.module.training
    assert list(backbone.module.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), model(x).logits)
        assert torch.equal(copy.deepcopy(backbone.module)(x), model(x).logits)
    selected = select_weights(backbone.module, head=head)
    assert selected
    assert not any(name.startswith(head) for name in selected)


def test_random_weights(tmp_path: Path, offline: Path) -> None:
    spec = saved(build("resnet"), tmp_path)
    trained, random = (load_backbone(spec, pretrained=p).module for p in (True, False))
    assert random(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    name = "resnet.embedder.embedder.convolution.weight"
    assert not torch.equal(trained.state_dict()[name], random.state_dict()[name])


@pytest.mark.parametrize(
    ("kind", "processor", "expected"),
    [
        (
            "vit",
            lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
            Preprocessing(32, (0.5,) * 3, (0.5,) * 3),
        ),
        (
            "convnext",
            lambda: transformers.ConvNextImageProcessor(
                size={"shortest_edge": 32}, crop_pct=0.875, resample=3, image_mean=[0.1, 0.2, 0.3]
            ),
            Preprocessing(32, (0.1, 0.2, 0.3), (0.5,) * 3, "bicubic", 0.875),
        ),
        (
            "resnet",
            lambda: transformers.MobileNetV2ImageProcessor(
                size={"shortest_edge": 40},
                crop_size={"height": 32, "width": 32},
                image_std=[0.2, 0.3, 0.4],
            ),
            Preprocessing(32, (0.5,) * 3, (0.2, 0.3, 0.4), "bilinear", 0.8),
        ),
        (
            "vit",
            lambda: transformers.ViTImageProcessor(
                size={"height": 32, "width": 32}, do_normalize=False, resample=0
            ),
            Preprocessing(32, (0.0,) * 3, (1.0,) * 3, "nearest"),
        ),
        ("vit", lambda: None, Preprocessing(32)),
        ("resnet", lambda: None, Preprocessing(224)),
    ],
)
def test_the_image_processors_numbers(
    tmp_path: Path, offline: Path, kind: str, processor: Any, expected: Preprocessing
) -> None:
    backbone = load_backbone(saved(build(kind), tmp_path, processor()))
    assert backbone.preprocessing == expected


def test_half_precision_files_are_loaded_in_float32(tmp_path: Path, offline: Path) -> None:
    spec = saved(build("resnet").half(), tmp_path)
    assert {p.dtype for p in load_backbone(spec).module.parameters()} == {torch.float32}


def test_a_missing_classifier_is_fine_and_a_missing_layer_is_not(
    tmp_path: Path, offline: Path
) -> None:
    model = build("vit")
    saved(model, tmp_path)
    bare = {n: t for n, t in model.state_dict().items() if not n.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=bare)
    backbone = load_backbone(f"transformers:{tmp_path}")
    assert torch.equal(
        backbone.module.state_dict()["vit.layernorm.weight"], bare["vit.layernorm.weight"]
    )
    del bare["vit.layernorm.weight"]
    model.save_pretrained(tmp_path, state_dict=bare)
    with pytest.raises(BackboneError, match=r"lack 1 tensors \(vit.layernorm.weight\)"):
        load_backbone(f"transformers:{tmp_path}")


def test_a_text_model_without_its_tokenizer_is_refused(tmp_path: Path, offline: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(BackboneError, match=r"'bert'.*no tokenizer"):
        load_backbone(saved(transformers.BertModel(config), tmp_path))


def test_a_folder_without_a_model_is_an_error(tmp_path: Path, offline: Path) -> None:
    with pytest.raises(BackboneError, match=str(tmp_path)) as caught:
        load_backbone(f"transformers:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_an_unreachable_configuration_is_an_error(offline: Path) -> None:
    with pytest.raises(BackboneError, match="no configuration in the cache"):
        load_backbone("transformers:microsoft/resnet-18", pretrained=False)
