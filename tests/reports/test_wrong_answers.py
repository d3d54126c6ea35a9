"""What gave a wrong answer without a word, one small input each."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piggyback import Backbone, MaskRule, MultiTaskModel, ScoreInit
from piggyback.errors import (
    InputError,
    PiggybackWarning,
    SelectionError,
    TaskFileError,
    TaskStateError,
    TrainingError,
)
from piggyback.network.head import find_head
from piggyback.network.select import select_weights
from piggyback.taskfile import file
from piggyback.train import Recipe, train

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


class Net(nn.Module):
    """A small body and its classifier ``fc``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 10)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class ByName(Net):
    """Its classifier has three names, and is called by the last."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"out": self.fc})
        self.chain = nn.Sequential(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(self.features(x))


class ByList(Net):
    """Its classifier is called from a plain list, which no name shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.fc]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](self.features(x))


def fitted(model: MultiTaskModel, optimizer: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


# -- 1: heads under several names, and heads that are none ------------------------------------------


@pytest.mark.parametrize("named", ["fc", "parts.out", "chain.0"])
def test_a_classifier_is_exchanged_under_all_its_names(named):
    net = ByName()
    model = MultiTaskModel(net, head=named)
    before = net(X)
    model.start_task("a", 3)
    fitted(model, model.optimizer(lr=1e-2))
    assert model.finish_task().masks.keys() == {"body.weight"}
    assert model(X, task="a").shape == (6, 3)
    assert torch.equal(model.release()(X), before)


def test_a_classifier_called_from_a_list_is_noticed_at_the_first_pass():
    model = MultiTaskModel(ByList())
    model.start_task("a", 3)
    with pytest.raises(TaskStateError, match="fc"):
        model(X)


def test_a_head_that_is_not_last_is_noticed_at_the_first_pass():
    net = nn.Sequential(OrderedDict(a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 5)))
    model = MultiTaskModel(net, head="b")
    model.start_task(
        "t", 8
    )  # as many classes as the layer had outputs, so that the pass goes through
    with pytest.raises(TaskStateError, match="b"):
        model(X)


def made_of(**parts: nn.Module) -> nn.Module:
    """A network with these modules, in this order."""
    net = nn.Module()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def body() -> nn.Module:
    """Equal blocks without a head, as Dinov2Model and LlamaModel are."""
    blocks = (made_of(fc1=nn.Linear(8, 16), fc2=nn.Linear(16, 8)) for _ in range(2))
    return made_of(layers=nn.ModuleList(blocks))


@pytest.mark.parametrize(
    "net",
    [
        body(),
        made_of(classes=nn.Linear(8, 3), body=nn.Linear(4, 8)),  # defined before its body
        made_of(body=nn.Linear(4, 8), colour=nn.Linear(8, 3), shape=nn.Linear(8, 5)),
    ],
)
def test_a_head_that_cannot_be_known_is_refused_with_candidates(net):
    with pytest.raises(SelectionError, match="head="):
        find_head(net)


def test_a_classifier_may_be_called_like_a_projection():
    bart = made_of(dense=nn.Linear(8, 8), out_proj=nn.Linear(8, 3))
    net = made_of(model=body(), classification_head=bart)
    assert find_head(net) == "classification_head.out_proj"
    own = made_of(attention=nn.MultiheadAttention(8, 2), out_proj=nn.Linear(8, 3))
    assert find_head(own) == "out_proj"


@pytest.mark.parametrize("kind", ["ViT", "Bert", "Llama"])
def test_a_body_of_transformers_has_no_head(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    sizes |= {"num_key_value_heads": 2, "vocab_size": 20} if kind == "Llama" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with pytest.raises(SelectionError, match="head="):
        find_head(getattr(transformers, f"{kind}Model")(config))


# -- 2: state dicts --------------------------------------------------------------------------------


def with_tasks() -> MultiTaskModel:
    model = MultiTaskModel(Net())
    for name in ("a", "b"):
        model.start_task(name, 3)
        fitted(model, model.optimizer(lr=1e-2))
        model.finish_task()
    return model


def from_file(model: MultiTaskModel, state: dict[str, Tensor], folder: Path) -> None:
    save_file(state, folder / "x.safetensors")
    load_model(model, folder / "x.safetensors")


def inside_another(model: MultiTaskModel, state: dict[str, Tensor], _: Path) -> None:
    outer = nn.ModuleDict({"net": model})
    outer.load_state_dict({f"net.{name}": tensor for name, tensor in state.items()})


@pytest.mark.parametrize("load", [lambda m, s, _: m.load_state_dict(s), from_file, inside_another])
def test_a_state_dict_does_not_overwrite_the_backbone_or_a_task(load, tmp_path):
    model = with_tasks()
    names = ("a", "b", None)
    answers = [model(X, task=name) for name in names]
    state = {name: torch.randn_like(t) for name, t in model.state_dict().items()}
    with pytest.raises(TaskStateError, match="load_task"):
        load(model, state, tmp_path)
    for _ in range(2):
        for name, answer in zip(names, answers, strict=True):
            assert torch.equal(model(X, task=name), answer)
        model.load_state_dict(copy.deepcopy(model.state_dict()))  # its own is no change


def test_a_training_is_resumed_from_its_own_state_dict_only():
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    optimizer = model.optimizer(lr=1e-2)
    fitted(model, optimizer)
    state = copy.deepcopy(model.state_dict())
    fitted(model, optimizer)
    model.load_state_dict(state)
    assert torch.equal(model.state_dict()["backbone.body.weight"], state["backbone.body.weight"])
    with pytest.raises(TaskStateError, match=r"body\.weight"):
        model.load_state_dict({**state, "backbone.body.weight": torch.randn(8, 4)})


# -- 3 to 5: optimizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("init", [ScoreInit(), ScoreInit("uniform")], ids=lambda init: init.kind)
@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_a_second_optimizer_goes_on_from_the_mask(kind, init):
    model = MultiTaskModel(Net())
    model.start_task("a", 3, rule=MaskRule(kind))
    fitted(model, model.optimizer(lr=5e-3, init=ScoreInit("uniform")), steps=8)
    mask = model.capture().masks["body.weight"]
    second = model.optimizer(lr=1e-3, init=init)
    second.initialize()
    again = model.capture().masks["body.weight"]
    assert 0 < mask.density < 1
    assert torch.equal(mask.keep, again.keep)
    assert kind == "binary" or torch.equal(mask.negative, again.negative)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_learned_from_a_gradient_that_is_not_finite(value):
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    strict = model.optimizer(lr=1e-2)
    fitted(model, strict)
    before = copy.deepcopy(model.state_dict())
    model.backbone.body.weight.grad[0, 0] = value
    with pytest.raises(TrainingError, match=r"body\.weight"):
        strict.step()
    skipping = model.optimizer(lr=1e-2, nonfinite="skip")
    model.backbone.fc.weight.grad[0, 0] = value  # of an ordinary weight, too
    skipping.step()
    assert skipping.skipped == 1
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_an_optimizer_that_makes_scores_of_no_number_is_stopped():
    model = MultiTaskModel(net := nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)))
    model.start_task("t", 3)
    optimizer = model.optimizer(lr=1e-2, eps=0.0)
    model(torch.zeros(2, 4)).sum().backward()  # no gradient for the first layer: 0 / 0
    with pytest.raises(TrainingError, match=r"Adam .*0\.weight.*eps"):
        optimizer.step()
    assert net[0].weight.all()


def test_statistics_that_a_batch_has_spoiled_are_noticed_early():
    model = MultiTaskModel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)))
    model.start_task("t", 3, norm="trained")
    model.train()
    with pytest.raises(TrainingError, match=r"1\.running_mean"):
        model(torch.full((2, 4), torch.nan))


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(rate):
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    optimizer = model.optimizer(lr=1e-2)
    optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(TrainingError, match="rate"):
        fitted(model, optimizer, steps=1)


def test_a_head_that_is_not_finite_is_no_task():
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    with torch.no_grad():
        model.backbone.fc.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="bias"):
        model.finish_task()


class OwnLists(torch.optim.SGD):
    """Steps the parameters it was made with, as wrappers that keep lists of their own do."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.kept = [p for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.kept:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


def test_an_inner_optimizer_that_does_not_step_the_scores_is_noticed():
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    with pytest.raises(TrainingError, match="OwnLists"):
        fitted(model, model.optimizer(OwnLists, lr=1e-2))


def test_a_plain_optimizer_is_noticed_within_the_first_steps():
    model = MultiTaskModel(Net())
    model.start_task("a", 3)
    with pytest.raises(TaskStateError, match=r"body\.weight"):
        fitted(
            model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        )


class NoGrad(Net):
    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().features(x)


class Reentrant(Net):
    def features(self, x: Tensor) -> Tensor:
        return checkpoint(super().features, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("make", [NoGrad, Reentrant])
def test_masked_weights_without_a_gradient_are_named(make):
    model = MultiTaskModel(make())
    model.start_task("a", 3)
    with pytest.raises(TrainingError, match=r"body\.weight"):
        fitted(model, model.optimizer(lr=1e-2))


def test_some_masked_weights_without_a_gradient_are_a_warning():
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    model = MultiTaskModel(Unused(), head="fc")
    model.start_task("a", 3)
    with pytest.warns(PiggybackWarning, match=r"spare\.weight"):
        fitted(model, model.optimizer(lr=1e-2))


# -- 6: another task meanwhile ---------------------------------------------------------------------


class Checkpointed(Net):
    def features(self, x: Tensor) -> Tensor:
        return checkpoint(super().features, x, use_reentrant=False)

    def generate(self, x: Tensor) -> Tensor:
        return torch.cat([self(x) for _ in range(20)])


def test_a_backward_pass_through_another_task_is_refused():
    model = MultiTaskModel(Checkpointed())
    for name in ("a", "b"):
        model.start_task(name, 3)
        fitted(model, model.optimizer(lr=1e-2))
        model.finish_task()
    inputs = X.clone().requires_grad_()
    output = model(inputs, task="a")
    model(X, task="b")
    with pytest.raises(TaskStateError, match="'a'"):
        output.sum().backward()
    model(inputs, task="a").sum().backward()


def test_methods_of_the_backbone_run_one_task_to_their_end():
    model = MultiTaskModel(Checkpointed())
    for name in ("a", "b"):
        model.start_task(name, 3)
        fitted(model, model.optimizer(lr=1e-2))
        model.finish_task()
    expected = {name: model(X, task=name).detach().repeat(20, 1) for name in ("a", "b")}
    wrong: list[str] = []

    def ask(name: str) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(model.generate(X, task=name), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with pytest.raises(AttributeError, match="no_such"):
        model.no_such  # noqa: B018


# -- 7: a network that is held already --------------------------------------------------------------


@pytest.mark.parametrize(
    "part", [lambda net: net, lambda net: nn.Sequential(net, nn.Linear(10, 2)), lambda net: net[0]]
)
def test_a_network_that_is_held_is_not_wrapped_again(part):
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 10)
    )
    model = MultiTaskModel(net)
    with pytest.raises(TaskStateError, match="release"):
        MultiTaskModel(part(net))
    model.release()
    MultiTaskModel(part(net))


def test_masks_that_a_lost_model_left_behind_are_noticed():
    net = Net()
    model = MultiTaskModel(net)
    model.start_task("a", 3)
    fitted(model, model.optimizer(lr=1e-2, init=ScoreInit("uniform")))
    del model
    with pytest.raises(TaskStateError, match="anew"):
        MultiTaskModel(net)
    MultiTaskModel(copy.deepcopy(net))


# -- 8: norms and experts of other makers -----------------------------------------------------------


class T5LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 8, 8))
        self.position = nn.Parameter(torch.randn(1, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.gate_up_proj.mean(0)


def test_norms_are_known_by_what_they_do():
    model = MultiTaskModel(nn.Sequential(nn.Linear(4, 8), T5LayerNorm(), nn.Linear(8, 10)))
    model.start_task("a", 3, norm="affine")
    fitted(model, model.optimizer(lr=1e-2))
    assert list(model.finish_task().norm) == ["1.weight"]


def test_a_norm_policy_that_finds_no_norm_is_refused():
    model = MultiTaskModel(Net())
    with pytest.raises(InputError, match="norm 'affine'"):
        model.start_task("a", 3, norm="affine")
    model.start_task("a", 3)


def test_experts_in_one_tensor_are_masked():
    net = nn.Sequential(nn.Linear(4, 8), Experts(), nn.Linear(8, 10))
    assert list(select_weights(net, head="2")) == ["0.weight", "1.gate_up_proj"]


# -- 20: what would be found at a training's end -----------------------------------------------------


def test_classes_that_no_file_can_hold_are_refused_before_training():
    model = MultiTaskModel(Net())
    with pytest.raises(InputError, match="'a'"):
        model.start_task("a", [f"{i} {'x' * 1000}" for i in range(1000)])
    model.start_task("a", 3)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [("multi_label_classification", "multilabel"), ("regression", "regression")],
)
def test_labels_that_transformers_takes_for_those_of_another_kind_are_refused(problem, kind):
    net = Net()
    net.config = SimpleNamespace(problem_type=None)
    model = MultiTaskModel(net)
    model.start_task("t", 3)
    model(X)
    net.config.problem_type = problem  # as its forward does at the first labels
    with pytest.raises(TaskStateError, match=f"kind='{kind}'"):
        model(X)
    with pytest.raises(TaskStateError, match=f"kind='{kind}'"):
        model.finish_task()


@pytest.mark.parametrize(
    ("classes", "head", "named"),
    [
        (1, None, "'0'"),
        (3, nn.LazyLinear(3), "weight"),
        (3, nn.Linear(8, 3, device="meta"), "weight"),
    ],
)
def test_a_head_that_can_tell_nothing_is_refused_and_all_stays_as_it_was(classes, head, named):
    model = MultiTaskModel(Net())
    with pytest.raises(InputError, match=named):
        model.start_task("t", classes, head=head)
    assert model.training_task is None
    assert model(X).shape == (6, 10)


def test_outputs_are_counted_without_the_batch():
    model = MultiTaskModel(Net())
    model.start_task("t", 6, head=nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 5)))
    with pytest.raises(TaskStateError, match="6 outputs"):
        model(X)


def test_a_task_whose_head_is_not_a_number_is_neither_written_nor_read(monkeypatch):
    model = MultiTaskModel(Net())
    model.start_task("t", 3)
    task = model.finish_task()
    task.head["bias"][0] = torch.nan
    with pytest.raises(InputError, match="'bias'"):
        file.save(task)
    with monkeypatch.context() as patched:
        patched.setattr(file, "check_finite", lambda task: None)
        written = file.save(task)
    with pytest.raises(TaskFileError, match="'bias'"):
        file.load(written)


@pytest.mark.parametrize("method", ["finetune", "lora", "head"])
def test_a_held_network_is_no_backbone_of_a_training(method):
    net = Net()
    model = MultiTaskModel(net)
    with pytest.raises(TaskStateError, match="release"):
        train(Backbone(net, None, "", ""), None, "t", Recipe(method=method))
    model.release()


def test_a_process_that_is_forked_during_a_call_says_so_in_place_of_hanging():
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Net):
        def forward(self, x: Tensor) -> Tensor:
            begun.set()
            go_on.wait(60)
            return super().forward(x)

    model = MultiTaskModel(Slow())
    thread = threading.Thread(target=model, args=(X,))
    thread.start()
    begun.wait(60)
    child = os.fork()
    if child == 0:  # without pytest's ends: nothing here may return
        try:
            signal.alarm(30)
            model(X)
        except TaskStateError:
            os._exit(7)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 7
