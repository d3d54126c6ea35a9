"""What own training loops do besides the plain one: several tasks, several optimizers, other arguments."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from piggyback import (
    Backbone,
    MaskOptimizer,
    MaskRule,
    MultiTaskModel,
    PullToKeep,
    ScoreInit,
    load_backbone,
    pack_mask,
    save_file,
    unpack_mask,
    warmup_cosine,
)
from piggyback.errors import (
    InputError,
    SelectionError,
    TaskStateError,
    TrainingError,
)
from piggyback.train import Recipe, train

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(4, 6)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.body(x + self.embed.weight[0]))


def started(**options) -> MultiTaskModel:
    model = MultiTaskModel(Net())
    model.start_task("a", 3, **options)
    return model.train()


def step(model: MultiTaskModel, *optimizers: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("name", ["embed.weight", "body.0.bias", "body.1.weight"])
def test_weights_that_no_task_can_bring_are_not_trained_beside_it(name, masks):
    model = started(masks=masks)
    weight = model.backbone.get_parameter(name).requires_grad_(True)
    with pytest.raises(TaskStateError, match=name):
        step(model, model.optimizer(lr=1e-2), torch.optim.SGD([weight], lr=1.0), steps=2)
    with pytest.raises(TaskStateError, match=name):
        model.finish_task()
    model.cancel_task()
    if name == "body.1.weight":  # of a norm there is a second copy
        assert torch.equal(model.eval()(X), Net().eval()(X))
    else:
        with pytest.raises(TaskStateError, match=name):
            model(X)


def test_a_state_dict_of_the_same_values_trains_nothing():
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    step(model, optimizer)
    model.load_state_dict(model.state_dict())
    step(model, optimizer)
    model.finish_task()
    assert torch.equal(model.eval()(X, task=None), Net().eval()(X))


@pytest.mark.parametrize("idle", [0, 40])
def test_a_plain_optimizer_in_place_of_ours_is_noticed_whenever_it_steps(idle):
    model = started()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for _ in range(8):  # an evaluation and accumulated gradients
        F.cross_entropy(model(X), Y).backward()
    step(model, optimizer, steps=idle)
    optimizer.param_groups[0]["lr"] = 1e-3
    with pytest.raises(TaskStateError, match=r"body\.0\.weight"):
        step(model, optimizer, steps=max(2 * idle, 2))


def groups_of(net: nn.Module) -> list[dict]:
    return [
        {"params": [net.body[0].weight], "masked": True, "lr": 1e-2},
        {"params": net.fc.parameters()},
    ]


def test_a_second_optimizer_goes_on_from_the_first_ones_base_weights():
    uniform, net = ScoreInit("uniform"), Net()
    weight = net.body[0].weight
    base = weight.detach().clone()
    step(net, MaskOptimizer(groups_of(net), init=uniform), steps=2)
    masks = weight == base
    assert 0 < masks.float().mean() < 1
    second = MaskOptimizer(groups_of(net), lr=1e-2)
    second.initialize()
    assert torch.equal(second.state[weight]["base"], base)
    assert torch.equal(weight == base, masks)
    with torch.no_grad():
        weight.add_(1)  # other weights are other base weights
    third = MaskOptimizer(groups_of(net))
    third.initialize()
    assert torch.equal(third.state[weight]["base"], weight)
    model = started()
    step(model, model.optimizer(lr=1e-2, init=uniform), steps=2)
    task = model.finish_task()
    model.start_task("b", 3, start=task)
    fourth = MaskOptimizer(model.parameter_groups(lr=1e-2))
    fourth.initialize()
    weight = model.backbone.body[0].weight
    assert torch.equal(fourth.state[weight]["base"], model.base_of(weight))
    assert (weight == 0).any()


def test_optimizers_of_the_same_weights_do_not_step_in_turn():
    model = started()
    first = model.optimizer(lr=1e-2, init=ScoreInit("uniform"))
    step(model, first)
    saved = first.state_dict()
    second = model.optimizer(lr=1e-2)
    step(model, second, steps=2)
    with pytest.raises(TaskStateError, match="another MaskOptimizer"):
        step(model, first)
    first.load_state_dict(saved)
    step(model, first)
    with pytest.raises(TaskStateError, match="another MaskOptimizer"):
        step(model, second)


def test_an_optimizer_is_for_one_task():
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    step(model, optimizer, steps=6)
    model.finish_task()
    model.start_task("b", 3)
    with pytest.raises(TaskStateError, match="'a'"):
        step(model, optimizer)
    step(model, model.optimizer(lr=1e-2), steps=6)
    assert model.finish_task().density < 1


@pytest.mark.parametrize("last", range(1, 5))
def test_scores_that_the_last_steps_spoiled_become_no_mask(last):
    class Spoils(torch.optim.SGD):
        made = 0

        def step(self, closure=None):
            super().step(closure)
            self.made += 1
            if self.made == 13 - last:
                self.param_groups[0]["params"][0][0, 0] = float("nan")

    model = started()
    optimizer = model.optimizer(Spoils, lr=1e-2)

    def train() -> None:
        step(model, optimizer, steps=12)
        model.finish_task()

    with pytest.raises(TrainingError, match=r"body\.0\.weight"):
        train()
    model.cancel_task()
    model.start_task("a", 3)
    step(model, model.optimizer(lr=1e-2), steps=4)
    model.finish_task()


def test_one_autocast_may_stay_open_over_all_steps():
    model = started()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(model, model.optimizer(lr=1e-2), steps=8)
        within = model(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(X), within)


def test_a_rate_of_0_is_a_rate():
    optimizer = started().optimizer(steps=10, head_lr=0)
    assert [group["lr"] > 0 for group in optimizer.param_groups] == [True, False]


@pytest.mark.parametrize(
    "inner",
    [torch.optim.Muon, torch.optim.LBFGS, torch.optim.SparseAdam, lambda groups, lr: "adam"],
)
def test_an_optimizer_that_cannot_learn_masks_is_refused_when_it_is_made(inner):
    with pytest.raises(InputError, match=r"^inner.*expected"):
        started().optimizer(inner, lr=1e-2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: started().optimizer(lr="1"), "lr"),
        (lambda: started().optimizer(steps=10, head_lr="1"), "head_lr"),
        (lambda: started().optimizer(steps=10, init="uniform"), "init"),
        (lambda: started().optimizer(steps=10, batches=5), "batches"),
        (lambda: started().optimizer(lr=1e-2, regularizers=PullToKeep(0.1)), "regularizers"),
        (lambda: started().optimizer(lr=1e-2, regularizers=["x"]), "regularizer "),
        (lambda: started().optimizer(lr=1e-2, weight_decay="x"), "inner Adam"),
        (lambda: started().optimizer("adam", lr=1e-2), "inner"),
        (lambda: started().optimizer(lr=1e-2, grad_scale="max"), "grad_scale"),
        (lambda: MaskOptimizer([]), "params"),
        (lambda: MaskOptimizer([torch.zeros(2, dtype=torch.int64)], lr=1e-2), r"a \(2,\) tensor"),
        (lambda: MaskOptimizer(5), "parameter"),
        (lambda: MaskOptimizer([{"lr": 3}]), "parameter"),
        (lambda: started().optimizer(lr=1e-2, rule=MaskRule("ternary")), "rule"),
        (lambda: started().optimizer(lr=1e-2, base=None), "base"),
        (lambda: warmup_cosine(torch.optim.SGD(Net().parameters()), 5, warmup=1.5), "warmup"),
        (lambda: pack_mask([True]), "mask"),
        (lambda: unpack_mask(None), "packed"),
        (lambda: started(units=5), "units"),
        (lambda: started(kind="regression", units="abc"), "units"),
        (lambda: started(masks="no"), "masks"),
        (lambda: started(kind="clasification"), "kind .*'classification'"),
        (lambda: started(kind=5), "kind"),
        (lambda: started().finish_task("a"), "task"),
        (lambda: started(rule="binary"), "rule"),
        (lambda: started(start="a"), "start"),
        (lambda: MultiTaskModel(Net()).load_task("a\0b"), "path"),
        (lambda: MultiTaskModel(Net()).load_task(5), "path"),
        (lambda: MultiTaskModel(Net()).add_task("a.safetensors"), "task"),
        (lambda: save_file("a.safetensors", None), "task"),
        (lambda: load_backbone(5), "backbone"),
        (lambda: load_backbone(Net()), "backbone"),
        (lambda: MultiTaskModel("timm:resnet18"), "backbone"),
        (lambda: MultiTaskModel(Net(), preprocessing=len), "preprocessing"),
        (lambda: MultiTaskModel(Net(), source=3), "source"),
        (lambda: MaskRule(threshold="1"), "threshold"),
        (lambda: ScoreInit(value="1"), "score init: value"),
        (lambda: ScoreInit("uniform", seed=1.5), "score init: seed"),
        (lambda: PullToKeep("x"), "strength"),
        (lambda: Recipe(abstain_at=3), "abstain_at"),
        (lambda: train(Backbone(Net(), None, "", ""), None, "t", recipe={}), "recipe"),
        (lambda: train("timm:resnet18", None, "t"), "backbone"),
    ],
)  # fmt: skip
def test_an_argument_of_another_type_is_named_in_one_line(call, named):
    with pytest.raises(InputError, match=f"^{named}") as error:
        call()
    assert "expected" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda net: torch.compile(net, backend="eager"),
    ],
)
def test_a_wrapped_network_is_refused_since_its_files_would_fit_no_plain_one(wrap):
    with pytest.raises(
        SelectionError, match=r"expected the network itself, its \.(module|_orig_mod)"
    ):
        MultiTaskModel(wrap(Net()))


def test_a_file_on_a_network_that_holds_its_head_in_a_list_is_noticed(tmp_path):
    class Holds(Net):
        def __init__(self) -> None:
            super().__init__()
            self.held = [self.fc]

        def forward(self, x):
            return self.held[0](self.body(x + self.embed.weight[0]))

    model = started()
    model.finish_task()
    model.save_task("a", tmp_path / "a.safetensors")
    other = MultiTaskModel(Holds())
    other.load_task(tmp_path / "a.safetensors")
    assert other.body(X + 1).shape == (32, 16)  # a part is no answer
    with pytest.raises(TaskStateError, match="'fc'"):
        other(X, task="a")
    assert model(X, task="a").shape == (32, 3)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_a_training_goes_on_from_the_state_that_was_loaded_not_from_its_last_masks(kind):
    model = started(rule=MaskRule(kind))
    optimizer = model.optimizer(lr=2e-2)
    step(model, optimizer, steps=3)
    weight, best = model.backbone.body[0].weight, copy.deepcopy(model.state_dict())
    was = weight.clone()
    step(model, optimizer, steps=30)
    assert not torch.equal(weight, was)
    model.load_state_dict(best)
    optimizer.param_groups[0]["lr"] = 0.0
    step(model, optimizer)
    assert torch.equal(weight, was)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copied_optimizer_is_for_one_task_too(copied):
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    step(model, optimizer)
    model, optimizer = copied((model, optimizer))
    bare = MaskOptimizer(model.parameter_groups(lr=1e-2))  # finds the base weights of a copy, too
    bare.initialize()
    weight = model.backbone.body[0].weight
    assert torch.equal(bare.state[weight]["base"], model.base_of(weight))
    with pytest.raises(TaskStateError, match="another MaskOptimizer"):
        step(model, optimizer)
    model.finish_task()
    model.start_task("b", 3)
    with pytest.raises(TaskStateError, match="'a'"):
        step(model, optimizer)
