"""MultiTaskModel in other dtypes and memory layouts, also when they change after tasks were added."""

from __future__ import annotations

import pytest
import torch

from piggyback.masks.rule import MaskRule
from piggyback.model.multitask import MultiTaskModel
from support.nets import Convolutions, assert_same_state, learn, same_bits, seeded, state_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def model_with_tasks(dtype=torch.float32, **options):
    net = seeded(Convolutions).to(dtype)
    model = MultiTaskModel(net)
    x = torch.randn(4, 3, 8, 8, dtype=dtype)
    learn(model, "a", x, rule=MaskRule("ternary"), norm="trained")
    learn(model, "b", x, 2)
    return model, x


def same_masks(one, other):
    assert list(one.masks) == list(other.masks)
    for name, mask in one.masks.items():
        assert mask.shape == other.masks[name].shape
        assert torch.equal(mask.keep, other.masks[name].keep)
        assert (mask.negative is None) == (other.masks[name].negative is None)
        assert mask.negative is None or torch.equal(mask.negative, other.masks[name].negative)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backbones_of_any_floating_dtype(dtype, tmp_path):
    model, x = model_with_tasks(dtype)
    answers = {name: model(x, task=name) for name in ("a", "b")}
    assert all(answer.dtype == dtype for answer in answers.values())
    fresh = MultiTaskModel(seeded(Convolutions).to(dtype))
    for name, answer in answers.items():
        model.save_task(name, tmp_path / f"{name}.safetensors")
        fresh.load_task(tmp_path / f"{name}.safetensors")
        assert same_bits(fresh(x, task=name), answer)
        same_masks(fresh.get_task(name), model.get_task(name))
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions).to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_dtype_may_change_after_tasks_were_added(dtype):
    model, x = model_with_tasks()
    tasks = {name: model.get_task(name) for name in ("a", "b")}
    model.to(dtype)
    for name, task in tasks.items():
        same_masks(model.get_task(name), task)
        assert model.get_task(name).head["weight"].dtype == dtype
        baked = model.bake(name)
        assert same_bits(model(x.to(dtype), task=name), baked(x.to(dtype)))
        assert all(p.dtype == dtype for p in baked.parameters())
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions).to(dtype)))


@pytest.mark.parametrize("active", ["a", "b", None])
def test_channels_last_after_tasks_were_added(active, tmp_path):
    model, x = model_with_tasks()
    tasks = {name: model.get_task(name) for name in ("a", "b")}
    answers = {name: model(x, task=name) for name in ("a", "b", None)}
    model.set_task(active)
    model.to(memory_format=torch.channels_last)
    assert not model.backbone.stem[0].weight.is_contiguous()
    x = x.to(memory_format=torch.channels_last)
    for name, task in tasks.items():
        same_masks(model.get_task(name), task)
    for name, answer in answers.items():
        torch.testing.assert_close(model(x, task=name), answer)
    learn(model, "c", x, norm="trained")
    model.save_task("c", tmp_path / "c.safetensors")
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))
    fresh = MultiTaskModel(seeded(Convolutions))
    fresh.load_task(tmp_path / "c.safetensors")
    same_masks(fresh.get_task("c"), model.get_task("c"))
    model.to(memory_format=torch.contiguous_format)
    assert same_bits(model(x.contiguous(), task="c"), fresh(x.contiguous(), task="c"))


def test_a_backbone_that_came_in_channels_last_keeps_its_layout():
    net = seeded(Convolutions).to(memory_format=torch.channels_last)
    strides = {name: p.stride() for name, p in net.named_parameters()}
    model = MultiTaskModel(net)
    x = torch.randn(4, 3, 8, 8)
    task = learn(model, "a", x)
    plain = MultiTaskModel(seeded(Convolutions))
    plain.add_task(task)
    torch.testing.assert_close(plain(x, task="a"), model(x, task="a"))
    model.release()
    assert {name: p.stride() for name, p in net.named_parameters()} == strides
    assert_same_state(net, state_of(seeded(Convolutions)))


def test_weights_that_are_views_of_something_larger():
    net = seeded(Convolutions)
    whole = torch.randn(12, 18)
    net.neck.weight = torch.nn.Parameter(whole[:, ::3])
    before = state_of(net)
    model = MultiTaskModel(net)
    x = torch.randn(4, 3, 8, 8)
    learn(model, "a", x)
    assert torch.equal(whole[:, ::3], before["neck.weight"]), "the larger tensor is not written to"
    assert torch.equal(model.bake("a")(x), model(x))
    model.release()
    assert_same_state(net, before)


def test_moving_in_mid_training_keeps_what_was_learned():
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    task = learn(model, "a", x, finish=False)
    model.to(memory_format=torch.channels_last)
    same_masks(model.capture(), task)
    model.to(torch.float64)
    same_masks(model.finish_task(), task)
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions).double()))


def test_autocast_changes_nothing_that_is_stored():
    model = MultiTaskModel(seeded(Convolutions))
    x = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        task = learn(model, "a", x)
        for name in ("a", None):
            assert model(x, task=name).dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in task.head.values())
    model.set_task(None)
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_masks_and_the_backbone_back():
    model, x = model_with_tasks()
    tasks = {name: model.get_task(name) for name in ("a", "b")}
    answers = {name: model(x, task=name) for name in ("a", "b")}
    model.cuda()
    for name, task in tasks.items():
        assert model.get_task(name).masks["neck.weight"].keep.is_cuda
        torch.testing.assert_close(
            model(x.cuda(), task=name).cpu(), answers[name], atol=1e-3, rtol=1e-3
        )
        same_masks(model.get_task(name).to("cpu"), task)
    learn(model, "c", x.cuda().to(memory_format=torch.channels_last), norm="trained")
    model.set_task(None)
    model.cpu()
    assert_same_state(model.backbone, state_of(seeded(Convolutions)))
