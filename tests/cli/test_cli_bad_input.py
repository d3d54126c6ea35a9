"""Bad input gets one clear line, exit code 1, and changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.cli_toys import FAST, Command, Ran


def refused(ran: Ran, *told: str) -> None:
    """Assert that a command gave one line of error, with the words ``told``, and nothing else."""
    assert (ran.code, ran.out) == (1, ""), ran
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, ran.err
    for words in told:
        assert words in ran.err, ran.err


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
    ran = piggyback(command, *arguments, "--backbone", f"{toy}:{factory}")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "pad", "empty", "text"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_task_file(
    piggyback: Command, trained: Path, toy: str, harm: str, command: str
) -> None:
    data = bytearray(trained.read_bytes())
    if harm == "flip":
        data[-40] ^= 1
    bad = {
        "cut": bytes(data[:-7]),
        "flip": bytes(data),
        "pad": bytes(data) + b"\0",
        "empty": b"",
        "text": b"no task file at all" * 10,
    }[harm]
    Path("bad.safetensors").write_bytes(bad)
    refused(piggyback(command, "bad.safetensors"), "bad.safetensors")


def test_a_file_that_would_run_a_strangers_code(
    piggyback: Command, trained: Path, colours: Path
) -> None:
    refused(
        piggyback("evaluate", trained, "--data", colours), "runs that file's code", "--backbone"
    )


def test_an_unknown_backbone(piggyback: Command, colours: Path) -> None:
    refused(
        piggyback("train", "--data", colours, "--backbone", "timm:resnet5"),
        "timm:resnet5",
        "resnet50",
    )


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "ü", ""])
def test_a_task_name_that_is_no_file_name(
    piggyback: Command, colours: Path, toy: str, name: str
) -> None:
    ran = piggyback(
        "train", "--data", colours, "--backbone", f"{toy}:build", f"--name={name or ' '}"
    )
    refused(ran, "task name", "expected letters")
    assert not Path("runs").exists()


def test_a_selection_that_matches_nothing(piggyback: Command, colours: Path, toy: str) -> None:
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "out")
    refused(piggyback(*arguments, "--select", "0.wieght"), "0.wieght", "0.weight")


def test_a_selection_of_what_cannot_be_masked(piggyback: Command, colours: Path, toy: str) -> None:
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "out")
    refused(piggyback(*arguments, "--select", "1.num_batches_tracked"), "1.num_batches_tracked")


def test_folders_that_are_no_classification_data(
    piggyback: Command, colours: Path, toy: str
) -> None:
    Path("empty").mkdir()
    shutil.copytree(colours / "train" / "red", "one/train/red")
    shutil.copytree(colours, "uneven")
    shutil.rmtree("uneven/test/red")
    for folder, told in (
        ("missing", "no such directory"),
        ("empty", "no class folders"),
        ("one", "1 class"),
        ("uneven", "classes of test differ from train's: missing 'red'"),
    ):
        refused(piggyback("train", "--data", folder, "--backbone", f"{toy}:build"), folder, told)


def test_classes_that_differ_from_the_tasks(
    piggyback: Command, trained: Path, colours: Path, toy: str
) -> None:
    shutil.copytree(colours / "test" / "red", "new/crimson")
    shutil.copytree(colours / "test" / "blue", "new/blue")
    ran = piggyback("evaluate", trained, "--data", "new", "--backbone", f"{toy}:build")
    refused(ran, "'colours'", "crimson")


def test_a_corrupt_image(piggyback: Command, trained: Path, colours: Path, toy: str) -> None:
    shutil.copytree(colours / "test", "pictures")
    good = Path("pictures/red/0.png").read_bytes()
    Path("pictures/red/0.png").write_bytes(good[: len(good) // 2])
    refused(
        piggyback("evaluate", trained, "--data", "pictures", "--backbone", f"{toy}:build"),
        *("0.png", "--skip-bad"),
    )
    refused(
        piggyback("predict", "pictures", "--task", trained, "--backbone", f"{toy}:build"), "0.png"
    )


def test_an_input_that_names_no_image(piggyback: Command, trained: Path) -> None:
    refused(piggyback("predict", "nothing/*.png", "--task", trained), "nothing/*.png", "found none")


def test_a_loss_that_is_no_number(piggyback: Command, colours: Path, toy: str) -> None:
    ran = piggyback(
        *("train", "--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "out"),
        *("--method", "finetune", "--finetune-lr", "1e30"),
    )
    assert ran.code == 1
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: colours: ")
    assert "lower learning rates" in last
    assert not list(Path("out").glob("*finetuned*"))


def test_a_place_that_cannot_be_written(piggyback: Command, trained: Path, toy: str) -> None:
    Path("folder").write_text("a file where a folder is wanted")
    ran = piggyback("bake", trained, "--backbone", f"{toy}:build", "--to", "folder/a.safetensors")
    refused(ran, "cannot be written")
    assert Path("folder").read_text() == "a file where a folder is wanted"


def test_a_run_folder_that_cannot_be_made(piggyback: Command, colours: Path, toy: str) -> None:
    Path("file").write_text("in the way")
    arguments = ("--data", colours, "--backbone", f"{toy}:build", *FAST, "--out", "file/run")
    ran = piggyback("train", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert "cannot be written" in ran.err.splitlines()[-1]
    assert Path("file").read_text() == "in the way"


def test_a_checkpoint_of_another_run(
    piggyback: Command, colours: Path, toy: str, tmp_path: Path
) -> None:
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", "--out", "out", *FAST)
    assert piggyback(*arguments, "--method", "head").code == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.*")}
    ran = piggyback(*arguments, "--method", "head", "--seed", "9", "--resume")
    refused(ran, "belongs to another run", "seed")
    assert {path: path.read_bytes() for path in Path("out").glob("*.*")} == before
