"""``piggyback serve``: what it takes, and what it refuses before anything is loaded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import BackboneInfo
from piggyback.serve.http import server
from piggyback.serve.http.limits import Limits
from piggyback.serve.options import EngineOptions
from piggyback.taskfile.file import save_file
from piggyback.taskfile.task import Task, TaskInfo


@dataclass
class Seen:
    """What the server and the engine were given."""

    engine: list[Any] = field(default_factory=list)
    app: Any = None
    host: str = ""
    port: int = -1
    log_level: str = ""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Puts stand-ins in the place of the engine and the server; the server starts the engine and ends."""
    found = Seen()

    def engine(*arguments: Any) -> Any:
        found.engine = list(arguments)
        refused = {"torn.safetensors": "it is torn"}
        return SimpleNamespace(
            source="a network", speed="float32", tasks=lambda: [1], refused=lambda: refused
        )

    def run(
        app: Any, host: str, port: int, *, say: Callable[[str], object], log_level: str
    ) -> None:
        found.app, found.host, found.port, found.log_level = app, host, port, log_level
        app.state.service._start()
        say(f"ready at http://{host}:{port}")

    monkeypatch.setattr("piggyback.serve.engine.Engine", engine)
    monkeypatch.setattr(server, "run", run)
    return found


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """A tasks directory with one file."""
    made = tmp_path / "tasks"
    made.mkdir()
    shutil.copy(trained, made / "colours.safetensors")
    return made


def head_only(folder: Path, name: str, source: str, size: int = 64) -> None:
    info = TaskInfo(
        classes=("a", "b"),
        backbone=BackboneInfo(source, "0" * 64),
        preprocessing=Preprocessing(size),
    )
    save_file(
        Task(name, {}, {"weight": torch.zeros(2, 3)}, info=info), folder / f"{name}.safetensors"
    )


def test_the_defaults(piggyback, seen, folder, toy):
    ran = piggyback("serve", folder, "--backbone", f"{toy}:build")
    assert ran.code == 0
    assert ran.out == "ready at http://127.0.0.1:8000 (1 task; a network; float32)\n"
    assert "left out: torn.safetensors: it is torn\n" in ran.err
    backbone, tasks, memory, options = seen.engine
    assert backbone.source == f"{toy}:build"
    assert (tasks, memory, options) == (str(folder), 2 * 2**30, EngineOptions(decode_apart=True))
    assert (seen.app.state.service.limits, seen.app.state.service.token) == (Limits(), None)
    assert (seen.host, seen.port, seen.log_level) == ("127.0.0.1", 8000, "info")


def test_options_get_where_they_belong(piggyback, seen, folder, toy, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    ran = piggyback(
        *("serve", folder, "--backbone", f"{toy}:build", "--host", "::1", "--port", "9000"),
        *("--memory", "1.5GB", "--max-body", "1MiB", "--max-pixels", "1000", "--max-batch", "4"),
        *("--max-queue", "9", "--timeout", "2.5", "--workers", "3", "--device", "cpu"),
        *("--precision", "bfloat16", "--compile", "--token-file", tmp_path / "token"),
        *("--log-level", "warning"),
    )
    assert ran.code == 0
    assert seen.engine[2] == 1_500_000_000
    assert seen.engine[3] == EngineOptions(
        max_batch=4,
        max_queue=9,
        workers=3,
        device="cpu",
        precision="bfloat16",
        compile=True,
        max_pixels=1000,
        decode_apart=True,
    )
    assert seen.app.state.service.limits == Limits(body_bytes=2**20, timeout_s=2.5)
    assert seen.app.state.service.token == "s3cret"
    assert (seen.host, seen.port, seen.log_level) == ("::1", 9000, "warning")
    assert "s3cret" not in ran.out + ran.err


def test_the_token_may_be_in_the_environment(piggyback, seen, folder, toy, monkeypatch):
    monkeypatch.setenv("PIGGYBACK_TOKEN", "s3cret")
    piggyback("serve", folder, "--backbone", f"{toy}:build")
    assert seen.app.state.service.token == "s3cret"
    monkeypatch.setenv("PIGGYBACK_TOKEN", "")
    ran = piggyback("serve", folder, "--backbone", f"{toy}:build")
    ran.refuses("$PIGGYBACK_TOKEN: expected a token")


def test_the_backbone_is_the_first_readable_files(piggyback, seen, tmp_path, monkeypatch):
    asked: list[Any] = []

    def load(spec: str, **options: Any) -> str:
        asked.append((spec, options["image_size"]))
        return spec

    monkeypatch.setattr("piggyback.zoo.load.load_backbone", load)
    head_only(tmp_path, "b", "timm:resnet18", 96)
    head_only(tmp_path, "c", "timm:resnet50")
    (tmp_path / "a.safetensors").write_bytes(b"no task file")
    (tmp_path / "notes.txt").write_text("hello")
    assert piggyback("serve", tmp_path).code == 0
    assert piggyback("serve", tmp_path, "--backbone", "timm:resnet34").code == 0
    assert asked == [("timm:resnet18", 96), ("timm:resnet34", 96)]
    assert seen.engine[0] == "timm:resnet34"


def test_a_file_that_wants_code_run_is_not_followed(piggyback, seen, folder):
    piggyback("serve", folder).refuses("runs that file's code", "give --backbone")
    assert seen.app is None


def test_an_empty_folder_needs_a_backbone(piggyback, seen, tmp_path, toy):
    (tmp_path / "empty").mkdir()
    ran = piggyback("serve", tmp_path / "empty")
    ran.refuses("no task files (NAME.safetensors) in it; give --backbone")
    assert "did you mean" not in ran.err
    assert piggyback("serve", tmp_path / "empty", "--backbone", f"{toy}:build").code == 0
    assert seen.engine[0].source == f"{toy}:build"


def test_the_folder_above_is_a_near_miss(piggyback, folder):
    assert f"did you mean {str(folder)!r}?" in piggyback("serve", folder.parent).err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("none",), "tasks directory 'none': no such folder"),
        (("tasks/colours.safetensors",), "found a file; give its folder: 'tasks'"),
        (("bad",), "none of its 1 task files can be read; x.safetensors: "),
        (("tasks", "--memory", "2 G"), "--memory '2 G': expected bytes above 0, such as 2GiB"),
        (("tasks", "--max-body", "0"), "--max-body '0': expected at least 1 byte"),
        (("tasks", "--token-file", "none"), "token file 'none': cannot be read"),
        (("tasks", "--replicas", "2"), "--replicas: it is for --ray"),
        (("tasks", "--autoscale", "1:2"), "--autoscale: it is for --ray"),
        (("tasks", "--ray", "--autoscale", "2:1"), "--autoscale '2:1': expected MIN:MAX"),
        (("tasks", "--ray", "--autoscale", "many"), "--autoscale 'many': expected MIN:MAX"),
        (("tasks", "--ray", "--autoscale", "1:2", "--replicas", "2"), "leave one out"),
        (("tasks", "--ray", "--backbone", "a", "--head", "fc"), "--head: with --ray"),
        (("tasks", "--ray", "--backbone", "a", "--port", "0"), "--port 0: with --ray"),
        (("tasks", "--ray", "--backbone", "a", "--log-level", "error"), "--log-level: with --ray"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(piggyback, seen, folder, options, words):
    (folder.parent / "bad").mkdir()
    (folder.parent / "bad" / "x.safetensors").write_bytes(b"x")
    piggyback("serve", *options).refuses(words)
    assert seen.app is None


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_a_missing_extra_is_named(piggyback, folder, toy, missing, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("piggyback.serve.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    ran = piggyback("serve", folder, "--backbone", f"{toy}:build")
    ran.refuses('pip install ".[serve]"')


def test_help_shows_the_limits_own_defaults(piggyback):
    text = " ".join(piggyback("serve", "--help").out.split())
    assert f"{Limits().body_bytes // 2**20}MiB" in text
    assert f"default: {Limits().timeout_s}" in text
    assert f"default: {EngineOptions().max_batch};" in text


def test_ray_gets_the_same_choices(piggyback, tmp_path, monkeypatch):
    cluster = pytest.importorskip("piggyback.serve.cluster")
    given: list[Any] = []

    def run(options: Any, *, say: Callable[[str], object], **where: Any) -> None:
        given.append((options, where))
        say("ready at http://127.0.0.1:8000")

    monkeypatch.setattr(cluster, "run", run)
    head_only(tmp_path, "signs", "timm:resnet18")
    ran = piggyback("serve", tmp_path, "--ray", "--replicas", "4", "--max-batch", "8")
    assert (ran.code, ran.out) == (0, "ready at http://127.0.0.1:8000\n")
    ran = piggyback("serve", tmp_path, "--ray", "--autoscale", "2:5")
    assert ran.code == 0
    (options, where), (scaled, _) = given
    assert scaled.autoscale == (2, 5)
    assert where == {"host": "127.0.0.1", "port": 8000}
    assert options == replace(
        cluster.ClusterOptions(str(tmp_path), "timm:resnet18"),
        memory=2 * 2**30,
        engine=EngineOptions(max_batch=8, decode_apart=True),
        replicas=4,
    )
