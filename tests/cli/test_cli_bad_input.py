"""Bad input gets one clear line, exit code 1, and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.cli_toys import FAST, Command


@pytest.mark.parametrize(
    ("factory", "told"), [("other", "other weights"), ("deeper", "'3.weight'")]
)
@pytest.mark.parametrize("command", ["evaluate", "predict", "bake"])
def test_another_backbone(
    piggyback: Command,
    trained: Path,
    colours: Path,
    toy: str,
    command: str,
    factory: str,
    told: str,
) -> None:
    arguments = {
        "evaluate": (trained, "--data", colours),
        "predict": (colours / "test", "--task", trained),
        "bake": (trained, "--to", "out.safetensors"),
    }[command]
    piggyback(command, *arguments, "--backbone", f"{toy}:{factory}").refuses(told)
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "pad", "empty", "text"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_task_file(
    piggyback: Command, trained: Path, toy: str, harm: str, command: str
) -> None:
    data = trained.read_bytes()
    bad = {
        "cut": data[:-7],
        "flip": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "pad": data + b"\0",
        "empty": b"",
        "text": b"not a task file at all" * 10,
    }[harm]
    Path("bad.safetensors").write_bytes(bad)
    piggyback(command, "bad.safetensors").refuses("bad.safetensors")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--backbone", "timm:resnet5"), ("timm:resnet5", "resnet50")),
        (("--select", "0.wieght"), ("0.wieght", "0.weight")),
        (("--select", "1.num_batches_tracked"), ("1.num_batches_tracked",)),
        *((("--name", name), ("task name",)) for name in ("../up", "a/b", ".hidden", "ü", " ")),
    ],
)
def test_names_of_what_is_not_there(
    piggyback: Command, colours: Path, toy: str, options: tuple[str, ...], told: tuple[str, ...]
) -> None:
    ran = piggyback("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, *options)
    ran.refuses(*told)
    assert not list(Path().glob("runs/*/*.safetensors"))


def test_folders_that_are_not_classification_data(
    piggyback: Command, colours: Path, toy: str
) -> None:
    Path("empty").mkdir()
    shutil.copytree(colours / "train" / "red", "one/train/red")
    shutil.copytree(colours, "uneven")
    shutil.rmtree("uneven/train/red")
    for folder, told in (
        ("missing", "no such directory"),
        ("empty", "no class folders"),
        ("one", "1 class"),
        ("uneven", "'red'"),
    ):
        ran = piggyback("train", "--data", folder, "--backbone", f"{toy}:build")
        ran.refuses(folder, told)


def test_images_that_do_not_fit_a_task(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    backbone = ("--backbone", f"{toy}:build")
    shutil.copytree(colours / "test" / "red", "new/crimson")
    shutil.copytree(colours / "test" / "blue", "new/blue")
    piggyback("evaluate", trained, "--data", "new", *backbone).refuses("crimson", "'blue'")
    shutil.copytree(colours / "test", "torn")
    whole = Path("torn/red/0.png").read_bytes()
    Path("torn/red/0.png").write_bytes(whole[: len(whole) // 2])
    piggyback("evaluate", trained, "--data", "torn", *backbone).refuses("0.png", "--skip-bad")
    piggyback("predict", "torn", "--task", trained, *backbone).refuses("0.png")
    piggyback("predict", "none/*.png", "--task", trained).refuses("none/*.png", "found none")
    # A task file may not make this machine run the code that it names.
    piggyback("evaluate", trained, "--data", colours).refuses("runs that file's code")


def test_a_loss_that_is_not_a_number(piggyback: Command, colours: Path, toy: str) -> None:
    ran = piggyback(
        *("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "out"),
        *("--method", "finetune", "--finetune-lr", "1e30"),
    )
    assert ran.code == 1
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: colours: ")
    assert "lower learning rates" in last
    assert not list(Path("out").glob("*finetuned*"))


def test_places_that_cannot_be_written(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    Path("file").write_text("where a folder is wanted")
    for arguments in (
        ("bake", trained, "--to", "file/a.safetensors"),
        ("train", "--data", colours, *FAST, "--out", "file/run"),
    ):
        ran = piggyback(*arguments, "--backbone", f"{toy}:build")
        assert (ran.code, ran.out) == (1, "")
        assert "cannot be written" in ran.err.splitlines()[-1]
    assert Path("file").read_text() == "where a folder is wanted"


def test_a_checkpoint_of_another_run(piggyback: Command, colours: Path, toy: str) -> None:
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", "--out", "out", *FAST)
    assert piggyback(*arguments, "--method", "head").code == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.*")}
    ran = piggyback(*arguments, "--method", "head", "--seed", "9", "--resume")
    ran.refuses("belongs to another run", "seed")
    assert {path: path.read_bytes() for path in Path("out").glob("*.*")} == before
