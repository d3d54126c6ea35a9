"""Does a task belong to a backbone? (Refusals by a whole model are in test_model_refusals.py.)"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from piggyback.errors import BackboneMismatchError
from piggyback.model.multitask import MultiTaskModel
from piggyback.taskfile.checks import check_fingerprint, check_fits
from support.nets import Convolutions, learn, seeded


@pytest.fixture
def task():
    return learn(MultiTaskModel(seeded(Convolutions)), "t", torch.randn(4, 3, 8, 8), norm="trained")


def arguments(net):
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    norm = {name: t for name, t in net.state_dict().items() if "stem.1" in name or "norm" in name}
    return shapes, norm


def test_a_task_that_names_no_fingerprint_needs_its_shapes_to_fit_only(task):
    nameless = replace(task, info=replace(task.info, backbone=type(task.info.backbone)()))
    check_fits(nameless, *arguments(seeded(Convolutions, seed=1)), "f" * 64)


def test_a_fingerprint_is_compared_where_one_is_named(task):
    backbone = replace(task.info.backbone, source="timm:resnet50")
    check_fingerprint("t", backbone, backbone.fingerprint)
    check_fingerprint("t", type(backbone)(), "f" * 64)
    said = rf"task 't'.*\(timm:resnet50\).*{backbone.fingerprint[:16]}.*{'f' * 16}"
    with pytest.raises(BackboneMismatchError, match=said):
        check_fingerprint("t", backbone, "f" * 64)


def test_a_mask_of_a_buffer_or_statistics_of_a_weight_do_not_fit(task):
    shapes, norm = arguments(seeded(Convolutions))
    mask = task.masks["neck.weight"]
    for wrong in (
        replace(task, masks={"stem.1.running_mean": mask}),
        replace(task, norm={"neck.weight": torch.zeros(12, 6)}),
    ):
        with pytest.raises(BackboneMismatchError, match="not in this backbone"):
            check_fits(wrong, shapes, norm, task.info.backbone.fingerprint)
