"""MultiTaskModel with tasks whose mask rule has a form: switched, baked, moved, copied, kept in files; not learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from piggyback.errors import InputError
from piggyback.masks.bits import pack_mask, unpack_mask
from piggyback.masks.rule import MaskRule, coefficient_shape, mask_of
from piggyback.masks.switch import formed_weight
from piggyback.model.multitask import MultiTaskModel
from support.nets import (
    CASES,
    Convolutions,
    Tiny,
    assert_same_state,
    learn,
    same_bits,
    seeded,
    state_of,
)

RULES = {
    "plain": MaskRule(),
    "channel": MaskRule(form="channel"),
    "ternary": MaskRule("ternary", form="channel"),
    "affine": MaskRule(form="affine"),
}
FORMS = [name for name in RULES if name != "plain"]


def made(model, name, rule=None, **options):
    """A task of the rule of its name on the model's backbone, its masks and coefficients drawn at random."""
    rule = rule or RULES[name]
    torch.manual_seed(len(name))
    model.start_task(name, 3, rule=MaskRule(rule.kind), **options)
    task = model.capture()
    model.cancel_task()
    masks = {
        n: pack_mask(mask_of(torch.randint(-1, 2, m.shape), rule)) for n, m in task.masks.items()
    }
    shapes = {n: coefficient_shape(rule.form, m.shape) for n, m in task.masks.items()}
    numbers = {n: 0.5 + torch.rand(shape) for n, shape in shapes.items() if shape is not None}
    return replace(task, masks=masks, coefficients=numbers, info=replace(task.info, rule=rule))


def with_all(case, dtype=torch.float32):
    """A model with a task of every form, and its inputs."""
    model = MultiTaskModel(seeded(case.make).to(dtype), select=case.select)
    x = case.inputs()
    for name in RULES:
        model.add_task(made(model, name))
    return model, x.to(dtype) if x.is_floating_point() else x


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
            wanted = formed_weight(base, unpack_mask(task.masks[weight]), numbers, RULES[name].form)
            assert same_bits(model.backbone.get_parameter(weight), wanted)
    for name in [*RULES, *reversed(RULES)]:
        assert same_bits(model(x, task=name), answers[name])
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(case.make)))


@pytest.mark.parametrize("name", FORMS)
def test_a_task_in_place_is_that_of_the_new_dtype_after_a_move(name):
    model, _ = with_all(CASES["convolutions"])
    model.set_task(name)
    model.to(torch.bfloat16)
    moved = state_of(model.backbone)
    model.set_task(None)
    model.set_task(name)
    assert_same_state(model.backbone, moved)


def test_a_task_is_learned_beside_them_and_moved_meanwhile():
    model, x = with_all(CASES["convolutions"])
    answers = {name: model(x, task=name) for name in FORMS}
    model.set_task("affine")
    learn(model, "new", x, finish=False)
    model.to(memory_format=torch.channels_last).to(memory_format=torch.contiguous_format)
    assert model.finish_task().coefficients == {}
    for name in FORMS:
        assert same_bits(model(x, task=name), answers[name])


def test_a_head_alone_has_no_coefficients_whatever_the_rule(tmp_path):
    model = MultiTaskModel(seeded(Tiny))
    x = torch.randn(4, 6)
    model.add_task(made(model, "a", RULES["channel"], masks=False))
    model.save_task("a", tmp_path / "a")
    fresh = MultiTaskModel(seeded(Tiny))
    fresh.load_task(tmp_path / "a")
    assert fresh.get_task("a").coefficients == {}
    assert same_bits(fresh(x, task="a"), model(x, task="a"))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("masks", [True, False])
def test_no_form_is_learned(name, masks):
    model = MultiTaskModel(seeded(Tiny))
    with pytest.raises(InputError, match=f"form '{RULES[name].form}': expected 'plain'; forms can"):
        model.start_task(name, 3, rule=RULES[name], masks=masks)
    assert_same_state(model.backbone, state_of(seeded(Tiny)))
    model.start_task(name, 3)


@pytest.mark.parametrize(
    ("name", "wrong"), [("affine", {}), ("plain", {"body.weight": torch.ones(16)})]
)
def test_a_task_with_wrong_coefficients_is_refused_and_changes_nothing(name, wrong):
    task = made(MultiTaskModel(seeded(Tiny)), name)
    fresh = MultiTaskModel(seeded(Tiny))
    with pytest.raises(InputError, match=rf"form '{name}' has coefficients.*body\.weight"):
        fresh.add_task(replace(task, coefficients=wrong))
    assert fresh.task_names == ()


def test_the_summary_names_the_form_and_counts_its_bytes():
    model, _ = with_all(CASES["tiny"])
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
    model.set_task(None)
    model.cpu()
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))
