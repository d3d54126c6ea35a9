"""Calls that fail name what is wrong and leave a MultiTaskModel as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    PiggybackError,
    SelectionError,
    TaskFileError,
    TaskNameError,
    TaskStateError,
    UnknownTaskError,
)
from piggyback.masks.bits import PackedMask, pack_mask
from piggyback.model.multitask import MultiTaskModel
from support.nets import Convolutions, Tiny, assert_same_state, learn, seeded, state_of


@pytest.fixture
def model():
    made = MultiTaskModel(seeded(Tiny))
    for name in ("signs", "letters"):
        learn(made, name, torch.randn(4, 6))
    return made


def everything(model):
    return state_of(model.backbone), model.task_names, model.active_task, model.backbone.head


def unchanged(model, before):
    state, tasks, active, head = before
    assert_same_state(model.backbone, state)
    assert (model.task_names, model.active_task) == (tasks, active)
    assert model.backbone.head is head
    x = torch.randn(3, 6)
    assert torch.equal(model(x), model.bake(model.active_task)(x))


X = torch.randn(4, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.set_task("sings"),
        lambda m: m(X, task="sings"),
        lambda m: m(X, task=["signs", "signs", "sings", "signs"]),
        lambda m: m.use_task("sings").__enter__(),
        lambda m: m.bake("sings"),
        lambda m: m.get_task("sings"),
        lambda m: m.delete_task("sings"),
        lambda m: m.summary("sings"),
        lambda m: m.save_task("sings", "nowhere.safetensors"),
        lambda m: m(X, task=["signs", None, "signs", "signs"]),
        lambda m: m(X, task=["signs", ["signs"], "signs", "signs"]),
    ],
)
def test_unknown_tasks_are_errors_and_never_the_backbone(model, call):
    before = everything(model)
    with pytest.raises(UnknownTaskError, match="the model holds 'signs', 'letters'") as raised:
        call(model)
    if "sings" in str(raised.value):
        assert "did you mean 'signs'" in str(raised.value)
    unchanged(model, before)


def test_names_that_could_not_be_files_are_refused(model):
    before = everything(model)
    task = model.get_task("signs")
    for call in (lambda: model.start_task("../a", 3), lambda: task.renamed("../a")):
        with pytest.raises(TaskNameError, match="expected letters, digits"):
            call()
    unchanged(model, before)


def test_names_that_are_taken_are_refused(model, tmp_path):
    before = everything(model)
    model.save_task("signs", tmp_path / "signs.safetensors")
    for call in (
        lambda: model.start_task("signs", 3),
        lambda: model.add_task(model.get_task("signs")),
        lambda: model.load_task(tmp_path / "signs.safetensors"),
        lambda: model.load_task(tmp_path / "signs.safetensors", name="letters"),
    ):
        with pytest.raises(TaskNameError, match="already exists"):
            call()
    unchanged(model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "expected a number >= 1"),
        ({"classes": 2, "norm": "thawed"}, "expected one of frozen, affine, trained"),
        ({"classes": 2, "head": "fc"}, "expected a module"),
        ({"classes": 2, "head": nn.Linear(16, 3)}, "3 outputs for 2 classes"),
    ],
)
def test_bad_options_of_a_new_task_are_refused(model, options, message):
    before = everything(model)
    with pytest.raises(InputError, match=message):
        model.start_task("new", **options)
    unchanged(model, before)


def test_one_head_cannot_serve_two_tasks(model):
    head = nn.Linear(16, 2)
    learn(model, "new", torch.randn(4, 6), 2, head=head)
    before = everything(model)
    for taken in (head, model.backbone.head):
        with pytest.raises(InputError, match="is a head already"):
            model.start_task("newer", 2, head=taken)
    unchanged(model, before)


def broken(task):
    """Tasks that do not fit, and what is said about them."""
    mask = task.masks["body.weight"]
    info = task.info
    other = replace(info, backbone=replace(info.backbone, fingerprint="0" * 64))
    return [
        (replace(task, masks={"trunk.weight": mask}), BackboneMismatchError, "'trunk.weight'"),
        (replace(task, masks={"head.weight": mask}), BackboneMismatchError, "'head.weight'"),
        (
            replace(task, masks={"body.weight": pack_mask(torch.ones(6, 16, dtype=torch.bool))}),
            BackboneMismatchError,
            r"has shape \(6, 16\) in the task, \(16, 6\) in this backbone",
        ),
        (replace(task, norm={"bn.weight": torch.ones(3)}), BackboneMismatchError, "'bn.weight'"),
        (replace(task, info=other), BackboneMismatchError, "other weights"),
        (
            replace(task, masks={"body.weight": PackedMask((16, 6), mask.keep[:-1])}),
            InputError,
            r"\(11,\): expected torch.uint8 \(12,\)",
        ),
        (replace(task, head={}), TaskFileError, "expected a weight"),
        (replace(task, info=replace(info, head_kind="custom")), InputError, "pass head="),
    ]


@pytest.mark.parametrize("index", range(8))
def test_tasks_that_do_not_fit_are_refused(model, index):
    before = everything(model)
    task, error, message = broken(model.get_task("signs").renamed("new"))[index]
    with pytest.raises(error, match=message) as raised:
        model.add_task(task)
    assert "\n" not in str(raised.value)
    unchanged(model, before)


def test_a_task_that_does_not_fit_cannot_finish_a_training(model):
    learn(model, "new", torch.randn(4, 6), finish=False)
    before = state_of(model.backbone)
    captured = model.capture()
    for task, _, _ in broken(captured)[:-1]:  # the kind of a head that is there does not matter
        with pytest.raises(PiggybackError):
            model.finish_task(task)
        assert model.active_task == "new"
        assert_same_state(model.backbone, before)
    with pytest.raises(TaskNameError, match="'other' given, but 'new' is in training"):
        model.finish_task(captured.renamed("other"))
    model.finish_task()


def test_nothing_else_runs_while_a_task_is_in_training(model, tmp_path):
    model.save_task("signs", tmp_path / "signs.safetensors")
    task = model.get_task("signs")
    learn(model, "new", X, finish=False)
    before, answer = state_of(model.backbone), model(X)
    for call in (
        lambda: model.set_task("signs"),
        lambda: model.set_task(None),
        lambda: model.set_task("new"),
        lambda: model.use_task("signs").__enter__(),
        lambda: model(X, task="signs"),
        lambda: model(X, task=None),
        lambda: model(X, task=["signs"] * 4),
        lambda: model.infer_task(X),
        lambda: model.bake("signs"),
        lambda: model.start_task("newer", 2),
        lambda: model.add_task(task.renamed("again")),
        lambda: model.load_task(tmp_path / "signs.safetensors", name="again"),
    ):
        with pytest.raises(
            TaskStateError, match=r"task 'new' is in training: call finish_task\(\)"
        ):
            call()
        assert_same_state(model.backbone, before)
    assert torch.equal(model(X, task="new"), answer)
    model.delete_task("signs")
    assert torch.equal(model(X), answer)
    model.finish_task()
    assert model.task_names == ("letters", "new")


def test_learning_calls_outside_of_training_are_refused(model):
    for call in (
        model.capture,
        model.finish_task,
        model.cancel_task,
        lambda: model.parameter_groups(1.0),
    ):
        with pytest.raises(TaskStateError, match="call start_task"):
            call()


def test_an_exception_in_a_with_block_restores_the_task_from_before(model):
    before = everything(model)
    with pytest.raises(ZeroDivisionError), model.use_task("signs"):
        raise ZeroDivisionError
    unchanged(model, before)


def test_leaving_a_with_block_in_mid_training_does_not_hide_the_real_error(model):
    def start_and_fail():
        model.start_task("new", 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.use_task("signs"):
        start_and_fail()
    assert model.active_task == "new"
    model.cancel_task()
    assert model.active_task == "letters"


@pytest.mark.parametrize(
    ("task", "x", "message"),
    [
        (["signs"] * 3, X, r"3 task names for a batch of \[4\]"),
        ([], X, r"0 task names for a batch of \[4\]"),
        (["signs"], 3.0, r"1 task names for a batch of \[\]"),
        (["signs"], torch.tensor(1.0), r"1 task names for a batch of \[0\]"),
        (3, X, "expected a name, None, or one name per sample"),
        (X, X, "expected a name, None, or one name per sample"),
    ],
)
def test_a_batch_needs_a_name_per_sample(model, task, x, message):
    before = everything(model)
    with pytest.raises(InputError, match=message):
        model(x, task=task)
    unchanged(model, before)


def test_wrong_inputs_fail_in_the_backbone_and_change_nothing(model):
    before = everything(model)
    for x in (torch.randn(4, 5), torch.randn(4, 6).double()):
        with pytest.raises(RuntimeError):
            model(x)
        with pytest.raises(RuntimeError):
            model(x, task="signs")
    assert everything(model)[1:3] == before[1:3]
    model.set_task(model.active_task)
    unchanged(model, before)


@pytest.mark.parametrize(
    "options",
    [{"head": "heat"}, {"head": ""}, {"select": "bodi"}, {"select": "head"}, {"select": []}],
)
def test_a_backbone_that_cannot_be_wrapped_is_left_alone(options):
    net = seeded(Tiny).train()
    net.body.eval()
    before = state_of(net)
    with pytest.raises(SelectionError):
        MultiTaskModel(net, **options)
    assert_same_state(net, before)
    assert all(p.requires_grad for p in net.parameters())
    assert net.training
    assert not net.body.training


def test_weights_moved_behind_the_models_back_are_told():
    model = MultiTaskModel(seeded(Convolutions))
    learn(model, "a", torch.randn(4, 3, 8, 8))
    model.backbone.to(memory_format=torch.channels_last)
    with pytest.raises(TaskStateError, match="move the MultiTaskModel itself"):
        model.set_task(None)
    with pytest.raises(PiggybackError):
        model(torch.randn(4, 3, 8, 8), task=None)
    model.to(memory_format=torch.channels_last)
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))


def test_an_interrupted_switch_does_not_pass_for_a_whole_one(model, monkeypatch):
    answer = model(X, task="signs")
    model.set_task("letters")
    with monkeypatch.context() as patch:

        def stop(*args):
            raise KeyboardInterrupt

        patch.setattr(type(model._frozen), "put_head", stop)
        with pytest.raises(KeyboardInterrupt):
            model.set_task("signs")
    assert model.active_task == "letters"
    assert torch.equal(model(X), model(X, task="letters"))
    assert torch.equal(model(X, task="signs"), answer)
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Tiny)))
