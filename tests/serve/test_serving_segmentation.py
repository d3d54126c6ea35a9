"""Segmentation tasks served: maps as in the process, through the engine, over HTTP and on the command line."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from piggyback.cli import main
from piggyback.client import Client
from piggyback.errors import InputError
from piggyback.model.multitask import MultiTaskModel
from piggyback.schemas import Answer
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from piggyback.taskfile.file import load, save
from piggyback.train.evaluation import segment
from support import colour_tasks, map_tasks
from support.fake_engine import served
from support.map_tasks import CLASSES, build, picture, task_file

TASKS = {"streets": (1, 1.0), "centre": (2, 0.5)}
OPTIONS = EngineOptions(watch_s=0, device="cpu", precision="float32", workers=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and pictures of several sizes and formats, one turned by its EXIF tag, one drawn smaller."""
    root = tmp_path_factory.mktemp("streets")
    for name, (seed, seen) in TASKS.items():
        (root / "tasks").mkdir(exist_ok=True)
        (root / "tasks" / f"{name}.safetensors").write_bytes(task_file(name, seed, seen))
    (root / "images").mkdir()
    for number, (size, kind, turned) in enumerate(
        (((40, 30), "PNG", 1), ((30, 50), "JPEG", 6), ((120, 80), "JPEG", 1), ((16, 16), "WEBP", 1))
    ):
        file = root / "images" / f"{number}.{kind.lower()}"
        file.write_bytes(picture(number, size, kind, turned))
    return root


@pytest.fixture(scope="module")
def engine(files: Path) -> Iterator[Engine]:
    with Engine(build(), files / "tasks", options=OPTIONS) as started:
        yield started


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Any]:
    with served(engine) as running:
        yield running


@pytest.fixture(scope="module")
def images(files: Path) -> list[Path]:
    return sorted((files / "images").iterdir())


def in_process(files: Path, task: str, images: list[Path]) -> list[np.ndarray]:
    model = MultiTaskModel(build())
    model.load_task(files / "tasks" / f"{task}.safetensors")
    return [one.labels.numpy() for one in segment(model, task, images)]


def pixels(answer: Answer) -> np.ndarray:
    assert answer.label_map is not None
    return np.array(Image.open(io.BytesIO(answer.label_map.png)))


@pytest.mark.parametrize("task", TASKS)
def test_maps_are_those_of_the_process_to_the_bit(
    task: str, files: Path, images: list[Path], engine: Engine, server: Any
) -> None:
    wanted = in_process(files, task, images)
    assert [labels.shape for labels in wanted] == [(30, 40), (30, 50), (80, 120), (16, 16)]
    assert len(np.unique(wanted[0])) >= 2
    with Client(server.address) as client:
        for answers in (engine.predict(images, task), client.predict(images, task)):
            assert answers[0].timing.batch == len(images)
            for answer, labels in zip(answers, wanted, strict=True):
                assert np.array_equal(pixels(answer), labels)
                found = answer.label_map
                assert (found.height, found.width) == labels.shape
                seen = (labels != 255).sum()
                for share in found.shares:
                    right = 100 * (labels == share.label).sum() / seen
                    assert share.percent == pytest.approx(right, abs=1e-3)
                    assert CLASSES[share.label] == share.name
                assert sum(share.percent for share in found.shares) == pytest.approx(100)
                assert answer.classes == ()


def test_json_has_the_picture_as_predict_writes_it(
    server: Any,
    images: list[Path],
    tmp_path: Path,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = httpx.post(
        f"{server.address}/v1/tasks/streets/predict",
        content=images[0].read_bytes(),
        headers={"Content-Type": "image/png"},
    )
    (said,) = done.json()["answers"]
    png = b64decode(said["label_map"]["png"], validate=True)
    opened = Image.open(io.BytesIO(png))
    assert opened.mode == "P"
    first = said["label_map"]["classes"][0]
    red, green, blue = opened.getpalette()[3 * first["label"] :][:3]
    assert first["colour"] == f"#{red:02x}{green:02x}{blue:02x}"

    shown = {}
    asked = ["predict", str(files / "images"), "--json", "--out"]
    network = f"{map_tasks.__file__}:parts"
    for where, options in (
        ("here", ["--task", str(files / "tasks" / "streets.safetensors"), "--backbone", network]),
        ("there", ["--task", "streets", "--url", server.address]),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*asked, str(tmp_path / where), *options])
        assert ended.value.code == 0
        shown[where] = json.loads(capsys.readouterr().out.replace(f"/{where}/", "/"))
    assert shown["here"] == shown["there"]
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
    assert (tmp_path / "here" / "0.png").read_bytes() == png


def test_whatever_holds_a_picture_gets_a_map_of_its_size(engine: Engine) -> None:
    image = Image.open(io.BytesIO(picture(5, (30, 50), "PNG", turned=6)))
    upright = np.array(image.transpose(Image.Transpose.ROTATE_270))
    tensor = torch.from_numpy(upright).permute(2, 0, 1)
    first, *others = [engine.predict(one, "streets") for one in (image, upright, tensor)]
    assert pixels(first).shape == (30, 50)
    for other in others:
        assert np.array_equal(pixels(other), pixels(first))
    assert pixels(engine.predict(torch.zeros(3, 16, 16), "centre")).shape == (16, 16)


def test_no_task_is_inferred_from_maps(engine: Engine, server: Any, images: list[Path]) -> None:
    for tasks, name in ((None, ""), (["centre"], "'centre' ")):
        with pytest.raises(InputError, match=f"{name}labels every pixel"):
            engine.infer(images[0], tasks)
    with Client(server.address) as client, pytest.raises(InputError, match="labels every pixel"):
        client.predict(images[0])
    model = MultiTaskModel(build())
    model.add_task(load(task_file("streets")))
    with pytest.raises(InputError, match="'streets' labels every pixel"):
        model.infer_task(torch.zeros(1, 3, 16, 16))


def test_what_does_not_suit_the_network_is_one_line(tmp_path: Path) -> None:
    whole = load(task_file("signs"))
    rows = replace(whole, info=replace(whole.info, kind="classification"))
    (tmp_path / "signs.safetensors").write_bytes(save(rows))
    many = replace(whole.info, classes=tuple(f"c{i}" for i in range(256)))
    wide = {name: t.repeat_interleave(86, 0)[:256] for name, t in whole.head.items()}
    (tmp_path / "many.safetensors").write_bytes(save(replace(whole, info=many, head=wide)))
    (tmp_path / "streets.safetensors").write_bytes(task_file("streets"))
    with Engine(build(), tmp_path, options=OPTIONS) as engine:
        assert [status.name for status in engine.tasks()] == ["streets"]
        refused = engine.refused()
    assert "scores every pixel" in refused["signs.safetensors"]
    assert "256 classes: expected at most 255" in refused["many.safetensors"]
    assert not any("\n" in why for why in refused.values())


def test_a_network_of_rows_draws_no_map(tmp_path: Path) -> None:
    rows = load(colour_tasks.task_file("colours"))
    maps = replace(rows, info=replace(rows.info, kind="segmentation"))
    (tmp_path / "colours.safetensors").write_bytes(save(rows))
    (tmp_path / "maps.safetensors").write_bytes(save(maps))
    with Engine(colour_tasks.Colours(), tmp_path, options=OPTIONS) as engine:
        red = colour_tasks.picture("red")
        with pytest.raises(InputError, match="expected 1 label maps"):
            engine.predict(red, "maps")
        (answer,) = engine.infer(red)  # passes over the other
        assert answer.classes[0] == "colours red"


def test_a_task_replaced_while_it_waits_is_drawn_at_the_image_s_size(
    tmp_path: Path, images: list[Path]
) -> None:
    file = tmp_path / "streets.safetensors"
    file.write_bytes(task_file("streets", 1))
    with Engine(build(), tmp_path, options=OPTIONS) as engine:
        file.write_bytes(task_file("streets", 2, seen=0.5))  # not looked at again before it is read
        answer = engine.predict(images[0], "streets")
        assert (pixels(answer) == 255).any()
        assert pixels(answer).shape == (30, 40)


def test_predict_with_a_url_says_what_it_needs(
    server: Any, images: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["predict", str(images[0]), "--url", server.address]
    for options, words in (
        (["--task", "streets"], "task 'streets' labels every pixel: give --out DIR"),
        (["--task", "streets", "--task", "centre", "--out", str(tmp_path)], "give one --task"),
        (["--infer-task", "--out", str(tmp_path)], "give one --task"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*asked, *options])
        assert ended.value.code
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
