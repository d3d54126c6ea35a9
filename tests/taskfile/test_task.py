"""Tasks as objects, and their names."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from piggyback.errors import TaskNameError
from piggyback.masks.bits import pack_mask
from piggyback.taskfile.task import Task, TaskInfo, check_name


def a_task() -> Task:
    ternary = torch.tensor([[1, 0], [-1, 1], [0, 0]], dtype=torch.int8)
    return Task(
        "signs",
        {"a": pack_mask(torch.ones(10, dtype=torch.bool)), "b": pack_mask(ternary)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3, dtype=torch.bfloat16)},
        {"bn.weight": torch.zeros(4)},
        TaskInfo(classes=("x", "y", "z")),
    )


def test_sizes_count_masks_head_and_normalisation():
    task = a_task()
    assert task.weights == 16
    assert task.density == 13 / 16
    assert task.nbytes == (2 + 2) + (3 * 2 * 4 + 3 * 2) + 4 * 4


def test_a_task_without_masks_keeps_every_weight():
    task = replace(a_task(), masks={})
    assert (task.weights, task.density) == (0, 1.0)


def test_a_renamed_task_is_the_same_but_for_its_name():
    task = a_task()
    other = task.renamed("roads-2.v1_x")
    assert (task.name, other.name) == ("signs", "roads-2.v1_x")
    assert other.masks is task.masks
    with pytest.raises(FrozenInstanceError):
        task.name = "roads"


def test_a_moved_task_has_all_its_tensors_there():
    moved = a_task().to("meta")
    tensors = [*moved.head.values(), *moved.norm.values(), moved.masks["a"].keep]
    assert all(t.is_meta for t in [*tensors, moved.masks["b"].negative])
    assert moved.masks["b"].shape == (3, 2)


@pytest.mark.parametrize("name", ["a", "0", "signs-64px", "A.b_c-d", "x" * 100])
def test_names_that_are_good(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a\n", "a\0", "a/b", "a\\b", "..", "../a", ".a", "-o", "_a", "a:b", "x" * 101, "ä", None, 7],
)  # fmt: skip
def test_names_that_are_not(name):
    with pytest.raises(TaskNameError, match="expected letters, digits"):
        Task(name, {}, {})
