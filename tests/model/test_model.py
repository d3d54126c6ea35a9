"""MultiTaskModel: holds tasks, answers for them, and gives the backbone back bit for bit."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from piggyback.errors import TaskStateError, UnknownTaskError
from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.norm import norm_tensors
from support.nets import (
    CASES,
    Case,
    Convolutions,
    Tiny,
    assert_same_state,
    learn,
    same_bits,
    seeded,
    state_of,
)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def two_tasks(case: Case, **options: object) -> tuple[MultiTaskModel, torch.Tensor]:
    model = MultiTaskModel(seeded(case.make), select=case.select)
    inputs = case.inputs()
    learn(model, "a", inputs, 3, **options)
    learn(model, "b", inputs, 2, **options)
    return model, inputs


def test_every_kind_of_weight_is_masked_and_answers_differ_by_task(case):
    model, inputs = two_tasks(case)
    assert model.masked_names == case.masked
    assert tuple(model.get_task("a").masks) == case.masked
    assert all(0 < mask.density < 1 for mask in model.get_task("a").masks.values())
    outputs = {name: model(inputs, task=name) for name in ("a", "b", None)}
    assert [tuple(x.shape) for x in outputs.values()][:2] == [(4, 3), (4, 2)]
    assert torch.equal(outputs[None], seeded(case.make).requires_grad_(False)(inputs))


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_live_weights_are_base_weights_times_the_mask(case, kind):
    model, _ = two_tasks(case, rule=MaskRule(kind))
    base = dict(seeded(case.make).named_parameters())
    values = set()
    for name in ("a", "b"):
        model.set_task(name)
        live = dict(model.backbone.named_parameters())
        for weight in case.masked:
            factors = live[weight] / base[weight]
            values |= set(factors.round().int().unique().tolist())
            assert same_bits(live[weight], torch.where(factors == 0, 0.0, base[weight] * factors))
    assert values == ({0, 1} if kind == "binary" else {-1, 0, 1})


def test_the_backbone_comes_back_bit_for_bit_after_every_kind_of_use(case, tmp_path):
    net = seeded(case.make).train()
    next(net.children()).eval()
    frozen = next(net.parameters()).requires_grad_(False)
    before = state_of(net)
    modes = {name: module.training for name, module in net.named_modules()}
    trainable = {name: p.requires_grad for name, p in net.named_parameters()}
    identities = [id(p) for p in net.parameters()]
    model = MultiTaskModel(net, select=case.select)
    inputs = case.inputs()
    norm = "trained" if norm_tensors(net, model.head_name) else "frozen"
    learn(model, "a", inputs, norm=norm)
    assert_same_state(model.backbone, {**before, **live_of(model)})
    learn(model, "b", inputs, 2, masks=False)
    learn(model, "c", inputs, finish=False, norm=norm)
    model.cancel_task()
    model(inputs, task="b")
    model.train()
    model(inputs, task="a")
    model(inputs, task=None)
    model.infer_task(inputs)
    model.save_task("a", tmp_path / "a.safetensors")
    model.delete_task("a")
    model.load_task(tmp_path / "a.safetensors", name="d")
    model.set_task("d")
    model.bake("b")
    model.set_task(None)
    assert_same_state(net, before)
    model.set_task("d")
    model.start_task("e", 2)
    assert model.release() is net
    assert_same_state(net, before)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trainable
    assert [id(p) for p in net.parameters()] == identities
    assert frozen.grad is None
    assert model.task_names == ()


def live_of(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    """What a task with trained normalisation is allowed to have changed, and its head."""
    own = {*model.masked_names, *model.get_task(model.active_task).norm}
    state = model.backbone.state_dict()
    return {
        name: tensor
        for name, tensor in state.items()
        if name in own
        or name.startswith(model.head_name)
        or name.endswith("num_batches_tracked")
        or name == "tied.weight"
    }


def test_frozen_normalisation_stays_and_trained_normalisation_travels(tmp_path):
    case = CASES["convolutions"]
    model, inputs = two_tasks(case)
    base = state_of(seeded(case.make))
    assert not model.get_task("a").norm
    for name, tensor in model.backbone.state_dict().items():
        assert not any(part in name for part in ("stem.1", "body.norm")) or torch.equal(
            tensor, base[name]
        )
    task = learn(model, "c", inputs, norm="trained")
    expected = {"weight", "bias", "running_mean", "running_var"}
    assert set(task.norm) == {f"{layer}.{x}" for layer in ("stem.1", "body.norm") for x in expected}
    assert all(not torch.equal(tensor, base[name]) for name, tensor in task.norm.items())
    answer = model(inputs, task="c")
    model.save_task("c", tmp_path / "c.safetensors")
    fresh = MultiTaskModel(seeded(case.make))
    fresh.load_task(tmp_path / "c.safetensors")
    assert torch.equal(fresh(inputs, task="c"), answer)
    model.set_task(None)
    assert_same_state(model.backbone, base)


def test_training_mode_leaves_normalisation_alone_outside_of_training():
    model, inputs = two_tasks(CASES["convolutions"], norm="trained")
    answer = model(inputs, task="a")
    model.train()
    assert model.backbone.drop.training
    assert not model.backbone.stem[1].training
    for _ in range(3):
        model(inputs, task="a")
    model.eval()
    assert torch.equal(model(inputs, task="a"), answer)


def test_a_task_may_mask_weights_that_this_model_does_not_select(tmp_path):
    inputs = torch.randn(4, 3, 8, 8)
    model = MultiTaskModel(seeded(Convolutions), select=nn.Conv2d)
    learn(model, "a", inputs)
    other = MultiTaskModel(seeded(Convolutions), select="neck")
    learn(other, "b", inputs, 2, norm="trained")
    before = other(inputs)
    other.add_task(model.get_task("a"))
    assert torch.equal(other(inputs), before)
    assert torch.equal(other(inputs, task="a"), model(inputs, task="a"))
    assert torch.equal(other(inputs, task="b"), before)
    other.set_task(None)
    assert_same_state(other.backbone, state_of(seeded(Convolutions)))


def test_selected_normalisation_weights_are_masked_and_not_overwritten():
    inputs = torch.randn(4, 3, 8, 8)
    for norm in ("frozen", "trained"):
        model = MultiTaskModel(seeded(Convolutions), select=["stem.0", "stem.1.weight"])
        task = learn(model, "a", inputs, norm=norm)
        assert set(task.masks) == {"stem.0.weight", "stem.1.weight"}
        assert "stem.1.weight" not in task.norm
        answer = model(inputs)
        assert task.masks["stem.1.weight"].density < 1
        assert (model.backbone.stem[1].weight == 0).any()
        model.set_task(None)
        assert torch.equal(model(inputs, task="a"), answer)


def test_a_batch_of_several_tasks_keeps_its_order():
    model, inputs = two_tasks(CASES["convolutions"])
    with torch.no_grad():
        answers = model(inputs, task=["b", "a", "b", "a"])
        assert [tuple(x.shape) for x in answers] == [(2,), (3,), (2,), (3,)]
        for i, name in enumerate(["b", "a", "b", "a"]):
            torch.testing.assert_close(answers[i], model(inputs[i : i + 1], task=name)[0])
        scaled = model(inputs, task=["b", "a", "b", "a"], scale=2.0)
        torch.testing.assert_close(scaled[1], 2 * answers[1])
        by_name = model(x=inputs, task=("a",) * 4)
        assert torch.equal(torch.stack(by_name), model(inputs, task="a"))
        assert model(inputs[:0], task=[]) == []
    assert model.active_task == "b", "a call for other tasks does not change the caller's choice"


def test_infer_task_finds_the_task_of_each_sample():
    model = MultiTaskModel(seeded(Tiny))
    inputs = torch.randn(6, 6)
    for name, sure in (("a", 0), ("b", 1)):
        task = learn(model, name, inputs, finish=False)
        weight, bias = torch.zeros(3, 16), torch.zeros(3)
        weight[0] = 100.0 if sure else 0.0
        model.finish_task(replace(task, head={"weight": weight, "bias": bias}))
    guess = model.infer_task(inputs)
    assert guess.tasks == ("a", "b")
    assert guess.confidence.shape == (6, 2)
    assert guess.names == ["b"] * 6
    torch.testing.assert_close(guess.confidence[:, 0], torch.zeros(6))


def test_infer_task_without_tasks_says_so():
    with pytest.raises(UnknownTaskError, match="no tasks to choose from"):
        MultiTaskModel(seeded(Tiny)).infer_task(torch.randn(1, 6))


def test_a_baked_model_is_plain_and_answers_to_the_same_bit(case):
    model, inputs = two_tasks(case)
    for name in ("a", None):
        baked = model.bake(name)
        assert type(baked) is case.make
        assert model.active_task == "b"
        assert list(baked.state_dict()) == list(seeded(case.make).state_dict())
        assert torch.equal(baked(inputs), model(inputs, task=name))
    baked = model.bake("a")
    expected = model(inputs, task="a")
    model.set_task(None)
    model.delete_task("a")
    model.release()
    assert torch.equal(baked(inputs), expected), "nothing is shared with the model"


def test_the_active_task_is_the_one_in_place_also_for_direct_use_of_the_backbone():
    model, inputs = two_tasks(CASES["tiny"])
    for name in ("a", None, "b"):
        model.set_task(name)
        assert model.active_task == name
        assert torch.equal(model.backbone(inputs), model(inputs, task=name))
    with model.use_task("a") as same:
        assert same is model
        assert model.active_task == "a"
        assert torch.equal(model.backbone(inputs), model(inputs, task="a"))
        with model.use_task(None):
            assert model.active_task is None
        assert model.active_task == "a"
    assert model.active_task == "b"
    assert torch.equal(model.backbone(inputs), model(inputs, task="b"))


def test_a_deleted_task_is_gone_and_its_name_free():
    model, inputs = two_tasks(CASES["tiny"])
    task = model.get_task("b")
    model.delete_task("b")
    assert model.task_names == ("a",)
    assert model.active_task is None
    assert_same_state(model.backbone, state_of(seeded(Tiny)))
    model.add_task(model.get_task("a").renamed("b"))
    assert torch.equal(model(inputs, task="b"), model(inputs, task="a"))
    model.add_task(task.renamed("c"))
    assert model.task_names == ("a", "b", "c")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_their_own_way(copied):
    model, inputs = two_tasks(CASES["convolutions"], norm="trained")
    answers = {name: model(inputs, task=name) for name in ("a", "b", None)}
    other = copied(model)
    assert other.active_task == "b"
    other.set_task("a")
    assert model.active_task == "b"
    assert torch.equal(model(inputs), answers["b"])
    learn(other, "c", inputs)
    other.delete_task("b")
    for name, answer in answers.items():
        assert torch.equal(model(inputs, task=name), answer)
    assert torch.equal(other(inputs, task="a"), answers["a"])
    other.set_task(None)
    assert_same_state(other.backbone, state_of(seeded(Convolutions)))
    learn(copied(model), "c", inputs)
    with pytest.raises(TaskStateError, match="release"):
        MultiTaskModel(other.backbone)
    MultiTaskModel(other.release())


def test_switches_work_in_inference_mode_and_training_after_it():
    model, inputs = two_tasks(CASES["convolutions"])
    answers = {name: model(inputs, task=name).detach() for name in ("a", "b")}
    fresh = MultiTaskModel(seeded(Convolutions))
    with torch.inference_mode():
        for name in ("a", "b"):
            fresh.add_task(model.get_task(name))
            assert torch.equal(fresh(inputs, task=name), answers[name])
    learn(fresh, "c", inputs)
    assert torch.equal(fresh(inputs, task="a"), answers["a"])
    inputs.requires_grad_()
    fresh(inputs, task="b").sum().backward()
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize("inside", [True, False], ids=["backbone", "whole"])
def test_a_compiled_model_answers_right_after_every_switch(inside):
    model, inputs = two_tasks(CASES["tiny"])
    learn(model, "c", inputs, 2)
    answers = {name: model(inputs, task=name) for name in ("a", "b", "c", None)}
    torch._dynamo.reset()
    if inside:
        model.backbone.compile(backend="aot_eager")
        run = model
    else:
        run = torch.compile(model, backend="aot_eager")
    for name in ("a", "b", "c", None, "c", "b", "a", None, "b"):
        torch.testing.assert_close(run(inputs, task=name), answers[name])
    assert torch.equal(model.bake("a")(inputs), answers["a"])
    torch._dynamo.reset()
