"""Several processes learn the same masks: DDP averages dL/dW', FSDP2 shards it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.rule import MaskRule, ScoreInit
from piggyback.model.multitask import MultiTaskModel
from support.nets import Tiny, seeded

WORLD = 2
STEPS = 3


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.arange(8) % 3


def train(live, optimizer, rank=0, world=1):
    for index in range(STEPS):
        x, y = (t[rank::world] for t in batch(index))
        optimizer.zero_grad()
        nn.functional.cross_entropy(live(x), y).backward()
        optimizer.step()


def started(kind="binary"):
    torch.manual_seed(0)
    model = MultiTaskModel(seeded(Tiny))
    rule = MaskRule(kind)
    model.start_task("t", 3, rule=rule)
    groups = model.parameter_groups(lr=1e-3, head_lr=1e-2)
    return model, MaskOptimizer(
        groups, torch.optim.SGD, base=model.base_of, rule=rule, init=ScoreInit("uniform")
    )


def join(rank: int, port: int, world: int = WORLD) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def learn_with_ddp(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    model, optimizer = started()
    optimizer.initialize()
    train(DistributedDataParallel(model), optimizer, rank, WORLD)
    task = model.finish_task()
    torch.save({"keep": task.masks["body.weight"].keep, **task.head}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_ddp_learn_what_one_learns(tmp_path):
    start_processes(learn_with_ddp, (free_port(), tmp_path), nprocs=WORLD, start_method="spawn")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    model, optimizer = started()
    optimizer.initialize()
    train(model, optimizer)
    alone = model.finish_task()
    assert torch.equal(one["keep"], two["keep"])
    assert torch.equal(one["keep"], alone.masks["body.weight"].keep)
    torch.testing.assert_close(one["weight"], alone.head["weight"])


def learn_with_fsdp(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    net, make = plain("ternary", torch.optim.Adam)
    fully_shard(net.body)
    fully_shard(net)
    train(net, make(), rank, WORLD)
    full = {name: p.full_tensor().detach() for name, p in net.named_parameters()}
    torch.save(full, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_fsdp_learn_what_one_learns(tmp_path):
    start_processes(learn_with_fsdp, (free_port(), tmp_path), nprocs=WORLD, start_method="spawn")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    net, make = plain("ternary", torch.optim.Adam)
    train(net, make())
    assert (net.body.weight == 0).any()
    for name, tensor in net.named_parameters():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], tensor.detach())


@pytest.fixture
def process_group():
    if dist.is_initialized():
        pytest.skip("another process group is there")
    join(0, free_port(), world=1)
    yield
    dist.destroy_process_group()


def plain(kind, inner):
    """A network, and what makes its optimizer once it is sharded."""
    net = seeded(Tiny)

    def make():
        groups = [
            {"params": [net.body.weight], "masked": True, "lr": 1e-3},
            {"params": list(net.head.parameters()), "lr": 1e-2},
        ]
        return MaskOptimizer(groups, inner, rule=MaskRule(kind), init=ScoreInit("uniform"))

    return net, make


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_fsdp_shards_learn_the_same_masks(process_group, kind, inner):
    net, make = plain(kind, inner)
    train(net, make())
    sharded, make_sharded = plain(kind, inner)
    fully_shard(sharded.body)
    fully_shard(sharded)
    optimizer = make_sharded()
    train(sharded, optimizer)
    weight = sharded.body.weight
    assert isinstance(weight, DTensor)
    assert isinstance(optimizer.scores(weight), DTensor)
    assert torch.equal(weight.full_tensor(), net.body.weight)
    assert not net.body.weight.all()
    state = optimizer.state_dict()
    again, make_again = plain(kind, inner)
    fully_shard(again.body)
    fully_shard(again)
    resumed = make_again()
    resumed.load_state_dict(state)
    assert torch.equal(again.body.weight.full_tensor(), weight.full_tensor())


def test_ddp_on_one_process_and_its_checkpoint(process_group):
    model, optimizer = started("ternary")
    optimizer.initialize()
    train(DistributedDataParallel(model), optimizer)
    other, alone = started("ternary")
    alone.initialize()
    train(other, alone)
    one, two = model.finish_task(), other.finish_task()
    assert torch.equal(one.masks["body.weight"].keep, two.masks["body.weight"].keep)
    assert torch.equal(one.masks["body.weight"].negative, two.masks["body.weight"].negative)
