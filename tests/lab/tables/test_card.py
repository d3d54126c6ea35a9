"""Task cards tell what a file needs and cannot be broken by what it says."""

from __future__ import annotations

from piggyback.images.preprocessing import Preprocessing
from piggyback.lab.tables.card import task_card
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.header import LayerHeader, TaskHeader
from piggyback.taskfile.task import TaskInfo

INFO = TaskInfo(
    classes=("stop", "go|slow", "<b>"),
    preprocessing=Preprocessing(64),
    backbone=BackboneInfo("timm:resnet18.a1_in1k", "ab" * 32),
    provenance={
        "test_accuracy": 90.44,
        "data": {"counts": {"train": 10, "test": 3}},
        "recipe": {"method": "masks", "epochs": 6},
    },
)
HEADER = TaskHeader(
    "signs",
    INFO,
    (LayerHeader("conv.weight", (8, 3, 3, 3), 200, "coded", 72),),
    bytes_masks=9,
    bytes_head=100,
    bytes_header=500,
)


def test_card_tells_scores_needs_and_use():
    card = task_card(HEADER)
    for text in (
        "\n# signs\n",
        "base_model: timm/resnet18.a1_in1k\n",
        "value: 90.44\n",
        "216 weights masked at 0.333 bits each",
        "| test accuracy | 90.44% |",
        "`timm:resnet18.a1_in1k`",
        "ab" * 32,
        "64 x 64",
        "train 10, test 3",
        "model.load_task('signs.safetensors')",
    ):
        assert text in card


def test_card_is_not_broken_by_class_names():
    assert "3: stop, go\\|slow, &lt;b>" in task_card(HEADER)


def test_card_of_a_bare_head_with_odd_provenance():
    info = TaskInfo(classes=("a", "b"), provenance={"test_accuracy": "high", "data": 3})
    card = task_card(TaskHeader("bare", info, ()))
    assert "a head alone" in card
    assert "## Scores" not in card
