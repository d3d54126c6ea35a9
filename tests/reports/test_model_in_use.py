"""Models in use: calls inside calls, copies, weights that others write, inference mode, first steps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import accelerate
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing as wrap_for_checkpointing,
)

from piggyback import MultiTaskModel, ScoreInit
from piggyback.errors import InputError, PiggybackWarning, TaskStateError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.mid, self.fc = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.mid(torch.relu(self.body(x)))))


def fitted(model, optimizer, steps=4, read=lambda output: output) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(read(model(X)), Y).backward()
        optimizer.step()


def with_tasks(net: nn.Module | None = None, read=lambda output: output) -> MultiTaskModel:
    model = MultiTaskModel(Net() if net is None else net)
    for name in ("a", "b"):
        model.start_task(name, 3)
        fitted(model, model.optimizer(lr=1e-2), read=read)
        model.finish_task()
    return model


def started(net: nn.Module | None = None) -> MultiTaskModel:
    model = MultiTaskModel(Net() if net is None else net)
    model.start_task("t", 3)
    return model


# -- calls inside calls ------------------------------------------------------------------------------


def test_a_call_inside_another_leaves_the_outer_one_its_task():
    model = with_tasks()
    expected = {name: model(X, task=name) for name in ("a", "b")}
    inner = []

    def ask(*_: object) -> None:
        if not inner:
            inner.append(None)
            inner[0] = model(X, task="b")

    model.backbone.body.register_forward_hook(ask)
    with torch.no_grad():
        assert torch.equal(model(X, task="a"), expected["a"])
    assert torch.equal(inner[0], expected["b"])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.set_task("b"),
        lambda m: m.delete_task("b"),
        lambda m: m.start_task("c", 2),
        lambda m: m.release(),
    ],
)
def test_a_call_is_not_changed_from_inside(change):
    model = with_tasks()
    expected = model(X, task="a")
    handle = model.backbone.body.register_forward_hook(lambda *_: change(model))
    with pytest.raises(TaskStateError, match="'a'"):
        model(X, task="a")
    handle.remove()
    assert torch.equal(model(X, task="a"), expected)
    assert model.task_names == ("a", "b")


class Streaming(Net):
    def stream(self, x: Tensor):
        for _ in range(3):
            yield self(x)

    async def later(self, x: Tensor) -> Tensor:
        return self(x)

    async def stream_later(self, x: Tensor):
        yield self(x)


@pytest.mark.parametrize("name", ["stream", "later", "stream_later"])
def test_methods_that_go_on_after_they_returned_are_refused(name):
    model = with_tasks(Streaming())
    with pytest.raises(TaskStateError, match=name):
        getattr(model, name)(X, task="a")


def test_an_input_that_comes_back_belongs_to_no_task():
    class WithInput(Net):
        def forward(self, x: Tensor):
            return super().forward(x), x

    model = with_tasks(WithInput(), read=lambda output: output[0])
    x = X.clone().requires_grad_()
    for name in ("a", "b", "a"):
        model(x, task=name)[0].sum().backward()
    assert x._backward_hooks is None


def ask_net(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


@pytest.mark.parametrize("name", ["backbone", "encode"])
def test_calls_past_the_model_run_the_callers_task_or_refuse(name):
    net = Net()
    net.encode = functools.partial(ask_net, net)
    model = with_tasks(net).eval()
    ask = getattr(model, name)
    wanted = {task: model(X, task=task) for task in ("a", "b", None)}
    model.set_task("b")
    model(X, task="a")
    assert torch.equal(ask(X), wanted["b"])
    with model.use_task("a"), ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(model, X, task="a").result(), wanted["a"])
        assert torch.equal(ask(X), wanted["a"])
        other.submit(model, X, task="b").result()
        with pytest.raises(TaskStateError, match=r"Net.*'b'"):
            ask(X)
        assert torch.equal(model(X), wanted["a"])
    for again in (model, copy.deepcopy(model)):
        again(X, task="a")
        assert torch.equal(again.backbone(X), wanted["b"])
        copied = [again.bake(None), copy.deepcopy(again).release()]
        assert not any(each._forward_pre_hooks for each in copied)
        assert all(torch.equal(each.eval()(X), wanted[None]) for each in copied)


def test_statistics_stay_where_the_network_is_set_to_train_past_the_model():
    def norms() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))

    net = nn.Sequential(norms(), nn.Linear(8, 10)).eval()
    model = MultiTaskModel(net)
    model.start_task("a", 8, head=(head := nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))))
    model.finish_task()
    wanted = model.eval()(X)
    for call in (
        model,
        net,
        functools.partial(model, task=None),
        functools.partial(model, task="a"),
    ):
        net.train()
        head.train()
        call(X + 3)
    assert torch.equal(model(X), wanted)


# -- copies ------------------------------------------------------------------------------------------


def test_a_training_and_its_copy_go_their_own_ways():
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    fitted(model, optimizer)
    saved = io.BytesIO()
    torch.save((model, optimizer), saved)
    saved.seek(0)
    pairs = [copy.deepcopy((model, optimizer)), torch.load(saved, weights_only=False)]
    for pair in [(model, optimizer), *pairs]:
        fitted(*pair)
    wanted = model.finish_task().masks["body.weight"].keep
    for other, _ in pairs:
        assert torch.equal(other.finish_task().masks["body.weight"].keep, wanted)


# -- weights that others write -----------------------------------------------------------------------


def test_weights_that_others_overwrite_are_noticed_and_put_back():
    model = with_tasks()
    expected = {name: model(X, task=name) for name in (None, "b", "a")}
    other = {"weight": torch.randn(8, 4), "bias": model.backbone.body.bias.clone()}
    model.backbone.body.load_state_dict(other)
    with pytest.raises(TaskStateError, match=r"body\.weight.*put back"):
        model(X, task="a")
    for name in ("a", "b", None):
        assert torch.equal(model(X, task=name), expected[name])


def test_a_head_that_others_overwrite_is_put_back():
    model = with_tasks()
    expected = {name: model(X, task=name) for name in ("b", "a")}
    model.backbone.fc.load_state_dict({"weight": torch.randn(3, 8), "bias": torch.zeros(3)})
    with pytest.raises(TaskStateError, match=r"fc\.weight.*put back"):
        model(X, task="b")
    for name, output in expected.items():
        assert torch.equal(model(X, task=name), output)


@pytest.mark.parametrize("before", [lambda m: m, copy.deepcopy, lambda m: m.float()])
def test_weights_that_come_after_the_model_are_noticed_before_a_task_starts(before):
    model = before(MultiTaskModel(Net()))
    model.backbone.load_state_dict({k: v + 1 for k, v in model.backbone.state_dict().items()})
    with pytest.raises(TaskStateError, match=r"body\.weight.*before MultiTaskModel"):
        model.start_task("t", 3)


def test_a_compiled_model_goes_on_after_its_task_is_finished():
    model = started()
    run = torch.compile(model, backend="aot_eager")
    fitted(run, model.optimizer(lr=1e-2))
    model.finish_task()
    assert [run(X, task=name).shape[1] for name in ("t", None)] == [3, 10]
    torch._dynamo.reset()


def test_weights_that_cannot_be_put_back_answer_no_more():
    model = with_tasks()
    model.backbone.load_state_dict({k: v + 1 for k, v in model.backbone.state_dict().items()})
    for name in ("a", "b", None):
        with pytest.raises(TaskStateError, match=r"body\.weight.*anew"):
            model(X, task=name)


def test_weights_that_are_replaced_are_noticed():
    model = with_tasks()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(TaskStateError, match=r"body\.weight.*replaced"):
        model(X, task="a")


def put_another(net: nn.Module, name: str) -> None:
    setattr(net, name, copy.deepcopy(getattr(net, name)))


@pytest.mark.parametrize("name", ["mid", "fc"])
def test_modules_that_are_exchanged_are_noticed_before_a_file_names_the_old_ones(name):
    built, training, held = MultiTaskModel(Net()), started(), with_tasks()
    fitted(training, training.optimizer(lr=1e-2), steps=8)
    for model in (built, training, held):
        put_another(model.backbone, name)
    for call in (
        lambda: built.float(),
        lambda: built.start_task("t", 3),
        lambda: training.capture(),
        lambda: training.finish_task(),
        lambda: held(X, task="a"),
        lambda: held.set_task(None),
    ):
        with pytest.raises(TaskStateError, match=f"{name}.*replaced"):
            call()


def test_modules_may_be_wrapped_for_checkpointing_of_activations():
    model = MultiTaskModel(nn.Sequential(Net(), nn.Linear(10, 3)))
    wrap_for_checkpointing(model.backbone, check_fn=lambda part: isinstance(part, Net))
    model.start_task("t", 3)
    fitted(model, model.optimizer(lr=1e-2), steps=8)
    model.finish_task()
    put_another(model.backbone, "0")
    with pytest.raises(TaskStateError, match=r"0\.body.*replaced"):
        model(X)


def test_functional_calls_lend_tensors():
    model = with_tasks()
    model.set_task("a")
    lent = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, lent, (X,)), model(X))


def test_a_model_that_gave_its_network_back_has_ended():
    model = with_tasks()
    net = model.release()
    assert model.release() is net
    other = MultiTaskModel(net)
    other.start_task("c", 3)
    for call in (lambda: model(X), lambda: model.set_task(None), lambda: model.start_task("d", 2)):
        with pytest.raises(TaskStateError, match="release"):
            call()
    fitted(other, other.optimizer(lr=1e-2))
    other.finish_task()


# -- inference mode ------------------------------------------------------------------------------------


def test_a_model_built_or_moved_in_inference_mode_can_be_trained():
    net = Net()
    with torch.inference_mode():
        model = MultiTaskModel(net)
        model.to(torch.float64).to(torch.float32)
        model.start_task("t", 3)
    fitted(model, model.optimizer(lr=1e-2))
    model.finish_task()
    x = X.clone().requires_grad_()
    model(x, task="t").sum().backward()


def test_a_network_made_in_inference_mode_answers_but_is_not_trained():
    with torch.inference_mode():
        model = MultiTaskModel(Net())
    assert model(X).shape == (6, 10)
    with pytest.raises(InputError, match=r"body\.weight"):
        model.start_task("t", 3)
    assert model.active_task is None


# -- first steps ---------------------------------------------------------------------------------------


def test_masks_may_be_frozen_while_the_head_warms_up():
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    weights = [model.backbone.get_parameter(name) for name in model.masked_names]
    for wanted in (False, True):
        for weight in weights:
            weight.requires_grad_(wanted)
        fitted(model, optimizer, steps=5)
    assert model.finish_task().density < 1


def test_a_head_may_be_frozen():
    model = started()
    optimizer = model.optimizer(lr=1e-2)
    model.backbone.fc.requires_grad_(False)
    fitted(model, optimizer)


def test_scores_whose_sum_stays_are_stepped_all_the_same():
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 10))
    nn.init.ones_(net[0].weight)
    model = started(net)
    optimizer = model.optimizer(torch.optim.SGD, lr=1e-2, init=ScoreInit("constant"))
    for _ in range(4):
        optimizer.zero_grad()
        (net[0].weight[0] - net[0].weight[1]).sum().backward()
        optimizer.step()


def test_a_layer_that_later_batches_use_is_not_said_to_be_lost():
    class Later(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = torch.relu(self.body(x))
            return self.fc(self.mid(x) if self.calls > 4 else x)

    model = started(Later())
    with pytest.warns(PiggybackWarning, match=r"later.*mid\.weight"):
        fitted(model, model.optimizer(lr=1e-2), steps=8)
    assert model.finish_task().masks["mid.weight"].density < 1


@dataclasses.dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize(
    "kind", [Output, lambda x: SimpleNamespace(logits=x), lambda x: {"logits": [x]}]
)
def test_outputs_of_any_kind_show_that_the_head_is_reached(kind):
    class Wrapped(Net):
        def forward(self, x: Tensor):
            return kind(super().forward(x))

    def read(output):
        return output["logits"][0] if isinstance(output, dict) else output.logits

    model = with_tasks(Wrapped(), read)
    out = read(model(X.clone().requires_grad_(), task="a"))
    model(X, task="b")
    with pytest.raises((TaskStateError, RuntimeError), match=r"'a'|modified by an inplace"):
        out.sum().backward()


# -- checkpoints of others -----------------------------------------------------------------------------


class Tied(Net):
    """Two layers with one weight, and its classifier under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mid = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fc = nn.Linear(4, 10)
        self.mid.weight = self.body.weight
        self.again = nn.ModuleDict({"fc": self.fc})


@pytest.mark.parametrize("make", [Net, Tied])
@pytest.mark.parametrize("safe", [True, False])
def test_accelerate_resumes_from_its_own_state_alone(make, safe, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    tasks = []
    for resumed in (False, True):
        model = started(make())
        live, optimizer = accelerator.prepare(model, model.optimizer(lr=1e-2))
        if resumed:
            accelerator.load_state(tmp_path)
        else:
            fitted(live, optimizer)
            accelerator.save_state(tmp_path, safe_serialization=safe)
        fitted(live, optimizer)
        tasks.append(model.finish_task())
        accelerator.free_memory()
    for name, mask in tasks[0].masks.items():
        assert torch.equal(mask.keep, tasks[1].masks[name].keep)
    assert torch.equal(tasks[0].head["weight"], tasks[1].head["weight"])


def test_tied_weights_go_through_safetensors(tmp_path):
    model = with_tasks(Tied())
    save_model(model, tmp_path / "model.safetensors")
    load_model(model, tmp_path / "model.safetensors")
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    state = load_file(tmp_path / "state.safetensors")
    model.load_state_dict(state)
    state["backbone.body.weight"] += 1
    with pytest.raises(TaskStateError, match="load_task"):
        model.load_state_dict(state)


# -- what others keep of the weights -----------------------------------------------------------------


def test_weights_that_autocast_keeps_are_not_another_tasks():
    model = with_tasks()
    model.requires_grad_(True)  # autocast keeps what may be trained
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = [model.bake(name)(X) for name in ("a", "b")]
        assert torch.equal(model(X, task="a"), alone[0])
        assert torch.equal(model(X, task="b"), alone[1])


def test_a_network_baked_in_inference_mode_can_be_trained():
    model = with_tasks()
    with torch.inference_mode():
        plain = model.bake("a").requires_grad_(True)
    plain(X).sum().backward()
    assert plain.mid.weight.grad is not None


def test_a_head_whose_state_no_file_can_hold_is_refused_before_it_is_trained():
    class Head(nn.Linear):
        def get_extra_state(self):
            return {"version": 2}

        def set_extra_state(self, state): ...

    with pytest.raises(InputError, match="_extra_state"):
        MultiTaskModel(Net()).start_task("a", 3, head=Head(8, 3))


class Doubled(MultiTaskModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 2


def test_a_subclass_may_have_a_forward_of_its_own():
    model = copy.deepcopy(Doubled(Net()))
    assert torch.equal(model(X, task=None), Net()(X) * 2)


@pytest.mark.parametrize("through", ["model", "backbone"])
def test_a_program_that_would_change_with_every_switch_is_not_exported(through):
    model = with_tasks()
    with pytest.raises(TaskStateError, match="bake"):
        torch.export.export(model if through == "model" else model.backbone, (X,))
    with pytest.raises(TaskStateError, match="bake"):
        torch.jit.trace(model if through == "model" else model.backbone, X)
    program = torch.export.export(model.bake("a"), (X,)).module()
    model.set_task("b")
    assert torch.equal(program(X), model(X, task="a"))
