"""Packed tasks: few bytes, few objects, and nothing of the task that was packed is held or changed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from piggyback.masks.rule import MaskRule
from piggyback.serve.replicas.network import Network
from support.nets import Tiny, seeded
from support.serving_nets import Blocks, backbone, random_task


def packed_bits(task) -> int:
    return sum(-(-mask.numel // 64) * 8 for mask in task.masks.values())


def test_tasks_that_are_alike_share_what_describes_them():
    made = backbone(Blocks())
    network = Network(made, precision="float32")
    one, other = (network.pack(random_task(made, seed)) for seed in range(2))
    assert one.layout is other.layout
    assert one.head_like is other.head_like
    assert one.masks.layout is other.masks.layout
    larger = network.pack(random_task(made, 2, classes=4))
    assert larger.layout is one.layout
    assert larger.head_like is not one.head_like


def test_a_task_holds_its_bits_its_head_and_what_it_changes_of_norms():
    made = backbone(Blocks())
    network = Network(made, precision="float32")
    task = random_task(made, 0)
    head = sum(4 * tensor.numel() for tensor in task.head.values())
    found = network.pack(task)
    assert len(found.masks.parts) == 1
    assert found.masks.parts[0].keep.untyped_storage().nbytes() == packed_bits(task)
    assert packed_bits(task) + head < found.nbytes < packed_bits(task) + head + 4096
    trained = network.pack(random_task(made, 0, norm="trained"))
    batch_norms, layer_norm = 4 * 8 + 4 * 16 + 2 * 16, 2 * 12
    assert trained.norm.numel() == batch_norms + layer_norm
    assert trained.nbytes - found.nbytes >= 4 * (batch_norms + layer_norm)
    low = Network(made, precision="bfloat16").pack(task)
    assert sum(t.element_size() * t.numel() for t in low.head) == head // 2


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_the_task_itself_is_not_held():
    made = seeded(Tiny)
    network = Network(made)
    task = random_task(made, 0)
    gone = [weakref.ref(t) for t in (task.head["weight"], task.masks["body.weight"].keep)]
    held = network.pack(task)
    wanted = held.head[0].clone()
    task.head["weight"].zero_()
    assert torch.equal(held.head[0], wanted)
    del task
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.usefixtures("_no_collector")
def test_what_is_dropped_is_gone_at_once():
    made = backbone(Blocks())
    network = Network(made, precision="float32")
    live = network.new_copy()
    packed = network.pack(random_task(made, 0, MaskRule(form="channel")))
    live.write(packed)
    shared = [weakref.ref(item) for item in (packed.layout, packed.head_like)]
    bits = weakref.ref(packed.masks.parts[0].keep)
    weights = weakref.ref(live._tensors["stem.weight"])
    del packed
    assert bits() is None
    live.write(network.pack(random_task(made, 1, classes=5)))
    assert [ref() for ref in shared] == [None] * 2
    del live
    assert weights() is None
