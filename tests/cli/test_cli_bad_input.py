"""Bad input gets one clear line, exit code 1, and changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from piggyback.taskfile.disk import write_whole
from support.cli_toys import FAST


@pytest.mark.parametrize(
    ("factory", "told"), [("other", "other weights"), ("deeper", "'3.weight'")]
)
@pytest.mark.parametrize("command", ["evaluate", "predict", "bake"])
def test_another_backbone(piggyback, trained, colours, toy, command, factory, told):
    arguments = {
        "evaluate": (trained, "--data", colours),
        "predict": (colours / "test", "--task", trained),
        "bake": (trained, "--to", "out.safetensors"),
    }[command]
    piggyback(command, *arguments, "--backbone", f"{toy}:{factory}").refuses(told)
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "pad", "empty", "text"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_task_file(piggyback, trained, toy, harm, command):
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
def test_names_of_what_is_not_there(piggyback, colours, toy, options, told):
    ran = piggyback("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, *options)
    ran.refuses(*told)
    assert not list(Path().glob("runs/*/*.safetensors"))


def test_folders_that_are_not_classification_data(piggyback, colours, toy):
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


def test_images_that_do_not_fit_a_task(piggyback, trained, colours, toy):
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


def test_a_loss_that_is_not_a_number(piggyback, colours, toy):
    ran = piggyback(
        *("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "out"),
        *("--method", "finetune", "--finetune-lr", "1e30"),
    )
    assert ran.code == 1
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: colours: ")
    assert "lower learning rates" in last
    assert not list(Path("out").glob("*finetuned*"))


FOLDERS = {
    "train": ("train", "--data", "nowhere", "--out"),
    "compare": ("compare", "--data", "a=nowhere", "--out"),
    "check": ("check", "nowhere", "--out"),
    "evaluate": ("evaluate", "no.safetensors", "--data", "nowhere", "--report"),
    "quickstart": ("quickstart", "--out"),
    "experiment": ("experiment", "run", "table2", "--toy", "--out"),
}
FILES = {
    "train": ("train", "--data", "nowhere", "--out"),
    "bake": ("bake", "no.safetensors", "--to"),
    "export-official": ("export-official", "no.safetensors", "--out"),
}


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/none", ""])
def test_folders_that_cannot_be_written(piggyback, command, place):
    """Said before anything that is read, and nothing is left."""
    Path("file").write_text("where a folder is wanted")
    ran = piggyback(*FOLDERS[command], place)
    ran.refuses(FOLDERS[command][-1], place)
    assert [path.name for path in Path().iterdir()] == ["file"]
    assert Path("file").read_text() == "where a folder is wanted"


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("place", ["folder", "file/a", "x" * 300 + "/a", "/proc/a", ""])
def test_files_that_cannot_be_written(piggyback, command, place):
    Path("file").write_text("where a folder is wanted")
    Path("folder.safetensors").mkdir()
    ran = piggyback(*FILES[command], place and f"{place}.safetensors")
    ran.refuses(FILES[command][-1], place)
    assert {path.name for path in Path().iterdir()} == {"file", "folder.safetensors"}


def test_a_device_is_not_replaced(tmp_path):
    """As root, a rename would."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="device"):
        write_whole(tmp_path / "pipe", b"data")
    assert not (tmp_path / "pipe").is_file()


def test_a_checkpoint_of_another_run(piggyback, colours, toy):
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", "--out", "out", *FAST)
    assert piggyback(*arguments, "--method", "head").code == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.*")}
    ran = piggyback(*arguments, "--method", "head", "--seed", "9", "--resume")
    ran.refuses("belongs to another run", "seed")
    assert {path: path.read_bytes() for path in Path("out").glob("*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "--data", "pipe.csv"), "'pipe.csv': it is not a regular file"),
        (
            ("train", "--data", "DATA", "--checkpoint", "pipe.csv"),
            "'pipe.csv': it is not a regular",
        ),
        (("train", "--data", "DATA", "--epochs", 10**20), "--epochs"),
        (
            ("compare", "--data", "a=DATA", "--seed", 1, "--seed", 1),
            "--seed 1 1: expected each once",
        ),
        (("predict", "DATA", "--task", "TASK", "--task", "TASK"), "both hold a task 'colours'"),
        (("serve", "tasks", "--workers", 10**5), "--workers 100000"),
        (("serve", "tasks", "--host", "no host"), "no host cannot be had (Name or service"),
    ],
)
def test_what_would_hang_or_fail_late_is_refused_at_once(
    piggyback, trained, colours, toy, arguments, told
):
    os.mkfifo("pipe.csv")
    Path("tasks").mkdir()
    places = {"DATA": str(colours), "TASK": str(trained)}
    given = [
        places.get(str(part), str(part).replace("a=DATA", f"a={colours}")) for part in arguments
    ]
    piggyback(*given, "--backbone", f"{toy}:build").refuses(told)
