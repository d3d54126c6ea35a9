"""A task's own classifier, and what tasks cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from piggyback.errors import InputError, TaskFileError
from piggyback.masks.bits import pack_mask
from piggyback.model.heads import class_names, head_kind, load_head, new_head
from piggyback.model.summary import Summary, mask_entropy
from piggyback.taskfile.task import Task, TaskInfo


def task_with(head, kind, classes=("a", "b", "c")):
    return Task("t", {}, head, info=TaskInfo(head_kind=kind, classes=classes))


def test_a_new_head_is_like_the_old_one_but_for_its_outputs():
    old = nn.Conv2d(
        6, 10, 1, stride=2, padding=1, dilation=2, bias=False, padding_mode="reflect"
    ).bfloat16()
    new = new_head(old, 3)
    assert new.weight.shape == (3, 6, 1, 1)
    assert new.weight.dtype == torch.bfloat16
    x = torch.randn(2, 6, 5, 5, dtype=torch.bfloat16)
    with torch.no_grad():
        new.weight.copy_(old.weight[:3])
    assert torch.equal(new(x), old(x)[:, :3])
    assert new_head(nn.Linear(6, 10, dtype=torch.float64), 3).weight.dtype == torch.float64


@pytest.mark.parametrize("old", [nn.Identity(), nn.Conv1d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)])
def test_no_new_head_can_be_made_like_something_else(old):
    with pytest.raises(InputError, match=rf"is a {type(old).__name__}.*pass head="):
        new_head(old, 3)


@pytest.mark.parametrize(
    ("head", "original", "kind"),
    [
        (nn.Linear(4, 2), nn.Linear(4, 9), "linear"),
        (nn.Linear(4, 2), nn.Identity(), "linear"),
        (nn.Conv2d(4, 2, 3), nn.Linear(4, 9), "conv"),
        (nn.Conv2d(4, 2, 1, stride=2), nn.Conv2d(4, 9, 1, stride=2), "conv"),
        (nn.Conv2d(4, 2, 1, stride=2), nn.Conv2d(4, 9, 1), "custom"),
        (nn.Conv2d(4, 2, 1), nn.Conv2d(4, 9, 1, stride=2), "custom"),
        (nn.Conv2d(4, 2, 1, groups=2), nn.Linear(4, 9), "custom"),
        (nn.Sequential(nn.Linear(4, 2)), nn.Linear(4, 9), "custom"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(4, 2), nn.Linear(4, 9), "custom"),
    ],
)
def test_a_head_that_its_tensors_describe_is_built_from_them(head, original, kind):
    assert head_kind(head, original) == kind
    task = task_with(head.state_dict(), kind, ("a", "b"))
    if kind == "custom":
        with pytest.raises(InputError, match=r"task 't'.*pass head="):
            load_head(task, original)
        return
    built = load_head(task, original)
    x = torch.randn(2, 4) if kind == "linear" else torch.randn(2, 4, 5, 5)
    assert torch.equal(built(x), head(x))
    assert not any(p.requires_grad for p in built.parameters())
    assert not {p.data_ptr() for p in built.parameters()} & {
        p.data_ptr() for p in head.parameters()
    }


def test_building_a_head_draws_no_random_numbers():
    head, original = nn.Linear(4, 3), nn.Linear(4, 9)
    state = torch.get_rng_state()
    load_head(task_with(head.state_dict(), "linear"), original)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_head_has_the_backbones_dtype():
    tensors = nn.Linear(4, 3).state_dict()
    built = load_head(task_with(tensors, "linear"), nn.Linear(4, 9, dtype=torch.bfloat16))
    assert torch.equal(built.weight, tensors["weight"].bfloat16())


@pytest.mark.parametrize(
    ("tensors", "kind", "error", "message"),
    [
        ({}, "linear", TaskFileError, "expected a weight of 2 dimensions"),
        ({"weight": torch.zeros(3)}, "linear", TaskFileError, "expected a weight of 2 dimensions"),
        ({"weight": torch.zeros(3, 4)}, "conv", TaskFileError, "expected a weight of 4 dimensions"),
        ({"weight": torch.zeros(3, 5)}, "linear", TaskFileError, "takes 5 features: expected 4"),
        ({"weight": torch.zeros(3, 5, 1, 1)}, "conv", TaskFileError, "takes 5 features"),
        (
            {"weight": torch.zeros(3, 4), "scale": torch.zeros(1)},
            "linear",
            TaskFileError,
            "at most a bias",
        ),
        (
            {"weight": torch.zeros(3, 4), "bias": torch.zeros(2)},
            "linear",
            TaskFileError,
            r"expected .*'bias': \(3,\)",
        ),
        ({"weight": torch.zeros(2, 4)}, "linear", InputError, "2 outputs for 3 classes"),
        ({"weight": torch.zeros(3, 4)}, "bilinear", InputError, "custom module"),
    ],
)
def test_tensors_that_are_no_head_of_this_backbone_are_refused(tensors, kind, error, message):
    with pytest.raises(error, match=message):
        load_head(task_with(tensors, kind), nn.Linear(4, 9))


def test_a_custom_head_is_loaded_into_its_module():
    made, given = (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)) for _ in range(2))
    task = task_with(made.state_dict(), "custom")
    assert load_head(task, nn.Linear(4, 9), given) is given
    x = torch.randn(2, 4)
    assert torch.equal(given(x), made(x))
    before = nn.Linear(4, 3)
    with pytest.raises(TaskFileError, match="expected"):
        load_head(task, nn.Linear(4, 9), before)
    assert before.weight.requires_grad


def test_class_names_from_a_number_or_names():
    assert class_names(torch.tensor(2)) == ("0", "1")
    assert class_names(["b", "a"]) == ("b", "a")
    for wrong in (0, -1, 10**12, [], ["a", "a"], "ab", 1.5, None, {"a", "b"}, iter("ab")):
        with pytest.raises(InputError, match=r"classes .*: expected"):
            class_names(wrong)


def test_entropy_by_the_frequencies_of_a_masks_values():
    quarter = torch.arange(100) % 4 == 0
    assert mask_entropy(pack_mask(quarter)) == pytest.approx(
        -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    )
    thirds = (torch.arange(99) % 3 - 1).to(torch.int8)
    assert mask_entropy(pack_mask(thirds)) == pytest.approx(math.log2(3))
    for same in (torch.ones(5), torch.zeros(5), torch.ones(0)):
        assert mask_entropy(pack_mask(same.bool())) == 0


def test_rows_tell_each_weight_of_each_task():
    half = pack_mask(torch.arange(12).view(3, 4) % 2 == 0)
    tasks = {
        "a": Task("a", {"conv": half, "fc": pack_mask(torch.ones(8, dtype=torch.bool))}, {}),
        "b": Task("b", {}, {"weight": torch.zeros(2, 3)}),
    }
    summary = Summary(tasks)
    assert [(r.task, r.weight, r.shape, r.weights, r.kept) for r in summary.rows] == [
        ("a", "conv", (3, 4), 12, 6),
        ("a", "fc", (8,), 8, 8),
    ]
    assert summary.rows[0].density == 0.5
    assert summary.rows[0].entropy_bits == 1.0
    assert summary.nbytes == {"a": 3, "b": 24}
    lines = str(summary).splitlines()
    assert lines[0] == "task a: 2 masked tensors, 20 weights, density 0.7000, 3 bytes in memory"
    assert lines[2].split() == ["conv", "3x4", "12", "0.5000", "1.000"]
    assert lines[-1] == "task b: 0 masked tensors, 0 weights, density 1.0000, 24 bytes in memory"
