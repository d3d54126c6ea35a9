"""Folding: what is found, that outputs stay, and that networks which would change are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from piggyback.serve.replicas.fastest import Build, fastest
from piggyback.serve.replicas.folding import Pointwise, agree, find_pairs, fold_, pointwise_
from piggyback.serve.replicas.network import Network
from piggyback.zoo.load import load_backbone
from support.serving_nets import SIDE, Blocks, Peeks, Twin, backbone, close, random_task


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, SIDE, SIDE)


def test_pairs_are_found_wherever_a_norm_takes_what_a_convolution_gave():
    made = backbone(Blocks()).module
    assert {(pair.conv, pair.norm) for pair in find_pairs(made, images())} == {
        ("stem", "bn1"),
        ("wide", "bn2"),
        ("depth", "bn3"),
    }


class Shares(nn.Module):
    """One convolution under two norms, a tied convolution, a norm without statistics, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.first, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.tied, self.after = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.tied.weight = self.two.weight
        self.batch, self.own = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.twice, self.again = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.good, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.two(x)
        x = self.first(made) + self.second(made) + self.after(self.tied(x))
        x = self.own(self.batch(x))
        x = self.again(self.twice(self.again(self.twice(x))))
        return self.fc(self.norm(self.good(x)).mean((2, 3)))


def test_what_is_shared_or_used_twice_is_left_alone():
    made = backbone(Shares())
    assert [pair.conv for pair in find_pairs(made.module, images())] == ["good"]
    network, twin = Network(made, precision="float32"), Twin(made)
    live, task, x = network.new_copy(), random_task(made, 0), images()
    live.write(network.pack(task))
    assert "1 norms folded" in network.speed
    assert close(live.run(x), twin(task, x))


def test_a_folded_network_gives_the_same_outputs_and_has_no_norms_left():
    made = backbone(Blocks()).module
    folded, x = copy.deepcopy(made), images()
    with torch.no_grad():
        fold_(folded, find_pairs(made, x))
        assert close(folded(x), made(x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_a_network_whose_outputs_would_change_is_not_folded_and_says_so():
    made = backbone(Peeks())
    network, twin = Network(made, precision="float32"), Twin(made)
    assert network.speed == "float32, channels last, norms not folded: the outputs would differ"
    live, task, x = network.new_copy(), random_task(made, 0, norm="trained"), images()
    live.write(network.pack(task))
    assert close(live.run(x), twin(task, x))


def test_networks_differ_that_differ_only_under_a_mask():
    class Halves(nn.Module):
        def __init__(self, kept: bool) -> None:
            super().__init__()
            self.conv, self.kept = nn.Conv2d(3, 4, 1, bias=False), kept
            self.register_buffer("before", self.conv.weight.detach().clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.before if self.kept else self.conv.weight
            return nn.functional.conv2d(x, weight)

    torch.manual_seed(0)
    live = Halves(False)
    torch.manual_seed(0)
    kept = Halves(True)
    assert agree(live, copy.deepcopy(live), ["conv.weight"], images())
    assert agree(live, kept, [], images())
    assert not agree(live, kept, ["conv.weight"], images())


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_as_a_product_gives_the_same(bias):
    conv = nn.Conv2d(3, 8, 1, bias=bias)
    product = Pointwise.like(conv)
    assert product.weight is conv.weight
    for x in (images(), images().to(memory_format=torch.channels_last)):
        found = product(x)
        assert found.shape == (2, 8, SIDE, SIDE)
        assert torch.allclose(found, conv(x), atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_only_plain_1x1_convolutions_become_products():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 1, padding="same"),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 10, 1),
    )
    assert pointwise_(net, head="5") == 1
    assert [i for i, m in enumerate(net) if isinstance(m, Pointwise)] == [0]


def test_the_quicker_build_is_chosen_unless_too_much_speaks_against_it():
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(300):
                x = x + 1
            return x

    quick, slow = Build(nn.Identity(), torch.float32), Build(Slow(), torch.float32)
    assert fastest([slow, quick], torch.ones) is quick
    hindered = Build(quick.module, torch.float32, handicap=1e9)
    assert fastest([slow, hindered], torch.ones) is slow


def test_a_real_network_with_norms_that_activate():
    made = load_backbone("timm:mobilenetv3_small_050", pretrained=False, image_size=32)
    network, twin = Network(made, precision="float32"), Twin(made)
    assert "34 norms folded" in network.speed
    live, x = network.new_copy(), torch.randn(2, 3, 32, 32)
    for seed, norm in enumerate(("frozen", "trained")):
        task = random_task(made, seed, norm=norm)
        live.write(network.pack(task))
        assert close(live.run(x), twin(task, x))
