"""Choosing the smallest weights, against a readable twin; holding weights still under any optimizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from piggyback.lab.packnet.prune import hold, smallest


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
def test_the_smallest_weights_like_the_twin(values: list[float], seed: int, share: float) -> None:
    weight = torch.tensor(values).view(1, -1, 1)
    among = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    found = smallest(weight, among, share)
    assert found.shape == weight.shape
    assert found.flatten().tolist() == twin(weight, among, share)


def test_memory_order_does_not_decide_ties() -> None:
    weight = torch.ones(2, 3, 2, 2)
    turned = weight.contiguous(memory_format=torch.channels_last)
    among = torch.ones_like(weight, dtype=torch.bool)
    found = [smallest(w, among, 0.25) for w in (weight, turned)]
    assert torch.equal(found[0], found[1])
    assert found[0].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, fused=True),
        lambda params: torch.optim.Adam(params, lr=0.1, weight_decay=0.1, amsgrad=True),
    ],
    ids=["sgd", "adamw", "adam"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_held_weights_do_not_move_and_the_others_do(
    make: object, layout: torch.memory_format
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=layout)
    free = {"0.weight": torch.rand(8, 3, 3, 3) < 0.5, "1.weight": torch.zeros(4, 8, 3, 3).bool()}
    optimizer = make(net.parameters())
    with torch.no_grad():
        net[0].weight[~free["0.weight"]] *= torch.tensor(-0.0)  # their sign is kept too
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    hold(net, optimizer, free)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        for name, mask in free.items():
            assert not net.get_parameter(name).grad[~mask].any()
        optimizer.step()
    for name, param in net.named_parameters():
        moved = param.view(torch.int32) != before[name].view(torch.int32)
        assert torch.equal(moved, free.get(name, torch.ones_like(moved))), name


def test_a_held_weight_survives_a_gradient_that_is_not_a_number() -> None:
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    hold(net, optimizer, {"weight": torch.tensor([[True, False]])})
    net(torch.tensor([[1.0, float("nan")]])).sum().backward()
    assert net.weight.grad.tolist() == [[1.0, 0.0]]
    optimizer.step()
    assert torch.equal(net.weight[0, 1], before[0, 1])


def test_a_held_weight_is_out_of_the_optimizers_moments() -> None:
    net = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    hold(net, optimizer, {"weight": torch.tensor([[True, False]])})
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    moments = optimizer.state[net.weight]
    assert moments["exp_avg"][0, 0] != 0
    assert moments["exp_avg"][0, 1] == moments["exp_avg_sq"][0, 1] == 0
