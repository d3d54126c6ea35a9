"""The whole way of a task on timm's families: a few in every run, all of them with ``-m slow``."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from support.timm_families import FAMILIES, LISTED_WITH, exercise, small

QUICK = {
    "convnext": FAMILIES["convnext"],  # depthwise convolutions, layer scale
    "densenet": FAMILIES["densenet"],  # concatenation
    "efficientnet": FAMILIES["efficientnet"],  # depthwise, squeeze and excite
    "mlp_mixer": small("gmlp_ti16_224", 32, img_size=32),
    "mobilenetv3": FAMILIES["mobilenetv3"],  # a head behind a hidden layer
    "resnet": FAMILIES["resnet"],
    "swin_transformer": FAMILIES["swin_transformer"],  # relative position tables
    "vgg": FAMILIES["vgg"],
    "vision_transformer": small("vit_tiny_patch16_224", 32, img_size=32, depth=2),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_few_families(name: str) -> None:
    passed = exercise(QUICK[name])
    assert passed.masked > 0.8 * passed.parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str) -> None:
    if name not in timm.list_modules():
        pytest.skip(f"timm {timm.__version__} has no family {name!r}")
    exercise(FAMILIES[name])


def test_the_table_names_every_family() -> None:
    if timm.__version__ != LISTED_WITH:
        pytest.skip(f"the table was made for timm {LISTED_WITH}")
    assert sorted(FAMILIES) == timm.list_modules()
    for name, family in FAMILIES.items():
        assert family.model in timm.list_models(module=name)


def test_the_docs_list_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "FAMILIES.md").read_text()
    assert f"{len(FAMILIES)} of the {len(FAMILIES)} families" in text
    for name, family in FAMILIES.items():
        assert f"| {name} | {family.model}" in text
