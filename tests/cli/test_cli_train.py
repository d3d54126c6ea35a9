"""``piggyback train``."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import timm
from safetensors.torch import save_file as save_tensors

from piggyback.cli.loading import load_images, load_sized
from piggyback.taskfile.file import load_file
from piggyback.train.data.size import choose_size
from piggyback.zoo.load import load_backbone, refusal
from support.cli_toys import COLOURS, FAST


def test_a_trained_task_file_holds_classes_backbone_and_scores(trained, toy):
    task = load_file(trained)
    assert (task.name, task.info.classes) == ("colours", COLOURS)
    assert task.info.backbone.source == f"{toy}:build"
    assert 0 < task.density < 1
    assert task.info.provenance["test_accuracy"] > 50


def test_train_says_what_it_will_do_on_stderr_and_the_result_on_stdout(piggyback, toy, colours):
    arguments = ("train", "--data", colours, "--backbone", f"{toy}:build", *FAST)
    ran = piggyback(*arguments, "--name", "squares")
    assert ran.code == 0
    told = " ".join(ran.err.split())
    assert told.startswith(
        "squares masks: 3 classes, 52 train, 8 val (cut from train), 18 test images; "
        "16 px (the files hold 20); 3 epochs of 3 steps (9), batch 16 "
    )
    assert told.count("squares masks: about 1 s") == 1
    assert told.index("about 1 s") < told.index("squares masks 3/3: loss")
    assert "wrote runs/squares/squares.safetensors" in ran.out
    assert max(map(len, (ran.out + ran.err).splitlines())) <= 80
    again = piggyback(*arguments, "--name", "squares", "--resume")
    assert (again.code, again.err) == (0, "")
    assert again.out == ran.out


def test_json_is_all_there_is_on_standard_output(piggyback, toy, colours):
    ran = piggyback(
        *("train", "--data", f"squares={colours}", "--backbone", f"{toy}:build", *FAST),
        *("--method", "head", "--out", "run", "--json"),
    )
    row = json.loads(ran.out)
    assert (row["task"], row["method"], row["bits_per_weight"]) == ("squares", "head", None)
    assert row["bytes"] == Path(row["file"]).stat().st_size


def test_unreadable_images_are_left_out_on_request(piggyback, toy, colours):
    bad = Path("pictures")
    for source in (colours / "train").rglob("*.png"):
        target = bad / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (bad / "red" / "torn.png").write_bytes(source.read_bytes()[:100])
    arguments = ("train", "--data", bad, "--backbone", f"{toy}:build", *FAST, "--method", "head")
    piggyback(*arguments).refuses("torn.png", "--skip-bad")
    assert not Path("runs").exists()
    ran = piggyback(*arguments, "--skip-bad")
    assert ran.code == 0
    assert "torn.png" in ran.err


def test_out_names_the_runs_folder_or_the_task_file(piggyback, toy, colours):
    line = ("train", "--data", colours, "--backbone", f"{toy}:build", *FAST)
    assert piggyback(*line, "--method", "finetune", "--out", "run").code == 0
    assert Path("run/colours.finetuned.safetensors").exists()
    ran = piggyback(*line, "--method", "head", "--out", "tasks/squares.safetensors")
    assert "wrote tasks/squares.safetensors" in ran.out
    assert load_file("tasks/squares.safetensors").name == "squares"
    assert Path("runs/squares/metrics.csv").exists()
    assert piggyback(*line, "--method", "head", "--out", "tasks/squares.safetensors").code == 0
    piggyback(*line, "--out", "squares.pt").refuses("'squares.pt'", ".safetensors")
    # A task from elsewhere is not lost unasked.
    copied = Path("tasks/squares.safetensors").rename("moved.safetensors")
    kept = copied.read_bytes()
    piggyback(*line, "--method", "head", "--out", copied).refuses("'squares'", "--overwrite")
    assert (copied.read_bytes(), Path("runs/moved").exists()) == (kept, False)
    assert piggyback(*line, "--method", "head", "--out", copied, "--overwrite").code == 0
    assert load_file(copied).name == "moved"


def test_a_network_for_one_size_is_built_again_for_the_images_where_it_can_be(colours, tmp_path):
    images = load_images(colours, "colours", skip_bad=False)
    weights = tmp_path / "weights.safetensors"
    for name, sides in (("vit_tiny_patch16_224", (64, 224)), ("vit_small_patch14_dinov2", (518,))):
        module = timm.create_model(name, pretrained=False, num_classes=2)
        save_tensors(module.state_dict(), weights)
        backbone = load_sized(f"timm:{name}", [images], None, weights, None)
        assert (
            backbone.preprocessing == load_backbone(f"timm:{name}", pretrained=False).preprocessing
        )
        assert choose_size(backbone, images.train).side == sides[0]
        assert all(refusal(backbone.module, side) is None for side in sides)


def test_tars_by_pattern_are_trained_on_compared_and_measured(piggyback, toy, colours):
    Path("shards").mkdir()
    for split in ("train", "test"):
        with tarfile.open(f"shards/{split}-0.tar", "w") as tar:
            for file in sorted(colours.glob(f"{split}/*/*.png")):
                tar.add(file, f"{file.parent.name}-{file.name}")
                label = tarfile.TarInfo(f"{file.parent.name}-{file.stem}.cls")
                label.size = len(file.parent.name)
                tar.addfile(label, io.BytesIO(file.parent.name.encode()))
    network = ("--backbone", f"{toy}:build")
    ran = piggyback("train", "--data", "shards/*.tar", *network, *FAST, "--json")
    assert ran.code == 0, ran.err
    learned = load_file(Path("runs/shards/shards.safetensors"))
    assert learned.info.classes == COLOURS
    line = ("evaluate", "runs/shards/shards.safetensors", "--data", "shards/test-0.tar", *network)
    measured = json.loads(piggyback(*line, "--json").out)
    assert measured["images"] == 18
    assert measured["accuracy"] == json.loads(ran.out)["accuracy"]
    compared = ("compare", "--data", "c=shards", "--methods", "head", *network, *FAST, "--json")
    assert json.loads(piggyback(*compared).out)[0]["task"] == "c"
    piggyback("train", "--data", "none-*.tar", *network).refuses("none-*.tar")
    piggyback("train", "--skip-bad", "--data", "shards", *network).refuses("skip-bad")
