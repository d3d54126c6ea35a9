"""Weights that are computed (weight norm, spectral norm, pruning), other precisions, batches of one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from piggyback import MultiTaskModel, load_backbone
from piggyback.errors import PiggybackWarning, SelectionError, TaskStateError
from piggyback.serve import Engine

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.hidden, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(torch.relu(self.conv(x)).mean((2, 3)))))


def fitted(model: MultiTaskModel, inputs: Tensor = X, steps: int = 5) -> None:
    optimizer = model.optimizer(lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), Y).backward()
        optimizer.step()


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.3)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def symmetric(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Symmetric())


COMPUTED = [
    (weight_norm, "hidden.weight_v"),
    (parametrizations.weight_norm, "hidden.parametrizations.weight.original1"),
    (parametrizations.spectral_norm, "hidden.parametrizations.weight.original"),
    (pruned, "hidden.weight_orig"),
    (symmetric, "hidden.parametrizations.weight.original"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("error::piggyback.errors.PiggybackWarning")
@pytest.mark.parametrize(("compute", "masked"), COMPUTED)
def test_what_a_weight_is_computed_from_is_masked(compute, masked, tmp_path):
    net = Net()
    compute(net.hidden)
    state = copy.deepcopy(net.state_dict())
    model = MultiTaskModel(net)
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    assert model.masked_names == ("conv.weight", masked)
    plain = model(X, task=None)
    model.train()
    model.start_task("a", 3)
    fitted(model)
    assert model.finish_task().masks[masked].density < 1
    model.eval()
    answer = model(X, task="a")
    assert torch.equal(model.bake("a")(X), answer)
    model.save_task("a", tmp_path / "a.safetensors")
    model.delete_task("a")
    model.load_task(tmp_path / "a.safetensors")
    assert torch.equal(model(X, task="a"), answer)
    assert torch.equal(model(X, task=None), plain)
    with Engine(model.release(), tmp_path, memory="64MiB") as engine:
        found = dict(
            zip(*(lambda a: (a.classes, a.probabilities))(engine.predict(X[0], "a")), strict=True)
        )
    expected = answer[0].softmax(0)
    assert found == pytest.approx({str(i): float(expected[i]) for i in range(3)}, abs=1e-5)


class LowRank(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :2].clone(), weight[:2].clone()


def test_a_weight_computed_from_other_shapes_is_refused_by_name():
    net = Net()
    parametrize.register_parametrization(net.hidden, "weight", LowRank())
    with pytest.raises(SelectionError, match=r"hidden\.weight"):
        MultiTaskModel(net)
    assert MultiTaskModel(net, select="conv").masked_names == ("conv.weight",)


@pytest.mark.parametrize("compute", [parametrizations.weight_norm, pruned])
def test_a_weight_that_is_computed_only_later_is_noticed(compute):
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    model.finish_task()
    compute(model.backbone.hidden)
    with pytest.raises(TaskStateError, match=r"hidden\.weight"):
        model(X)
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    compute(model.backbone.hidden)
    with pytest.raises(TaskStateError, match=r"hidden\.weight"):
        model(X)


def test_another_default_dtype_changes_nothing(tmp_path):
    model = MultiTaskModel(Net())
    torch.set_default_dtype(torch.float64)
    try:
        model.start_task("a", 3)
        fitted(model)
        model.finish_task()
        answer = model(X, task="a")
        model.save_task("a", tmp_path / "a.safetensors")
        model.load_task(tmp_path / "a.safetensors", name="again")
        assert torch.equal(model(X, task="again"), answer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert answer.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "half", "double"])
def test_a_factory_of_another_precision_is_read_as_float32(dtype, tmp_path):
    layers = "nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)"
    code = f"from torch import nn\ndef make():\n    return nn.Sequential({layers}).{dtype}()\n"
    (tmp_path / "net.py").write_text(code)
    module = load_backbone(f"{tmp_path}/net.py:make").module
    assert module(torch.zeros(1, 3, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(8,), (8, 1, 1)])
def test_a_last_batch_of_one_sample_ends_no_training(shape):
    norm = nn.BatchNorm1d(8) if len(shape) == 1 else nn.BatchNorm2d(8)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.Unflatten(1, shape), norm, nn.Flatten(), nn.Linear(8, 9)
    )
    model = MultiTaskModel(net).train()
    model.start_task("a", 3, norm="trained")
    model(torch.randn(6, 4))
    before = norm.running_mean.clone()
    with pytest.warns(PiggybackWarning, match="'a'.*drop_last"):
        model(torch.randn(1, 4)).sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert norm.training
    net.register_forward_pre_hook(lambda *_: int("x999"))
    with pytest.raises(ValueError, match="999"):
        model(torch.randn(1, 4))
