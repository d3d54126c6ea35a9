"""Two processes with DistributedDataParallel: what is supported gives one task, what is not is refused at once."""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from piggyback import MultiTaskModel, PiggybackError, ScoreInit
from piggyback.errors import PiggybackWarning


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *norms, nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))


def fitted(live: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: int = 4) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(10 * step + rank)
        inputs = torch.randn(8, 6, generator=generator) + rank
        optimizer.zero_grad()
        nn.functional.cross_entropy(live(inputs), torch.arange(8) % 3).backward()
        optimizer.step()


def learned(model: MultiTaskModel, rank: int, name: str = "a", norm: Any = "frozen", **wrap: Any):
    model.start_task(name, 3, norm=norm)
    ddp = DistributedDataParallel(model.train(), **wrap)
    fitted(ddp, model.optimizer(lr=1e-2), rank)
    return ddp


def finished(model: MultiTaskModel) -> list[Any]:
    task = model.finish_task()
    return [
        *(mask.keep.tolist() for mask in task.masks.values()),
        *(tensor.tolist() for tensor in [*task.head.values(), *task.norm.values()]),
    ]


def a_new_wrapper_for_each_task(rank: int) -> list[Any]:
    model = MultiTaskModel(network())
    found = []
    for name in ("a", "b"):
        torch.manual_seed(rank)  # each process draws another head; the first one's counts
        learned(model, rank, name)
        found += finished(model)
    return found


def trained_statistics(rank: int) -> list[Any]:
    model = MultiTaskModel(network(norm=True))
    learned(model, rank, norm="trained")
    return finished(model)


def the_same_wrapper_again(rank: int, **wrap: Any) -> None:
    model = MultiTaskModel(network())
    ddp = learned(model, rank, **wrap)
    model.finish_task()
    model.start_task("b", 3)
    fitted(ddp, model.optimizer(lr=1e-2), rank)


def the_same_wrapper_and_unused(rank: int) -> None:
    the_same_wrapper_again(rank, find_unused_parameters=True)


def a_wrapper_from_before_the_task(rank: int) -> None:
    model = MultiTaskModel(network())
    model.start_task("a", 3)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    model.cancel_task()
    model.start_task("b", 3)
    fitted(ddp, model.optimizer(lr=1e-2), rank)


def other_starts(rank: int) -> None:
    model = MultiTaskModel(network())
    model.start_task("a", 3)
    ddp = DistributedDataParallel(model)
    optimizer = model.optimizer(lr=1e-2, init=ScoreInit("uniform", seed=rank))
    fitted(ddp, optimizer, rank)


def the_model_and_not_its_wrapper(rank: int) -> list[str]:
    model = MultiTaskModel(network())
    model.start_task("a", 3)
    DistributedDataParallel(model.train())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted(model, model.optimizer(lr=1e-2), rank)
    return [str(one.message) for one in told if one.category is PiggybackWarning]


WORKS: list[Callable[[int], Any]] = [a_new_wrapper_for_each_task, trained_statistics]
REFUSED: list[Callable[[int], Any]] = [
    the_same_wrapper_again,
    the_same_wrapper_and_unused,
    a_wrapper_from_before_the_task,
    other_starts,
]


def run_all(rank: int, port: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = {}
    for case in [*WORKS, *REFUSED, the_model_and_not_its_wrapper]:
        try:
            found[case.__name__] = case(rank)
        except PiggybackError as error:
            found[case.__name__] = [type(error).__name__, str(error)]
        dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    start_processes(run_all, (port, folder), nprocs=2, start_method="spawn")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.__name__)
def test_processes_learn_the_same_task(outcomes, case):
    one, two = (outcome[case.__name__] for outcome in outcomes)
    assert len(one) > 3
    assert one == two


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_processes_that_would_drift_apart_are_stopped(outcomes, case):
    for outcome in outcomes:
        kind, text = outcome[case.__name__]
        assert kind == "TaskStateError"
        assert "start_task" in text


def test_processes_that_learn_apart_are_told_so_once(outcomes):
    for outcome in outcomes:
        (text,) = outcome["the_model_and_not_its_wrapper"]
        assert "DistributedDataParallel" in text


def answer_of_another_task(model: MultiTaskModel, answers: Any) -> None:
    model.set_task("b")
    answers.put([model(torch.ones(1, 6), task=name).tolist() for name in ("b", "a")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_got_the_model_does_not_switch_its_parents_weights(method):
    model = MultiTaskModel(network().eval())
    for name in ("a", "b"):
        model.start_task(name, 3)
        fitted(model, model.optimizer(lr=1e-2), len(name))
        model.finish_task()
    model.set_task("a")
    if method == "fork":
        model.share_memory()  # spawn shares what it hands over by itself
    a, b = (model(torch.ones(1, 6), task=name).tolist() for name in ("a", "b"))
    context = torch.multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=answer_of_another_task, args=(model, answers))
    child.start()
    model.set_task("a")
    assert answers.get(timeout=120) == [b, a]
    child.join()
    assert model(torch.ones(1, 6)).tolist() == a
