"""MultiTaskModel with tasks whose mask rule has a form: learned, switched, baked, moved, copied, kept in files."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from nets import (
    CASES,
    Convolutions,
    Tiny,
    assert_same_state,
    learn,
    same_bits,
    seeded,
    state_of,
)
from piggyback.errors import InputError, TaskStateError
from piggyback.masks.forms import formed_weight
from piggyback.masks.init import ScoreInit
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.masks.packing import unpack
from piggyback.masks.rule import MaskRule, mask_of
from piggyback.model import MultiTaskModel

RULES = {
    "plain": MaskRule(),
    "channel": MaskRule(form="channel"),
    "ternary": MaskRule("ternary", form="channel"),
    "affine": MaskRule(form="affine"),
}
FORMS = [name for name in RULES if name != "plain"]


def train(model, name, x, steps=3, rule=None, **options):
    """Start a task with the rule of its name, and make some steps; it is not finished."""
    model.start_task(name, 3, rule=rule or RULES[name], **options)
    model.train()
    start = ScoreInit("uniform", seed=len(model.tasks))
    optimizer = model.optimizer(
        lr=1e-3,
        head_lr=1e-2,
        form_lr=2e-2,
        init=start,
        eps=1e-4,  # float16 has no 1e-8, and the head is in the backbone's dtype
    )
    optimizer.initialize()
    for _ in range(steps):
        step(model, optimizer, x)
    model.eval()
    return optimizer


def step(model, optimizer, x):
    torch.manual_seed(len(x))  # for dropout
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x).float(), torch.arange(len(x)) % 3).backward()
    optimizer.step()


def with_all(case, dtype=torch.float32):
    """A model with a task of every form, and its inputs."""
    model = MultiTaskModel(seeded(case.make).to(dtype), select=case.select)
    x = case.inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    for name in RULES:
        train(model, name, x)
        model.finish_task()
    return model, x


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tasks_of_all_forms_live_on_one_backbone(case, tmp_path):
    model, x = with_all(case)
    fresh = MultiTaskModel(seeded(case.make), select=case.select)
    answers = {name: model(x, task=name) for name in RULES}
    assert len({answer.sum().item() for answer in answers.values()}) == len(RULES)
    for name in reversed(RULES):
        task = model.get_task(name)
        assert 0 < task.density < 1
        assert task.coefficients.keys() == (task.masks.keys() if name != "plain" else set())
        model.save_task(name, tmp_path / name)
        fresh.load_task(tmp_path / name)
        assert same_bits(fresh(x, task=name), answers[name])
        baked = model.bake(name)
        model.set_task(name)
        assert_same_state(baked, state_of(model.backbone))
        for weight, numbers in task.coefficients.items():
            base = model.base_of(model.backbone.get_parameter(weight))
            made = formed_weight(base, unpack(task.masks[weight]), numbers, RULES[name].form)
            assert same_bits(model.backbone.get_parameter(weight), made)
    for name in [*RULES, *reversed(RULES)]:
        assert same_bits(model(x, task=name), answers[name])
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(case.make)))


@pytest.mark.parametrize("name", FORMS)
def test_capture_agrees_with_the_scores_and_a_finished_task_answers_as_in_training(name):
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    optimizer = train(model, name, x)
    answer, task = model(x), model.capture()
    for weight in model.masked_names:
        param = model.backbone.get_parameter(weight)
        wanted = mask_of(optimizer.scores(param), RULES[name])
        found = unpack(task.masks[weight])
        differ = found != wanted  # only where a mask makes no difference, which counts as kept
        made = [
            formed_weight(model.base_of(param), m, task.coefficients[weight], RULES[name].form)
            for m in (found, wanted)
        ]
        assert torch.equal(*made)
        assert differ.float().mean() < 0.01
        assert task.coefficients[weight] is not model.coefficients_of(param)
        assert torch.equal(task.coefficients[weight], model.coefficients_of(param))
    before = {n: k.clone() for n, k in task.coefficients.items()}
    step(model.train(), optimizer, x)
    model.eval()
    assert all(torch.equal(task.coefficients[n], k) for n, k in before.items())
    model.finish_task(task)
    assert same_bits(model(x), answer)


@pytest.mark.parametrize("name", FORMS)
def test_a_task_captured_before_its_first_step_is_the_backbone(name):
    net = seeded(Convolutions)
    with torch.no_grad():
        net.neck.weight[0, :2] = torch.tensor([0.0, -0.0])
    model = MultiTaskModel(net)
    x = torch.randn(4, 3, 8, 8)
    model.start_task(name, 3, rule=RULES[name])
    answer = model(x)
    task = model.finish_task()
    assert task.density == 1
    assert torch.equal(model(x), answer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_from_the_start_and_later(dtype, tmp_path):
    case = CASES["convolutions"]
    model, x = with_all(case, dtype)
    fresh = MultiTaskModel(seeded(Convolutions).to(dtype))
    for name in RULES:
        model.save_task(name, tmp_path / name)
        fresh.load_task(tmp_path / name)
        assert same_bits(fresh(x, task=name), model(x, task=name))
        numbers = model.get_task(name).coefficients.values()
        assert all(k.dtype == torch.float32 for k in numbers)
    moved, x = with_all(case)
    moved.to(dtype)
    for name in RULES:
        numbers = moved.get_task(name).coefficients.values()
        assert all(k.dtype == torch.float32 for k in numbers)
        assert same_bits(moved(x.to(dtype), task=name), moved.bake(name)(x.to(dtype)))
    moved.set_task(None)
    assert_same_state(moved.backbone, state_of(seeded(Convolutions).to(dtype)))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "move", [{"dtype": torch.bfloat16}, {"memory_format": torch.channels_last}]
)
def test_moving_in_mid_training_keeps_what_was_learned(name, move):
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    train(model, name, x)
    task = model.capture()
    model.to(**move)
    done = model.finish_task()
    for weight, mask in task.masks.items():
        same = unpack(done.masks[weight]) == unpack(mask)
        assert same.float().mean() > (0.97 if "dtype" in move else 0.9999), weight
        assert torch.equal(done.coefficients[weight], task.coefficients[weight])


@pytest.mark.parametrize("name", FORMS)
def test_a_task_in_place_is_that_of_the_new_dtype_after_a_move(name):
    model, _ = with_all(CASES["convolutions"])
    model.set_task(name)
    model.to(torch.bfloat16)
    moved = state_of(model.backbone)
    model.set_task(None)
    model.set_task(name)
    assert_same_state(model.backbone, moved)


@pytest.mark.parametrize("name", FORMS)
def test_training_goes_on_in_another_dtype(name):
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    model.start_task(name, 3, rule=RULES[name])
    optimizer = model.optimizer(torch.optim.SGD, lr=1e-2, form_lr=0.1)
    step(model, optimizer, x)
    model.to(torch.bfloat16)
    step(model, optimizer, x.bfloat16())
    assert model.capture().coefficients.keys() == set(model.masked_names)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_for_themselves(name, copied):
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    optimizer = train(model, name, x)
    other, others = copied((model, optimizer))
    state = state_of(model.backbone)
    step(other.train(), others, x)
    assert_same_state(model.backbone, state)
    step(model.train(), optimizer, x)
    one, two = model.finish_task(), other.finish_task()
    for weight, numbers in one.coefficients.items():
        assert same_bits(numbers, two.coefficients[weight])
    assert same_bits(model.eval()(x), other.eval()(x))


def test_the_groups_have_the_coefficients_with_their_own_rate_and_no_decay():
    model = MultiTaskModel(seeded(Convolutions))
    model.start_task("a", 3, rule=RULES["affine"])
    *_, group = model.parameter_groups(lr=1.0, form_lr=0.5)
    assert [tuple(p.shape) for p in group["params"]] == [(4,)] * 5
    optimizer = model.optimizer(torch.optim.AdamW, lr=1.0, form_lr=0.5, weight_decay=0.1)
    *_, group = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["masked"]) == (0.5, 0.0, False)
    model.cancel_task()
    model.start_task("b", 3)
    assert len(model.parameter_groups(lr=1.0)) == 2


def test_a_head_alone_has_no_coefficients_whatever_the_rule(tmp_path):
    model = MultiTaskModel(seeded(Tiny))
    x = torch.randn(4, 6)
    train(model, "a", x, rule=RULES["channel"], masks=False)
    assert model.finish_task().coefficients == {}
    model.save_task("a", tmp_path / "a")
    fresh = MultiTaskModel(seeded(Tiny))
    fresh.load_task(tmp_path / "a")
    assert same_bits(fresh(x, task="a"), model(x, task="a"))


def test_coefficients_changed_behind_the_optimizers_back_are_refused():
    model = MultiTaskModel(seeded(Tiny))
    train(model, "channel", torch.randn(4, 6))
    with torch.no_grad():
        model.coefficients_of(model.backbone.body.weight).add_(1)
    with pytest.raises(TaskStateError, match=r"'body.weight': \d+ of 96 values"):
        model.capture()
    model.cancel_task()
    assert_same_state(model.backbone, state_of(seeded(Tiny)))


def test_an_optimizer_whose_rule_is_not_the_tasks_is_refused():
    model = MultiTaskModel(seeded(Tiny))
    model.start_task("a", 3)
    optimizer = MaskOptimizer(
        model.parameter_groups(lr=1e-3),
        rule=RULES["affine"],
        base=model.base_of,
        coefficients=model.coefficients_of,
    )
    with pytest.raises(InputError, match=r"'body.weight' has no coefficients.*'a'.*'plain'"):
        optimizer.initialize()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k: {}, "coefficients for 0 weights: expected them for 1.*'body.weight'"),
        (lambda k: {"body.weight": k[:3]}, r"float32 \(3,\): expected torch.float32 \(4,\)"),
        (lambda k: {"body.weight": k.double()}, r"float64 \(4,\): expected torch.float32"),
        (lambda k: {"body.weight": k * torch.nan}, "not finite"),
    ],
)
def test_a_task_with_wrong_coefficients_is_refused_and_changes_nothing(change, message):
    model = MultiTaskModel(seeded(Tiny))
    train(model, "affine", torch.randn(4, 6))
    task = model.finish_task()
    fresh = MultiTaskModel(seeded(Tiny))
    wrong = replace(task, coefficients=change(task.coefficients["body.weight"]))
    with pytest.raises(InputError, match=message):
        fresh.add_task(wrong)
    assert fresh.tasks == ()


def test_a_plain_task_with_coefficients_is_refused():
    task = learn(MultiTaskModel(seeded(Tiny)), "a", torch.randn(4, 6))
    with pytest.raises(InputError, match="form 'plain' has coefficients for 1 weights"):
        MultiTaskModel(seeded(Tiny)).add_task(
            replace(task, coefficients={"body.weight": torch.ones(16)})
        )


def test_the_summary_names_the_form_and_counts_its_bytes():
    model = MultiTaskModel(seeded(Tiny))
    x = torch.randn(4, 6)
    for name in ("plain", "channel"):
        train(model, name, x)
        model.finish_task()
    plain, channel = str(model.summary("plain")), str(model.summary("channel"))
    assert "form" not in plain
    assert "channel form" in channel
    nbytes = model.summary().nbytes
    assert nbytes["channel"] == nbytes["plain"] + 4 * 16


@pytest.mark.gpu
def test_a_gpu_makes_the_same_live_weights():
    model, _ = with_all(CASES["convolutions"])
    states = {}
    for name in RULES:
        model.set_task(name)
        states[name] = state_of(model.backbone)
    model.cuda()
    for name in RULES:
        assert all(k.is_cuda for k in model.get_task(name).coefficients.values())
        model.set_task(name)
        for key in model.masked_names:
            assert same_bits(model.backbone.get_parameter(key), states[name][key])
    train(model, "d", torch.randn(4, 3, 8, 8).cuda(), rule=RULES["affine"])
    model.finish_task()
    model.set_task(None)
    model.cpu()
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))
