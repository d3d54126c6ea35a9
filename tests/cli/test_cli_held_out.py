"""What `evaluate` measures of images that a task was trained on in part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from piggyback.train.data.table import load_table
from support.cli_toys import FAST, Command


@pytest.fixture
def flat(colours: Path) -> Path:
    """Class folders without splits."""
    shutil.copytree(colours / "train", "flat")
    return Path("flat")


def trained_on(piggyback: Command, *arguments: str) -> str:
    fast = ("--method", "head", "--name", "a", *FAST[:2])
    assert piggyback("train", "--data", *arguments, *fast).code == 0
    return "runs/a/a.safetensors"


def measured(piggyback: Command, *arguments: str) -> tuple[int, str]:
    """How many images were measured, and what was said."""
    ran = piggyback("evaluate", *arguments, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out)["images"], " ".join(ran.err.split())


def test_some_of_the_classes_are_measured_on_what_was_held_out(piggyback, network, flat):
    task = trained_on(piggyback, "flat", *network)
    whole, said = measured(piggyback, task, *network, "--data", "flat")
    assert f"the {whole} that it held out" in said
    parts = []
    for name in ("blue", "green", "red"):
        shutil.copytree(flat / name, f"only-{name}/{name}")
        parts.append(measured(piggyback, task, *network, "--data", f"only-{name}")[0])
    assert sum(parts) == whole


def test_images_that_were_all_trained_on_are_said_to_be(piggyback, network, flat):
    from piggyback.train.data.folder import load_folder

    task, data = trained_on(piggyback, "flat", *network), load_folder(flat)
    for file in data.train.files:
        place = Path("seen", file.parent.name, file.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    count, said = measured(piggyback, task, *network, "--data", "seen")
    assert f"but about {count} of them were used" in said
    assert "held out" not in said


def test_groups_that_were_held_out_are_found_by_their_column(piggyback, network, flat):
    files = sorted(flat.rglob("*.png"))
    rows = "".join(f"{f},{f.parent.name},{i * 7 % 20}\n" for i, f in enumerate(files))
    Path("t.csv").write_text("image,label,patient\n" + rows)
    task = trained_on(piggyback, "t.csv", *network, "--column", "group=patient")
    held_out = load_table("t.csv", columns={"group": "patient"}).test
    count, said = measured(
        piggyback, task, *network, "--data", "t.csv", "--column", "group=patient"
    )
    assert (count, "held out as test" in said) == (len(held_out), True)
    count, said = measured(
        piggyback, task, *network, "--data", "t.csv"
    )  # by contents others were taken
    assert (count, "all are measured; --column group=NAME" in said) == (len(files), True)


def test_other_units_than_the_tasks_are_refused(piggyback, network, flat):
    files = sorted(flat.rglob("*.png"))
    for unit, factor in (("m", 1), ("cm", 100)):
        rows = "".join(f"{f},{i * factor}\n" for i, f in enumerate(files))
        Path(f"{unit}.csv").write_text(f"image,height ({unit})\n" + rows)
    numbers = ("--kind", "regression", "--column", "label=height (m)")
    trained = ("train", "--data", "m.csv", *numbers, "--method", "head", "--name", "a", *FAST[:2])
    ran = piggyback(*trained, *network)
    assert "val R2 " in ran.err  # an epoch's line names a score that is not accuracy
    column = ("--column", "label=height (cm)")
    for more in ((), ("--report", "found")):
        told = piggyback(
            "evaluate", "runs/a/a.safetensors", *network, "--data", "cm.csv", *column, *more
        )
        assert (told.code, "'height' is in cm: expected m" in told.err) == (1, True)
