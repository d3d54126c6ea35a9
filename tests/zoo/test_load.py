from __future__ import annotations

import time
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from piggyback import zoo
from piggyback.errors import BackboneError, SelectionError
from piggyback.images.preprocessing import Preprocessing
from piggyback.zoo.load import load_backbone
from support.nets import same_weights

# -- torchvision -----------------------------------------------------------------------------------


def test_torchvision_without_weights() -> None:
    backbone = load_backbone("torchvision:shufflenet_v2_x0_5", pretrained=False)
    assert (backbone.source, backbone.head) == ("torchvision:shufflenet_v2_x0_5", "fc")
    assert backbone.preprocessing == Preprocessing(224, crop_pct=224 / 256)
    newer = load_backbone("torchvision:resnet18.IMAGENET1K_V1", pretrained=False)
    assert newer.source == "torchvision:resnet18.IMAGENET1K_V1"


def test_cached_torchvision_weights_load_without_a_network(offline: Path) -> None:
    model = torchvision.models.shufflenet_v2_x0_5()
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    backbone = load_backbone("torchvision:shufflenet_v2_x0_5")
    assert same_weights(backbone.module, model)
    assert backbone.source == "torchvision:shufflenet_v2_x0_5.IMAGENET1K_V1"
    path.write_bytes(b"junk")
    with pytest.raises(BackboneError, match="delete the cached file"):
        load_backbone("torchvision:shufflenet_v2_x0_5")


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_classifiers_are_removed(name: str, side: int) -> None:
    module = load_backbone(f"torchvision:{name}", pretrained=False).module.train()
    assert module(torch.zeros(2, 3, side, side)).shape == (2, 1000)
    assert not any("aux" in parameter.lower() for parameter, _ in module.named_parameters())


# -- a file --------------------------------------------------------------------------------------

FACTORIES = """
from torch import nn
from piggyback.images.preprocessing import Preprocessing

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def sized():
    return plain(), Preprocessing(32)

def wrong():
    return 3

value = 4
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "my nets.py"
    path.write_text(FACTORIES)
    return path


def test_a_factory_in_a_file(factories: Path) -> None:
    plain, sized = (load_backbone(f"{factories}:{name}") for name in ("plain", "sized"))
    assert (plain.source, plain.head) == (f"{factories}:plain", "3")
    assert plain.preprocessing is None
    assert sized.preprocessing == Preprocessing(32)
    assert not plain.module.training
    resized = load_backbone(f"{factories}:plain", image_size=16)
    assert resized.preprocessing == Preprocessing(16)


def test_two_files_of_one_name_do_not_mix(factories: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / factories.name
    twin.write_text(FACTORIES.replace("nn.Linear(4, 2)", "nn.Linear(4, 7)"))
    for path, classes in ((factories, 2), (twin, 7), (factories, 2)):
        module = load_backbone(f"{path}:plain").module
        assert module(torch.zeros(1, 3, 8, 8)).shape == (1, classes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plane", "has no function 'plane'; did you mean 'plain'"),
        ("value", "has no function 'value'"),
        ("wrong", r"wrong\(\) returned int: expected an nn.Module"),
    ],
)
def test_what_is_no_factory_is_an_error(factories: Path, name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        load_backbone(f"{factories}:{name}")


def test_only_file_specs_run_code() -> None:
    assert zoo.runs_code("a/b.py:f")
    assert zoo.runs_code("C:\\nets\\b.py:f")
    assert not any(
        zoo.runs_code(s) for s in ("timm:resnet18", "efficientnet_lite0", "transformers:a.py/b")
    )


# -- checkpoint= -----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(BackboneError, match=r"does not fit ResNet.* missing \(layer1.2"):
        load_backbone("timm:resnet34", checkpoint=tmp_path / "a.pth")


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        "timm:resnet18",
        "timm:resnet18.tv_in1k",
        "timm:hf-hub:timm/resnet18.a1_in1k",
        "torchvision:resnet18",
        "torchvision:resnet50.IMAGENET1K_V1",
        "transformers:microsoft/resnet-18",
    ],
)
def test_offline_without_cached_weights_fails_in_seconds_and_says_what_to_do(
    spec: str, offline: Path
) -> None:
    if spec.startswith("transformers"):
        pytest.importorskip("transformers")
    begin = time.monotonic()
    with pytest.raises(BackboneError) as caught:
        load_backbone(spec)
    assert time.monotonic() - begin < 30
    message = str(caught.value)
    assert spec in message
    assert "\n" not in message
    for way in ("cannot be reached", "connect once", "efficientnet_lite0"):
        assert way in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnt18", "no model 'resnt18'; did you mean 'resnet18'"),
        ("timm:resnet18.a9_in1k", "no weights 'a9_in1k' for 'resnet18': expected one of a1_in1k"),
        ("timm:vit_tiny_patch16_18", "did you mean 'vit_tiny_patch16_"),
        ("torchvision:resnet19", "did you mean 'resnet1"),
        ("torchvision:fcn_resnet50", "no classification model 'fcn_resnet50'"),
        ("torchvision:vgg16.V3", "expected one of IMAGENET1K_V1"),
        ("resnet50", "expected timm:NAME, .* did you mean 'timm:resnet50'"),
        ("efficientnet_lite3", "did you mean 'efficientnet_lite"),
        ("tim:resnet50", "did you mean 'timm:resnet50'"),
        ("timm:", "expected timm:NAME"),
        ("", "expected timm:NAME"),
        ("nowhere/nets.py:build", "no file 'nowhere/nets.py'"),
    ],
)
def test_an_unknown_name_is_an_error(spec: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(spec)
    assert "\n" not in str(caught.value)


def test_a_model_that_never_had_weights(offline: Path) -> None:
    without = next(n for n in timm.list_models("resnet*") if not timm.list_pretrained(f"{n}*"))
    with pytest.raises(BackboneError, match="timm has no pretrained weights for it"):
        load_backbone(f"timm:{without}")


@pytest.mark.parametrize(
    ("spec", "image_size"), [("timm:vit_tiny_patch16_224", 65), ("torchvision:vit_b_32", 64)]
)
def test_an_image_size_the_network_cannot_take_is_an_error(spec: str, image_size: int) -> None:
    with pytest.raises(BackboneError, match=f"does not take images of {image_size} x {image_size}"):
        load_backbone(spec, pretrained=False, image_size=image_size)


def test_a_head_that_cannot_be_told_can_be_named() -> None:
    spec = "timm:crossvit_tiny_240"
    with pytest.raises(SelectionError, match="head="):
        load_backbone(spec, pretrained=False)
    assert load_backbone(spec, pretrained=False, head="head").head == "head"


# -- the default -----------------------------------------------------------------------------------


def test_the_default_is_the_packaged_network_or_the_same_one_downloaded(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "find_spec", lambda name: None)
    downloaded = zoo.default_backbone()
    with pytest.raises(BackboneError, match=r"connect once .*\.\[quickstart\]"):
        load_backbone(downloaded)
    plain = load_backbone(downloaded, pretrained=False)
    monkeypatch.setattr(zoo, "find_spec", lambda name: name)
    packaged = load_backbone(zoo.default_backbone(), pretrained=False)
    assert plain.module.state_dict().keys() == packaged.module.state_dict().keys()
    assert plain.preprocessing == packaged.preprocessing
