from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from piggyback.errors import BackboneError
from piggyback.network.fingerprint import fingerprint, tensor_digest


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


NAMES = ["0.weight"]


def whole(net: nn.Module) -> str:
    return fingerprint(net, NAMES, head="3")[0]


def test_digest_is_sha256_of_dtype_shape_and_bytes() -> None:
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3)
    expected = hashlib.sha256(b"torch.float32(2, 3)" + tensor.numpy().tobytes()).hexdigest()
    assert tensor_digest(tensor) == expected


def test_memory_layout_does_not_matter() -> None:
    tensor = torch.randn(2, 4, 5, 6)
    assert tensor_digest(tensor.to(memory_format=torch.channels_last)) == tensor_digest(tensor)
    assert tensor_digest(tensor.mT.contiguous().mT) == tensor_digest(tensor)
    assert whole(network().to(memory_format=torch.channels_last)) == whole(network())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_every_dtype_has_its_own_digest(dtype: torch.dtype) -> None:
    zeros = torch.zeros(3, dtype=dtype)
    assert tensor_digest(zeros) != tensor_digest(torch.zeros(3))
    assert tensor_digest(zeros) == tensor_digest(zeros.clone())


def test_one_bit_changes_it() -> None:
    net = network()
    with torch.no_grad():
        net[0].weight.view(-1).view(torch.int32)[7] ^= 1
    assert whole(net) != whole(network())
    assert fingerprint(net, NAMES, "3")[1] != fingerprint(network(), NAMES, "3")[1]


@pytest.mark.parametrize("name", ["0.bias", "1.weight", "1.running_var"])
def test_every_tensor_outside_the_head_counts(name: str) -> None:
    net = network()
    net.state_dict()[name].add_(1)
    assert whole(net) != whole(network())


def test_the_head_and_batch_norms_counter_do_not_count() -> None:
    net = network()
    net[3] = nn.Linear(4, 100)
    net[1].num_batches_tracked += 5
    assert whole(net) == whole(network())
    assert fingerprint(net, NAMES)[0] != whole(network())


def test_a_head_named_like_the_start_of_another_layer() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(2, 2), "fc2": nn.Linear(2, 2)})
    before = fingerprint(net, [], head="fc")[0]
    nn.init.ones_(net["fc2"].weight)
    assert fingerprint(net, [], head="fc")[0] != before


def test_digests_come_in_the_order_asked() -> None:
    names = ["1.weight", "0.weight", "0.bias"]
    assert list(fingerprint(network(), names, "3")[1]) == names


def test_renaming_a_tensor_changes_it() -> None:
    linear = nn.Linear(2, 2)
    first = fingerprint(nn.ModuleDict({"a": linear}), [])[0]
    assert fingerprint(nn.ModuleDict({"b": linear}), [])[0] != first


@pytest.mark.parametrize(
    "empty", [nn.LazyBatchNorm1d(), nn.Linear(4, 4, device="meta")], ids=["lazy", "meta"]
)
def test_a_backbone_without_values_is_refused(empty: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(4, 4), empty, nn.Linear(4, 2))
    with pytest.raises(BackboneError, match=r"tensor '1\..* has no values yet"):
        fingerprint(net, ["0.weight"], head="2")
