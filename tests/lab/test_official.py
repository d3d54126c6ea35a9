"""The authors' packs: read, refused, written, in the layouts of torch 0.2 and of today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.official import SPECS
from piggyback.lab.official.network import architecture_of, shared_weights
from piggyback.lab.official.packs import export_official, import_official, save_official
from piggyback.masks.bits import unpack_mask
from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.network.select import select_weights
from piggyback.taskfile.file import load, save
from piggyback.taskfile.task import Task
from support.official_packs import FORMATS, HEADS, authors_shared, made_pack, small
from support.old_torch import save_old

# -- which parameter an index means --------------------------------------------------------------

VGG16 = [1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29, 33, 36]
RESNET50 = {
    1: "conv1",
    7: "layer1.0.conv1",
    9: "layer1.0.conv2",
    11: "layer1.0.conv3",
    15: "layer1.0.downsample.0",
}
"""The examples in docs/NETWORKS.md."""


@pytest.mark.parametrize("arch", SPECS)
def test_indices_of_the_real_networks(arch):
    with torch.device("meta"):
        net = torchvision.models.get_model(SPECS[arch].split(":")[1].split(".")[0])
    found = shared_weights(arch, net)
    names = {id(module): name for name, module in net.named_modules()}
    assert found == {
        index: f"{names[id(layer)]}.weight"
        for index, layer in enumerate(authors_shared(arch, net).modules())
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    assert set(found.values()) == set(select_weights(net, head=HEADS.get(arch, "classifier")))
    if arch == "vgg16":
        assert list(found) == VGG16
    if arch == "resnet50":
        assert dict(list(found.items())[:5]) == {i: f"{n}.weight" for i, n in RESNET50.items()}


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", SPECS)
@pytest.mark.parametrize("ternary", [False, True])
def test_a_task_computes_what_the_authors_network_does(arch, ternary, tmp_path):
    backbone = small(arch)
    pack = made_pack(arch, backbone.module, ternary=ternary)
    save_old(pack, tmp_path / "packed.pt", cuda=True)
    images = torch.randn(2, 3, 32, 32)
    task = import_official(tmp_path / "packed.pt", "flowers", arch, backbone)
    model = MultiTaskModel(backbone).eval()
    model.add_task(task)
    found = model(images, task="flowers")
    net = small(arch).module
    net.load_state_dict(model.release().state_dict())
    for index, layer in enumerate(authors_shared(arch, net).modules()):
        mask = pack["dataset2masks"]["flowers"].get(index)
        if mask is not None:
            layer.weight.data[mask == 0] = 0
            layer.weight.data[mask == 255] *= -1
    parent, _, name = HEADS.get(arch, "classifier").rpartition(".")
    setattr(net.get_submodule(parent), name, pack["dataset2classifiers"]["flowers"])
    assert torch.equal(found, net.eval()(images))
    assert task.info.rule == MaskRule("ternary" if ternary else "binary")


@pytest.mark.parametrize("form", FORMATS)
def test_all_formats_of_torch_give_the_same_task(form, tmp_path):
    backbone = small("densenet121")
    pack = made_pack("densenet121", backbone.module, ternary=True)
    FORMATS[form](pack, tmp_path / "packed.pt")
    task = import_official(tmp_path / "packed.pt", "flowers", "densenet121", backbone)
    assert list(task.masks) == list(select_weights(backbone.module, head="classifier"))
    for index, name in shared_weights("densenet121", backbone.module).items():
        expected = pack["dataset2masks"]["flowers"][index].view(torch.int8)
        assert torch.equal(unpack_mask(task.masks[name]), expected), name
    classifier = pack["dataset2classifiers"]["flowers"]
    assert torch.equal(task.head["weight"], classifier.weight)
    assert torch.equal(task.head["bias"], classifier.bias)
    assert task.info.classes == ("0", "1", "2", "3", "4")
    assert task.info.preprocessing == Preprocessing(224, crop_pct=0.875)
    assert task.info.provenance == {
        "official": {"pack": "packed.pt", "arch": "densenet121", "dataset": "flowers"}
    }
    cropped = import_official(tmp_path / "packed.pt", "cubs_cropped", "densenet121", backbone)
    assert cropped.info.preprocessing == Preprocessing(224, crop_pct=1.0)
    assert len(cropped.info.classes) == 3


# -- and back --------------------------------------------------------------------------------------


def test_round_trip_keeps_every_bit(tmp_path):
    backbone = small("vgg16bn")
    pack = made_pack("vgg16bn", backbone.module, ternary=True)
    save_old(pack, tmp_path / "packed.pt")
    names = ("flowers", "cubs_cropped")
    tasks = [import_official(tmp_path / "packed.pt", n, "vgg16bn", backbone) for n in names]
    stored = [load(save(task)) for task in tasks]
    save_official(export_official(stored, "vgg16bn", backbone.module), tmp_path / "again.pt")
    again = [import_official(tmp_path / "again.pt", n, "vgg16bn", backbone) for n in names]
    for before, after in zip(tasks, again, strict=True):
        assert {n: m.keep.tolist() for n, m in before.masks.items()} == {
            n: m.keep.tolist() for n, m in after.masks.items()
        }
        assert all(
            torch.equal(before.masks[n].negative, m.negative) for n, m in after.masks.items()
        )
        assert all(torch.equal(before.head[n], t) for n, t in after.head.items())
        assert before.info.rule == after.info.rule
    # What torch itself makes of the file is what the authors' script had saved.
    opened = torch.load(tmp_path / "again.pt", weights_only=False)
    for name in names:
        found, expected = (x["dataset2masks"][name] for x in (opened, pack))
        assert list(found) == list(expected)
        assert all(torch.equal(found[i], expected[i]) for i in expected)
        layer = opened["dataset2classifiers"][name]
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, pack["dataset2classifiers"][name].weight)


def a_task(backbone: Backbone, tmp_path: Path) -> Task:
    save_old(made_pack("densenet121", backbone.module), tmp_path / "packed.pt")
    return import_official(tmp_path / "packed.pt", "flowers", "densenet121", backbone)


def test_what_a_pack_cannot_hold_is_refused(tmp_path):
    backbone = small("densenet121")
    task = a_task(backbone, tmp_path)
    fewer = dict(list(task.masks.items())[1:])
    info = task.info
    custom = type(info)(info.kind, info.classes, info.rule, "custom", backbone=info.backbone)
    cases = {
        "normalisation of its own": Task("a", task.masks, task.head, {"x": torch.ones(1)}, info),
        "head of kind 'custom'": Task("a", task.masks, task.head, info=custom),
        "1 weights differ, the first 'features.conv0": Task("a", fewer, task.head, info=info),
        "has coefficients": Task(
            "a", task.masks, task.head, info=info, coefficients={"x": torch.ones(1)}
        ),
    }
    for message, other in cases.items():
        with pytest.raises(InputError, match=message):
            export_official([other], "densenet121", backbone.module)
    with pytest.raises(InputError, match=r"\['flowers'\]: expected each name once"):
        export_official([task, task], "densenet121", backbone.module)
    with pytest.raises(InputError, match="masks 8 weights: expected all those of torchvision's"):
        architecture_of(task)


# -- what does not fit -----------------------------------------------------------------------------


def masks(pack: Any) -> dict[int, Any]:
    return pack["dataset2masks"]["flowers"]


def classifier(layer: nn.Module) -> Callable[[Any], None]:
    return lambda pack: pack["dataset2classifiers"].update(flowers=layer)


def renamed(pack: Any) -> None:
    for part in pack.values():
        part["two\nlines"] = part.pop("flowers")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda p: masks(p).pop(1), BackboneMismatchError, r"1 modules have no mask \(\[1\]\)"),
        (
            lambda p: masks(p).update({2: torch.ones(3).byte()}),
            BackboneMismatchError,
            r"1 masks are for modules without a weight .*\[2\]",
        ),
        (
            lambda p: masks(p).update({1: masks(p)[1].flatten(2)}),
            BackboneMismatchError,
            r"module 1 has shape \(8, 3, 49\): expected \(8, 3, 7, 7\)",
        ),
        (lambda p: masks(p)[1].fill_(7), TaskFileError, r"module 1 \(features.conv0.weight\).* 7"),
        (lambda p: masks(p).update({1: masks(p)[1].float()}), TaskFileError, "torch.float32"),
        (lambda p: masks(p).update({1: "all"}), TaskFileError, "'flowers': expected a tensor"),
        (renamed, TaskFileError, "no data set 'flowers' in this pack: .*cubs_cropped$"),
        (
            lambda p: p.update(masks=p.pop("dataset2masks")),
            TaskFileError,
            "expected one with 'dataset2m",
        ),
        (classifier(nn.Conv2d(1, 1, 1)), TaskFileError, "classifier is a torch.nn.*Conv2d"),
        (
            classifier(nn.Linear(3, 5)),
            BackboneMismatchError,
            r"'weight': \(5, 3\).*expected a weight \(classes, 12\)",
        ),
        (classifier(nn.Linear(12, 5).double()), TaskFileError, "numbers of torch.float64"),
    ],
)
def test_a_pack_of_another_layout(change, kind, message, tmp_path):
    backbone = small("densenet121")
    pack = made_pack("densenet121", backbone.module)
    change(pack)
    save_official(pack, tmp_path / "packed.pt")
    with pytest.raises(kind, match=message) as caught:
        import_official(tmp_path / "packed.pt", "flowers", "densenet121", backbone)
    assert str(caught.value).startswith(str(tmp_path / "packed.pt"))
    assert "\n" not in str(caught.value)


def test_wrong_names(tmp_path):
    backbone = small("vgg16")
    save_old(made_pack("vgg16", backbone.module), tmp_path / "packed.pt")
    with pytest.raises(TaskFileError, match="expected one of flowers, cubs_cropped; did you mean"):
        import_official(tmp_path / "packed.pt", "flower", "vgg16", backbone)
    with pytest.raises(InputError, match=r"'vgg61': expected one of vgg16, .*did you mean 'vgg16'"):
        import_official(tmp_path / "packed.pt", "flowers", "vgg61", backbone)
    with pytest.raises(
        BackboneMismatchError, match=r"models.vgg.VGG: expected torchvision's ResNet"
    ):
        import_official(tmp_path / "packed.pt", "flowers", "resnet50", backbone)
    with pytest.raises(BackboneMismatchError, match="4 masks are not for 'vgg16bn'"):
        import_official(tmp_path / "packed.pt", "flowers", "vgg16bn", small("vgg16bn"))
    with pytest.raises(TaskFileError, match=r"none.pt: it cannot be read \(No such file"):
        import_official(tmp_path / "none.pt", "flowers", "vgg16", backbone)
