"""The file of a packed network: what goes in comes out, bits are counted, damage is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.packnet import train_packnet
from piggyback.lab.packnet.file import load, load_file, save, save_file
from piggyback.lab.packnet.network import PackedNetwork, PackedTask, empty
from piggyback.network.backbone import Backbone
from piggyback.taskfile import container
from piggyback.train import ImageData
from piggyback.zoo.load import load_backbone
from support.packnet_toys import packing, stripes


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(5, 4),
        ).eval()  # fmt: skip


def backbone_of(module: nn.Module) -> Backbone:
    return Backbone(module, "", None, "4")


def packed(tasks: int) -> PackedNetwork:
    """A network in which ``tasks`` tasks have random shares, some weights free."""
    network = empty(backbone_of(net()))
    for number in range(1, tasks + 1):
        state = net(number).state_dict()
        name = f"t{number}"
        task = PackedTask(name, ("a", "b", "c", "d"), Preprocessing(8), {})
        frozen = {key: network.shared.get(key, state[key]) for key in state}
        frozen["0.weight"] = torch.where(
            network.owners["0.weight"] == 0, state["0.weight"], network.weights["0.weight"]
        )
        network = network.learned(task, frozen, first=number == 1).pruned(0.5)
    return network


def changed(data: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    """The file with another description, and a checksum that fits it."""
    length = container.header_length(data[:8], len(data))
    metadata, entries = container.parse_header(data[8 : 8 + length], len(data))
    values = json.loads(metadata["packnet"])
    change(values)
    tensors = {
        name: container.read_tensor(memoryview(data), entry)
        for name, entry in entries.items()
        if name != container.CHECKSUM
    }
    return container.build(tensors, {**metadata, "packnet": json.dumps(values)})


@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 4, 8])
def test_what_is_saved_comes_back(tasks: int) -> None:
    network = packed(tasks)
    data = save(network)
    again = load(data, backbone_of(net(99)))  # its weights are not asked
    for part in ("weights", "owners", "shared"):
        own, found = getattr(network, part), getattr(again, part)
        assert own.keys() == found.keys()
        for name, tensor in own.items():
            assert torch.equal(tensor, found[name]), name
    assert [t.name for t in again.tasks] == [f"t{n}" for n in range(1, tasks + 1)]
    assert again.backbone == network.backbone
    assert save(again) == data
    images = torch.randn(3, 3, 8, 8)
    for one, other in zip(network.tasks, again.tasks, strict=True):
        assert (one.classes, one.preprocessing) == (other.classes, other.preprocessing)
        logits = [n.network_for(one.name)(images) for n in (network, again)]
        assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("tasks", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_owners_take_the_fewest_whole_bits(tasks: int, bits: int, tmp_path: Path) -> None:
    save_file(packed(tasks), tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["format"] == "piggyback-packnet"
        assert file.get_tensor("owners.0.weight").shape == (bits, 17)  # 135 weights
        assert file.get_tensor("weights.0.weight").dtype == torch.float32


def test_the_planes_hold_the_owners_bits_lowest_first(tmp_path: Path) -> None:
    network = packed(2)
    save_file(network, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        planes = file.get_tensor("owners.0.weight")
    owners = network.owners["0.weight"].flatten().tolist()
    assert sorted(set(owners)) == [0, 1, 2]
    for i, owner in enumerate(owners):
        bits = [int(plane[i // 8]) >> i % 8 & 1 for plane in planes]
        assert bits[0] + 2 * bits[1] == owner


def test_every_task_answers_after_loading_as_at_training(
    backbone: Backbone, data: ImageData, tmp_path: Path
) -> None:
    tasks = {"colours": data, "stripes": stripes()}
    trained = train_packnet(backbone, tasks, packing(), tmp_path, prune_backbone=True)
    loaded = load_file(trained.file, backbone)
    for name in ("backbone", *tasks):
        x = torch.randn(6, 3, 16, 16)
        logits = [n.network_for(name)(x) for n in (trained.network, loaded)]
        assert torch.equal(logits[0], logits[1])
    assert loaded.tasks[1].preprocessing == Preprocessing(16)
    assert not loaded.network_for("stripes").training


def test_without_a_backbone_the_named_architecture_is_built() -> None:
    source = "timm:test_efficientnet"
    network = empty(load_backbone(source, pretrained=False))
    again = load(save(network))
    assert type(again.module) is type(network.module)
    for name, weight in again.weights.items():
        assert torch.equal(weight, network.weights[name])


@pytest.mark.parametrize("source", ["", "nets/mine.py:build"])
def test_an_architecture_that_cannot_be_built_must_be_given(source: str) -> None:
    network = packed(1)
    network = replace(network, backbone=replace(network.backbone, source=source))
    with pytest.raises(InputError, match="pass backbone="):
        load(save(network))


@pytest.mark.parametrize("place", range(0, 3000, 97))
def test_any_flipped_byte_is_noticed(place: int) -> None:
    data = bytearray(save(packed(2)))
    data[place % len(data)] ^= 0x11
    with pytest.raises(TaskFileError) as caught:
        load(bytes(data), backbone_of(net()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_file_is_refused_by_name(length: int, tmp_path: Path) -> None:
    place = tmp_path / "cut.safetensors"
    place.write_bytes(save(packed(1))[:length])
    with pytest.raises(TaskFileError, match=r"cut\.safetensors: "):
        load_file(place, backbone_of(net()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.pop("head"), "description: 'head'"),
        (lambda v: v.update(source=3), "expected text"),
        (lambda v: v["tasks"][0].update(name="../x"), "task name '../x'"),
        (lambda v: v["tasks"][1].update(name="t1"), "different ones"),
        (lambda v: v["tasks"][0].update(classes="abcd"), "expected names"),
        (lambda v: v["tasks"][0].update(classes=["a"]), "head tensors"),
        (lambda v: v["tasks"][0]["preprocessing"].update(image_size=0), "image size 0"),
        (lambda v: v.update(tasks=v["tasks"][:1]), "owners of '0.weight'"),
        (lambda v: v.update(tasks=7), "description"),
    ],
)
def test_a_description_that_does_not_hold_together(
    change: Callable[[dict[str, object]], None], match: str
) -> None:
    with pytest.raises(TaskFileError, match=match) as caught:
        load(changed(save(packed(2)), change), backbone_of(net()))
    assert "\n" not in str(caught.value)


def test_an_owner_that_is_no_task_is_refused() -> None:
    network = packed(2)
    owners = {"0.weight": torch.full_like(network.owners["0.weight"], 3)}
    with pytest.raises(TaskFileError, match="task 3: expected at most 2"):
        load(save(replace(network, owners=owners)), backbone_of(net()))


def test_another_architecture_is_refused() -> None:
    data = save(packed(1))
    wider = net()
    wider[0], wider[1] = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    wider[4] = nn.Linear(6, 4)
    with pytest.raises(BackboneMismatchError, match=r"'0\.weight'.*\(5, 3, 3, 3\).*\(6, 3, 3, 3\)"):
        load(data, backbone_of(wider))
    with pytest.raises(BackboneMismatchError, match="packs other weights"):
        load(
            data, Backbone(nn.Sequential(nn.Flatten(), *net()[1:4], nn.Linear(5, 4)), "", None, "4")
        )
    with pytest.raises(BackboneMismatchError, match="has the head '4': this backbone's is 'fc'"):
        load(data, Backbone(net(), "", None, "fc"))
    bare = net()
    bare[1] = nn.Identity()
    with pytest.raises(BackboneMismatchError, match=r"1\.bias.*missing"):
        load(data, backbone_of(bare))


def test_other_files_are_refused_by_their_format(tmp_path: Path) -> None:
    place = tmp_path / "task.safetensors"
    place.write_bytes(container.build({}, {"format": "piggyback-task", "version": "1"}))
    with pytest.raises(TaskFileError, match="'piggyback-task': expected 'piggyback-packnet'"):
        load_file(place)
    newer = container.build({}, {"format": "piggyback-packnet", "version": "2", "packnet": "{}"})
    with pytest.raises(TaskFileError, match="version '2' of piggyback-packnet: expected '1'"):
        load(newer)
    with pytest.raises(TaskFileError, match="cannot be read"):
        load_file(tmp_path / "none.safetensors")


def test_writing_fails_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TaskFileError, match="cannot be written"):
        save_file(packed(1), tmp_path / "file" / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
