"""Hostile task files through all that reads them: a documented error or a whole task, soon and in little memory."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import resource
import time
import zipfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from piggyback import MultiTaskModel, PiggybackError
from piggyback.cli.app import main
from piggyback.errors import TaskFileError
from piggyback.taskfile.file import load, load_file
from piggyback.taskfile.header import header_of
from piggyback.taskfile.task import Task
from support.damage import damaged

LONGEST = 2.0
"""Seconds of the processor that any file may take."""
GROWTH = 300
"""MiB that the process may grow by in all."""
CLASSES = (("stop", "yield", "go"), ("a", "b"), ("x", "y", "z", "w"))
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**19, 1.5, 1e308, -0.0, "", "..", "../../x", "a" * 600),
    *("\u202egpj", "\x1b[31m", "\x00", "nan", [], {}, [[]], {"": []}, [0] * 9, ["x", "x"], [2**30, 2**30]),
    *("classification", "custom", "linear", "conv", "segmentation", "channel", "affine", "ternary", "coded", "raw"),
    *("constant", "F64", "I8", "U8", "F16", "head.weight", "masks", "checksum", "piggyback-task", "3", "99"),
]  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 16), nn.Linear(16, 10)).eval()


def genuine(model: MultiTaskModel, folder: Path) -> list[bytes]:
    """Files of three tasks: plain, ternary, and with normalisation."""
    files = []
    for number, classes in enumerate(CLASSES):
        torch.manual_seed(number)
        model.start_task(f"t{number}", classes, norm="trained" if number == 2 else "frozen")
        with torch.no_grad():
            for name in model.masked_names:
                weight = model.backbone.get_parameter(name)
                weight.masked_fill_(torch.rand(weight.shape) > 0.8, 0.0)
        model.finish_task()
        model.save_task(f"t{number}", folder / "t.safetensors")
        files.append((folder / "t.safetensors").read_bytes())
        model.delete_task(f"t{number}")
    return files


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header, its task description parsed too, and its body without the checksum."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["task"] = json.loads(header["__metadata__"]["task"])
    return header, data[8 + length : -32]


def put_together(header: dict[str, Any], body: bytes) -> bytes:
    """A file with a length and a checksum that fit."""
    header = copy.deepcopy(header)
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and not isinstance(metadata.get("task", ""), str):
        metadata["task"] = json.dumps(metadata["task"])
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    data = len(text).to_bytes(8, "little") + text + body
    return data + hashlib.sha256(data).digest()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in nested JSON."""
    keys = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [found for key in keys for found in [(*path, key), *places(value[key], (*path, key))]]


def edited(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Values of the header replaced, removed, moved or taken from another file."""
    header, body = taken_apart(data)
    donor = taken_apart(other)[0]
    for _ in range(int(rng.integers(1, 4))):
        known = places(header)
        if not known:
            break
        path = known[int(rng.integers(len(known)))]
        parent: Any = header
        for key in path[:-1]:
            parent = parent[key]
        kind, key = int(rng.integers(6)), path[-1]
        if kind == 0:
            parent[key] = copy.deepcopy(HOSTILE[int(rng.integers(len(HOSTILE)))])
        elif kind == 1:
            del parent[key]
        elif kind == 2 and isinstance(parent[key], list):
            rng.shuffle(parent[key])
        elif kind == 3 and isinstance(parent[key], int):
            parent[key] = int(parent[key]) + int(rng.integers(-2, 3))
        elif kind == 4:
            there = places(donor)
            value: Any = donor
            for step in there[int(rng.integers(len(there)))]:
                value = value[step]
            parent[key] = copy.deepcopy(value)
        elif isinstance(parent, dict):
            parent[str(HOSTILE[int(rng.integers(len(HOSTILE)))])] = copy.deepcopy(parent[key])
        else:
            parent.append(copy.deepcopy(parent[key]))
    return put_together(header, body)


def broken(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A damaged file; half of them with a checksum that fits."""
    bad = damaged(data, rng, other)
    if rng.random() < 0.5 and len(bad) > 40:
        bad = bad[:-32] + hashlib.sha256(bad[:-32]).digest()
    return bad


def spliced(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The header of one file with the body of another, or bodies cut together; the checksum fits."""
    header, body = taken_apart(data)
    foreign = taken_apart(other)[1]
    cut = int(rng.integers(len(body) + 1))
    joined = body[:cut] + foreign[cut:] if rng.random() < 0.5 else foreign
    if rng.random() < 0.7:
        joined = (joined + body)[: len(body)]
    return put_together(header, joined)


def other_kinds() -> list[bytes]:
    """Files that are no task files, or that only begin like one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"classes": CLASSES}))
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    texts = [
        json.dumps({f"t{i}": entry for i in range(300)}).encode(),
        b"[" * 100_000,
        b'{"a":' * 99,
    ]
    begun = [len(text).to_bytes(8, "little") + text for text in texts]
    return [*begun, b"", b"\0" * 8, file.getvalue(), pickle.dumps(CLASSES), b"\xff" * 64]


OTHER_KINDS = other_kinds()


def of_another_kind(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Something else, a file in pieces, or two files in one."""
    pieces = [data[:8], data[8:], data + other, (2**63).to_bytes(8, "little") + data[8:]]
    choices = [*OTHER_KINDS, *pieces, rng.bytes(200)]
    return choices[int(rng.integers(len(choices)))]


def tried(model: MultiTaskModel, path: Path, counts: Counter[str]) -> None:
    """Let all readers read a file; an error other than ours ends the test."""
    data = path.read_bytes()
    readers = {
        "header": lambda: header_of(data),
        "load": lambda: load(data),
        "model": lambda: model.load_task(path, name="x"),
    }
    found: dict[str, Any] = {}
    for name, read in readers.items():
        begin = time.process_time()
        try:
            found[name] = read()
        except PiggybackError as error:
            fault = error
        else:
            fault = None
            counts[f"{name} taken"] += 1
        if fault is not None:
            counts[f"{name} {type(fault).__name__}"] += 1
            assert name == "model" or isinstance(fault, TaskFileError), (name, fault)
            assert "\n" not in str(fault), (name, fault)
        assert time.process_time() - begin < LONGEST, name
    assert "header" in found or "load" not in found
    if "model" in found:
        whole(model, found["header"].info.classes, found["load"])
        model.delete_task("x")
    assert model.task_names == ()


def whole(model: MultiTaskModel, classes: tuple[str, ...], task: Task) -> None:
    """Look whether a task that was taken answers by its header."""
    held = model.get_task("x")
    assert held.info.classes == classes == task.info.classes
    assert len(set(classes)) == len(classes)
    with torch.inference_mode():
        outputs = model(torch.ones(1, 3, 8, 8), task="x")
    if task.info.kind in ("classification", "segmentation") and classes:
        assert outputs.shape[1] == len(classes)
    logits = nn.functional.linear(torch.eye(16), task.head["weight"])
    head = model.backbone.get_submodule(model.head_name)
    assert torch.equal(
        logits.isfinite(), nn.functional.linear(torch.eye(16), head.weight).isfinite()
    )


def run(count: int, seed: int, folder: Path) -> Counter[str]:
    rng = np.random.default_rng(seed)
    model = MultiTaskModel(network())
    files = genuine(model, folder)
    path, counts = folder / "bad.safetensors", Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    makers = [broken, edited, edited, edited, spliced, of_another_kind]
    answer = model(torch.ones(1, 3, 8, 8), task=None)
    for step in range(count):
        one, other = rng.integers(len(files), size=2)
        maker = makers[step % len(makers)]
        try:
            path.write_bytes(maker(files[one], files[other], rng))
            tried(model, path, counts)
        except Exception as error:
            error.add_note(f"seed {seed}, step {step}, {maker.__name__}: {path}")
            raise
        if step % 500 == 0:
            shown(path)
    assert torch.equal(model(torch.ones(1, 3, 8, 8), task=None), answer)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < GROWTH
    return counts


def shown(path: Path) -> None:
    """``inspect`` shows a file or says in one line why not."""
    for options in ([], ["--json"], ["--card"]):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main(["inspect", str(path), *options])
        assert "Traceback" not in err.getvalue()
        assert left.value.code in (None, 0, 1)
        assert out.getvalue() or err.getvalue().count("\n") == 1


def test_hostile_files_are_refused_or_whole(tmp_path):
    counts = run(1_200, 0, tmp_path)
    assert counts["load TaskFileError"] > 600
    assert counts["model taken"] > 20


@pytest.mark.slow
def test_a_hundred_thousand_hostile_files(tmp_path):
    counts = run(100_000, 1, tmp_path)
    assert counts["load TaskFileError"] > 80_000


def test_the_genuine_files_are_taken(tmp_path):
    model = MultiTaskModel(network())
    for data in genuine(model, tmp_path):
        (tmp_path / "g.safetensors").write_bytes(data)
        header, body = taken_apart(data)
        task = load_file(tmp_path / "g.safetensors")
        assert load(put_together(header, body)).info == task.info
        tried(model, tmp_path / "g.safetensors", Counter())


def test_a_class_that_is_named_twice_is_refused(tmp_path):
    header, body = taken_apart(genuine(MultiTaskModel(network()), tmp_path)[1])
    header["__metadata__"]["task"] |= {"classes": ["a", "b", "a"], "kind": "other"}
    with pytest.raises(TaskFileError, match="classes"):
        load(put_together(header, body))
