"""The networks of the paper: what is masked of each, how large that is, and where their weights come from."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from piggyback.errors import BackboneError
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.network.select import select_weights
from piggyback.zoo.load import load_backbone
from piggyback.zoo.weights import read_state_dict
from piggyback.zoo.wide_resnet import WideBlock
from support.old_torch import save_old

NETWORKS = Path(__file__).resolve().parents[2] / "docs" / "NETWORKS.md"
PAIRS = {
    "vgg16": ("torchvision:vgg16.IMAGENET1K_V1", "timm:vgg16.tv_in1k"),
    "vgg16bn": ("torchvision:vgg16_bn.IMAGENET1K_V1", "timm:vgg16_bn.tv_in1k"),
    "resnet50": ("torchvision:resnet50.IMAGENET1K_V1", "timm:resnet50.tv_in1k"),
    "densenet121": ("torchvision:densenet121.IMAGENET1K_V1", "timm:densenet121.tv_in1k"),
    "wide_resnet28_4": ("wide_resnet28_4",),
}
"""By both zoos' names of the weights of 2017."""

COUNTS = {
    # tensors masked, weights masked, bytes in float32 without the classifier
    "vgg16": (15, 134_248_128, 537_042_176),
    "vgg16bn": (15, 134_248_128, 537_075_968),
    "resnet50": (53, 23_454_912, 94_032_128),
    "densenet121": (120, 6_870_208, 27_815_424),
    "wide_resnet28_4": (28, 5_839_280, 23_385_920),
}


def built(spec: str) -> Backbone:
    """The network without values, which costs no memory."""
    with torch.device("meta"):
        return load_backbone(spec, pretrained=False)


def body_bytes(backbone: Backbone) -> int:
    """float32 bytes of all parameters but the classifier's, which every method has for each task."""
    params = backbone.module.named_parameters()
    return 4 * sum(p.numel() for n, p in params if not n.startswith(f"{backbone.head}."))


@pytest.mark.parametrize(
    ("network", "spec"), [(name, spec) for name, specs in PAIRS.items() for spec in specs]
)
def test_what_is_masked_and_how_large_it_is(network: str, spec: str) -> None:
    backbone = built(spec)
    assert backbone.source == spec
    masked = select_weights(backbone.module, head=backbone.head)
    weights = sum(parameter.numel() for parameter in masked.values())
    assert (len(masked), weights, body_bytes(backbone)) == COUNTS[network]
    layers = {
        f"{name}.weight"
        for name, module in backbone.module.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name != backbone.head
    }
    assert set(masked) == layers


def test_the_page_of_networks_says_the_same() -> None:
    text = NETWORKS.read_text(encoding="utf-8")
    for network, specs in PAIRS.items():
        tensors, weights, nbytes = COUNTS[network]
        body, mask = nbytes / 1e6, weights / 8 / 1e6
        # One copy, one mask, one copy with five masks, six copies: for ImageNet and five tasks.
        sizes = f"{body:.1f}", f"{mask:.2f}", f"{body + 5 * mask:.1f}", f"{6 * body:.1f}"
        numbers = [f"{weights:,}", str(tensors), *sizes]
        names = " or ".join(f"`{spec}`" for spec in specs)
        assert f"| {names} | {' | '.join(numbers)} |" in text, network


# -- a backbone from another data set ----------------------------------------------------------


def test_a_places365_checkpoint_of_2017(tmp_path: Path) -> None:
    """Its layout: Python 2, before batch norm counted, DataParallel's prefix, 365 classes, other entries."""
    with torch.device("meta"):
        shapes = torchvision.models.resnet50(num_classes=365).state_dict()
    state = OrderedDict(
        (f"module.{name}", torch.full(tensor.shape, 0.5))
        for name, tensor in shapes.items()
        if not name.endswith("num_batches_tracked")
    )
    state["module.fc.weight"][364, 7] = 3
    path = tmp_path / "resnet50_places365.pth.tar"
    checkpoint = {"epoch": 90, "arch": "resnet50", "best_prec1": 54.7, "state_dict": state}
    save_old(checkpoint, path, cuda=True)
    backbone = load_backbone("torchvision:resnet50", checkpoint=path)
    assert backbone.module.fc.weight[364, 7] == 3
    assert backbone.module.fc.out_features == 365
    assert backbone.module.layer4[2].conv3.weight.eq(0.5).all()
    assert len(select_weights(backbone.module, head=backbone.head)) == 53
    del state["module.bn1.running_mean"]
    save_old(checkpoint, path)
    with pytest.raises(BackboneError, match=r"1 missing \(bn1.running_mean\)"):
        load_backbone("torchvision:resnet50", checkpoint=path)


def test_densenets_names_of_2017(tmp_path: Path) -> None:
    net = torchvision.models.DenseNet(4, (2, 1), 8, num_classes=3)
    old = OrderedDict()
    for name, tensor in net.state_dict().items():
        for kind in ("norm", "conv"):
            name = name.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    found = read_state_dict(tmp_path / "old.pth")
    assert list(found) == list(net.state_dict())


# -- the Visual Decathlon's -----------------------------------------------------------------------


def test_wide_resnet_halves_at_the_start_of_each_stage() -> None:
    backbone = load_backbone("wide_resnet28_4", pretrained=False)
    assert (backbone.source, backbone.head) == ("wide_resnet28_4", "fc")
    assert backbone.preprocessing == Preprocessing(64, crop_pct=64 / 72)
    net = backbone.module
    shapes = []
    for name in ("conv1", "layer1", "layer2", "layer3", "pool"):
        net.get_submodule(name).register_forward_hook(
            lambda module, taken, made: shapes.append(tuple(made.shape[1:]))
        )
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert shapes == [(16, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 1, 1)]
    assert sum(isinstance(module, WideBlock) for module in net.modules()) == 12


def test_a_block_adds_to_its_input() -> None:
    plain, wider = WideBlock(8, 8, 1), WideBlock(8, 12, 2)
    for block in (plain, wider):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(plain.eval()(x), x)
    kept = wider.eval().shortcut(wider.norm1(x).relu())
    assert torch.equal(wider(x), kept)
    assert wider(x).shape == (2, 12, 3, 3)


def test_wide_resnet_from_a_checkpoint(tmp_path: Path) -> None:
    backbone = load_backbone("wide_resnet28_4", pretrained=False)
    backbone.module.fc = nn.Linear(256, 47)
    torch.save({"state_dict": backbone.module.state_dict()}, tmp_path / "w.pth")
    again = load_backbone("wide_resnet28_4", checkpoint=tmp_path / "w.pth")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.module(images), backbone.module.eval()(images))
    with pytest.raises(BackboneError, match=r"no published weights .* checkpoint="):
        load_backbone("wide_resnet28_4")
    with pytest.raises(BackboneError, match="did you mean 'wide_resnet28_4'"):
        load_backbone("wide_resnet28_10")
