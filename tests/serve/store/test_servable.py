"""What a server takes: files of classification tasks on its own backbone, with heads it can build."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from piggyback.errors import BackboneMismatchError, InputError, TaskFileError
from piggyback.model.multitask import MultiTaskModel
from piggyback.network.frozen import FrozenBackbone
from piggyback.serve.store.folder import Check, servable
from piggyback.taskfile.file import save
from piggyback.taskfile.task import Task
from support.nets import Tiny, learn, seeded


def check_for(net: nn.Module) -> Check:
    frozen = FrozenBackbone(net)
    return servable(frozen.shapes(), frozen.fingerprint)


@pytest.fixture
def task() -> Task:
    return learn(MultiTaskModel(seeded(Tiny)), "signs", torch.randn(4, 6))


@pytest.fixture
def check() -> Check:
    return check_for(seeded(Tiny))


def test_a_task_of_this_backbone_is_taken_under_the_name_of_its_file(
    task: Task, check: Check
) -> None:
    header = check(save(task), "roads")
    assert (header.name, header.info.kind) == ("roads", "classification")
    nameless = replace(task.info, backbone=replace(task.info.backbone, fingerprint=""))
    assert check(save(replace(task, info=nameless)), "roads").name == "roads"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (seeded(Tiny, seed=1), "task 'roads' was learned on other weights"),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), "has no such weight"),
    ],
)
def test_another_backbone_is_refused(task: Task, net: nn.Module, message: str) -> None:
    with pytest.raises(BackboneMismatchError, match=message):
        check_for(net)(save(task), "roads")


def test_a_damaged_file_is_refused_by_name(task: Task, check: Check) -> None:
    with pytest.raises(TaskFileError, match=r"^task 'roads': .*cut off"):
        check(save(task)[:-1], "roads")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_kind": "custom"}, "its head of kind 'custom'"),
        ({"head_kind": "segmentation"}, "scores every pixel: expected kind 'segmentation'"),
        ({"kind": "tags"}, "of kind 'tags'"),
        ({"kind": "tokens"}, "'tokens' for both"),
        ({"head_kind": "tokens"}, "'tokens' for both"),
    ],
)
def test_what_a_server_cannot_answer_is_refused(
    changes: dict[str, str], message: str, task: Task, check: Check
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        check(save(replace(task, info=replace(task.info, **changes))), "signs")
    assert "task 'signs'" in str(raised.value)


def test_a_task_that_keeps_the_backbones_head_is_refused_by_name(check: Check) -> None:
    model = MultiTaskModel(seeded(Tiny))
    model.start_task("tone", head="keep")
    with pytest.raises(InputError, match=r"^task 'signs' keeps the backbone's own head"):
        check(save(model.finish_task()), "signs")
