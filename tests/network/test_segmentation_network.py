"""Segmentation networks: pretrained features under a head that scores every pixel."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from piggyback import MultiTaskModel, load_backbone
from piggyback.errors import BackboneError, BackboneMismatchError, InputError, TaskFileError
from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.rule import ScoreInit
from piggyback.model.heads import new_head
from piggyback.network.backbone import Backbone
from piggyback.network.head import find_head
from piggyback.network.segmentation import SegmentationHead, SegmentationNetwork
from piggyback.network.select import select_weights
from piggyback.taskfile.file import load, save
from piggyback.zoo.segmentation import segmentation_of


def small(name: str = "test_efficientnet") -> Backbone:
    """A network of timm with random weights, statistics included, so that copies can be told."""
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return Backbone(module, f"timm:{name}", Preprocessing(64), "classifier")


def images(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_the_classification_network():
    backbone = small()
    found = segmentation_of(backbone).module.features(images())
    expected = backbone.module.forward_intermediates(images(), intermediates_only=True)
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in expected]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_the_head_adds_scores_of_four_scales_from_coarse_to_fine():
    module = segmentation_of(small()).module
    module.head = new_head(module.head, 5)
    with torch.no_grad():
        for parameter in module.head.parameters():
            parameter.normal_(0, 0.01)
        maps = module.features(images())[-4:]
        scores = [layer(x) for layer, x in zip(module.head.score, maps, strict=True)]
        total = scores[3]
        for finer in (scores[2], scores[1], scores[0]):
            total = finer + F.interpolate(total, scale_factor=2, mode="bilinear")
        expected = F.interpolate(total, scale_factor=4, mode="bilinear")
        torch.testing.assert_close(module(images()), expected)
        assert module(images()).shape == (2, 5, 64, 64)


def test_odd_sizes_come_out_as_they_went_in():
    module = segmentation_of(small()).module
    with torch.no_grad():
        assert module(torch.zeros(1, 3, 50, 75)).shape == (1, 1, 50, 75)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_vit"])
def test_networks_with_other_names_inside_features_only(name):
    side = 160 if name == "test_vit" else 32
    module = timm.create_model(name, pretrained=False)
    made = segmentation_of(Backbone(module, f"timm:{name}", Preprocessing(side), ""))
    with torch.no_grad():
        assert made.module(torch.zeros(1, 3, side, side)).shape == (1, 1, side, side)


def test_a_network_that_keeps_channels_last():
    full = timm.create_model("test_mambaout", pretrained=False)
    made = segmentation_of(Backbone(full, "timm:test_mambaout", Preprocessing(64), ""))
    assert made.module.features(images())[-1].shape == (2, 64, 2, 2)
    assert made.module(images()).shape == (2, 1, 64, 64)


class Vgg(nn.Module):
    """A VGG as torchvision builds it, with few channels: 8 after each of five poolings."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (3, 8, 8, 8, 8):
            layers += [nn.Conv2d(inputs, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(),
            nn.Dropout(), nn.Linear(16, 10),
        )  # fmt: skip


def test_vgg_s_hidden_layers_are_the_same_function_as_convolutions():
    torch.manual_seed(0)
    vgg = Vgg().eval()
    made = segmentation_of(Backbone(vgg, "torchvision:vgg16", Preprocessing(224), "")).module
    x = images(224)
    with torch.no_grad():
        hidden = vgg.classifier[:5](vgg.features(x).flatten(1))
        maps = made.features(x)
    # Where the 7 x 7 kernel lies on the whole map, its centre, it is the linear layer.
    torch.testing.assert_close(maps[-1][:, :, 3, 3], hidden)
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 28, 28), (8, 14, 14), (16, 7, 7)]
    assert made.head.channels == (8, 8, 16)


def test_every_vgg16_weight_but_the_classifier_is_masked():
    with torch.device("meta"):
        module = timm.create_model("vgg16", pretrained=False)
    made = segmentation_of(Backbone(module, "timm:vgg16", Preprocessing(), "")).module
    weights = select_weights(made, head="head")
    assert len(weights) == 15
    assert sum(w.numel() for w in weights.values()) == 134_248_128
    assert tuple(weights["features.fc6.weight"].shape) == (4096, 512, 7, 7)


def test_lite0_by_name_has_the_packaged_weights():
    backbone = load_backbone("segmentation:efficientnet_lite0", image_size=64)
    whole = load_backbone("efficientnet_lite0").module.state_dict()
    own = backbone.module.features.state_dict()
    assert backbone.source == "segmentation:efficientnet_lite0"
    assert (backbone.head, backbone.preprocessing.image_size) == ("head", 64)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in own.items())
    assert set(whole) - set(own) == {
        name for name in whole if name.startswith(("conv_head", "bn2", "classifier"))
    }


def test_the_head_is_found_and_the_rest_is_masked():
    module = segmentation_of(small()).module
    assert find_head(module) == "head"
    names = MultiTaskModel(module).masked_names
    convolutions = [n for n, m in module.features.named_modules() if isinstance(m, nn.Conv2d)]
    assert names == tuple(f"features.{name}.weight" for name in convolutions)


def learned(model: MultiTaskModel, name: str = "streets") -> None:
    """A task with masks that drop some weights and a head that says something."""
    classes = ["road", "sky", "tree"]
    model.start_task(name, classes, kind="segmentation", preprocessing=Preprocessing(64))
    optimizer = model.optimizer(torch.optim.SGD, lr=1.0, init=ScoreInit("uniform"))
    optimizer.initialize()
    model.backbone(images()).square().mean().backward()
    with torch.no_grad():
        for parameter in model.backbone.head.parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    model.finish_task()


def test_a_task_goes_through_its_file_to_the_same_logits():
    model = MultiTaskModel(segmentation_of(small()))
    learned(model)
    task = model.get_task("streets")
    assert (task.info.kind, task.info.head_kind) == ("segmentation", "segmentation")
    assert task.info.backbone.source == "segmentation:timm:test_efficientnet"
    data = save(task)
    assert b'"version":"2"' in data  # a head kind that version 1 did not have
    other = MultiTaskModel(segmentation_of(small()))
    other.add_task(load(data))
    with torch.no_grad():
        expected = model(images(), task="streets")
        assert expected.shape == (2, 3, 64, 64)
        assert expected.std() > 0
        assert torch.equal(other(images(), task="streets"), expected)
        assert torch.equal(other.bake("streets")(images()), expected)


def test_a_file_is_refused_by_other_weights_and_by_the_classification_network():
    model = MultiTaskModel(segmentation_of(small()))
    learned(model)
    task = model.get_task("streets")
    changed = small()
    with torch.no_grad():
        changed.module.conv_stem.weight[0, 0, 0, 0] += 1
    with pytest.raises(BackboneMismatchError, match="learned on other weights"):
        MultiTaskModel(segmentation_of(changed)).add_task(task)
    with pytest.raises(BackboneMismatchError, match="segmentation:timm:test_efficientnet"):
        MultiTaskModel(small()).add_task(task)


def test_a_damaged_head_is_refused():
    model = MultiTaskModel(segmentation_of(small()))
    learned(model)
    task = model.get_task("streets")
    model.delete_task("streets")
    for name in ("score.3.bias", "score.0.weight"):
        broken = {key: tensor for key, tensor in task.head.items() if key != name}
        with pytest.raises(TaskFileError, match="head tensors"):
            model.add_task(type(task)(task.name, task.masks, broken, task.norm, task.info))


def test_a_head_of_another_number_of_classes_is_refused():
    model = MultiTaskModel(segmentation_of(small()))
    head = SegmentationHead(model.backbone.head.channels, 4)
    with pytest.raises(InputError, match="4 outputs for 3 classes"):
        model.start_task("streets", 3, kind="segmentation", head=head)


def test_networks_without_such_features_are_refused():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for source in ("", "torchvision:resnet18"):
        with pytest.raises(BackboneError, match="expected segmentation:NAME of a timm network"):
            segmentation_of(Backbone(module, source, None, "2"))
    with pytest.raises(BackboneError, match=r"no model 'resnet1'.*did you mean"):
        load_backbone("segmentation:resnet1", pretrained=False)
    with pytest.raises(BackboneError, match="of its features are not in the classification"):
        segmentation_of(Backbone(module, "timm:test_efficientnet", None, "2"))


def test_a_network_of_one_s_own_features():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.first(x)
            return [x, self.second(x)]

    network = SegmentationNetwork(Features(), (4, 6))
    assert network(torch.zeros(1, 3, 10, 10)).shape == (1, 1, 10, 10)
    assert MultiTaskModel(network).masked_names == (
        "features.first.weight",
        "features.second.weight",
    )
