"""A packed network: which weights are pruned; what goes into its file comes out; damage is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from piggyback.errors import BackboneMismatchError, TaskFileError
from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.packnet.network import (
    PackedNetwork,
    PackedTask,
    empty,
    load_file,
    save,
    smallest,
)
from piggyback.network.backbone import Backbone

# -- pruning -----------------------------------------------------------------------------------------


def twin(weight: Tensor, among: Tensor, share: float) -> list[bool]:
    """Sort the marked weights by size, then place, and take the first of them."""
    values, marks = weight.flatten().tolist(), among.flatten().tolist()
    places = [i for i, marked in enumerate(marks) if marked]
    places.sort(key=lambda i: (abs(values[i]), i))
    chosen = set(places[: round(share * len(places))])
    return [i in chosen for i in range(len(values))]


@settings(max_examples=60)
@given(
    # Few different values, so that ties are the rule.
    values=st.lists(
        st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5, 2.0]), min_size=1, max_size=40
    ),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_the_smallest_weights_like_the_twin(values, seed, share):
    weight = torch.tensor(values).view(1, -1, 1)
    among = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    found = smallest(weight, among, share)
    assert found.shape == weight.shape
    assert found.flatten().tolist() == twin(weight, among, share)


def test_memory_order_does_not_decide_ties():
    weight = torch.ones(2, 3, 2, 2)
    turned = weight.contiguous(memory_format=torch.channels_last)
    among = torch.ones_like(weight, dtype=torch.bool)
    found = [smallest(w, among, 0.25) for w in (weight, turned)]
    assert torch.equal(found[0], found[1])
    assert found[0].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


# -- the file ----------------------------------------------------------------------------------------


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(5, 4),
        ).eval()  # fmt: skip


def backbone_of(module: nn.Module, head: str = "4") -> Backbone:
    return Backbone(module, "", None, head)


def packed(tasks: int) -> PackedNetwork:
    """A network in which ``tasks`` tasks have random shares, some weights free."""
    network = empty(backbone_of(net()))
    for number in range(1, tasks + 1):
        state = net(number).state_dict()
        task = PackedTask(f"t{number}", ("a", "b", "c", "d"), Preprocessing(8), {})
        frozen = {key: network.shared.get(key, state[key]) for key in state}
        network = network.claimed(task)
        frozen["0.weight"] = torch.where(
            network.owners["0.weight"] == number, state["0.weight"], network.weights["0.weight"]
        )
        network = network.trained(frozen).pruned(0.5)
    return network


def loaded(data: bytes, folder: Path, backbone: Backbone | None = None) -> PackedNetwork:
    (folder / "net.safetensors").write_bytes(data)
    return load_file(folder / "net.safetensors", backbone or backbone_of(net(99)))


def rewritten(
    data: bytes,
    change: Callable[[dict[str, object]], None] = lambda values: None,
    **more: Tensor,
) -> bytes:
    """The file with another description, or with more tensors."""
    length = int.from_bytes(data[:8], "little")
    values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["packnet"])
    change(values)
    return save_tensors({**load_tensors(data), **more}, {"packnet": json.dumps(values)})


@pytest.mark.parametrize(("tasks", "bits"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (8, 4)])
def test_what_is_saved_comes_back(tasks, bits, tmp_path):
    network = packed(tasks)
    data = save(network)
    again = loaded(data, tmp_path)  # the values of the backbone's weights are not asked
    for part in ("weights", "owners", "shared"):
        own, found = getattr(network, part), getattr(again, part)
        assert own.keys() == found.keys()
        for name, tensor in own.items():
            assert torch.equal(tensor, found[name]), name
    assert again.backbone == network.backbone
    assert save(again) == data
    images = torch.randn(3, 3, 8, 8)
    for one, other in zip(network.tasks, again.tasks, strict=True):
        assert (one.name, one.classes, one.preprocessing) == (
            other.name, other.classes, other.preprocessing,
        )  # fmt: skip
        logits = [n.network_for(one.name)(images) for n in (network, again)]
        assert torch.equal(logits[0], logits[1])
    # Owners take the fewest whole bits, the lowest first.
    planes = load_tensors(data)["owners.0.weight"]
    assert planes.shape == (bits, 17)  # 135 weights
    for i, owner in enumerate(network.owners["0.weight"].flatten().tolist()):
        assert owner == sum(
            (int(plane[i // 8]) >> i % 8 & 1) << bit for bit, plane in enumerate(planes)
        )


def test_a_file_from_before_it_was_plain_is_read(tmp_path):
    network = packed(2)
    data = rewritten(save(network), checksum=torch.zeros(32, dtype=torch.uint8))
    assert save(loaded(data, tmp_path)) == save(network)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_file_is_refused_by_name(length, tmp_path):
    with pytest.raises(TaskFileError, match=r"net\.safetensors: ") as caught:
        loaded(save(packed(1))[:length], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.pop("head"), "head"),
        (lambda v: v["tasks"][0].update(classes="abcd"), r"tasks\.0\.classes"),
        (lambda v: v["tasks"][0].update(classes=["a"]), r"heads\.1\.bias"),
        (lambda v: v["tasks"][0]["preprocessing"].update(image_size=0), "image size 0"),
        (lambda v: v.update(tasks=v["tasks"][:1]), r"heads\.2\.bias.*expected missing"),
    ],
)
def test_a_description_that_does_not_hold_together(change, match, tmp_path):
    with pytest.raises((TaskFileError, BackboneMismatchError), match=match) as caught:
        loaded(rewritten(save(packed(2)), change), tmp_path)
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path):
    data = save(packed(1))
    wider, bare = net(), net()
    wider[0], wider[1] = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    wider[4] = nn.Linear(6, 4)
    bare[1] = nn.Identity()
    flat = nn.Sequential(nn.Flatten(), *net()[1:4], nn.Linear(5, 4))
    for module, head, match in (
        (wider, "4", r"'heads\.1\.weight' is \(4, 5\).*\(4, 6\)"),
        (flat, "4", "packs other weights"),
        (net(), "fc", "has the head '4': this backbone's is 'fc'"),
        (bare, "4", r"1\.bias.*missing"),
    ):
        with pytest.raises(BackboneMismatchError, match=match):
            loaded(data, tmp_path, backbone_of(module, head))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(TaskFileError, match="expected a file of the method packnet"):
        loaded(save_tensors({}, {"format": "piggyback-task", "version": "1"}), tmp_path)
    with pytest.raises(TaskFileError, match="none"):
        load_file(tmp_path / "none.safetensors", backbone_of(net()))
