"""The task file: round trips, golden bytes, hostile files, whole writes or none."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load

from golden import tasks as golden
from piggyback.errors import BackboneMismatchError, InputError, TaskFileError, TaskNameError
from piggyback.images.preprocessing import Preprocessing
from piggyback.masks.bits import PackedMask, pack_mask, unpack_mask
from piggyback.masks.rule import MaskRule
from piggyback.network.backbone import BackboneInfo
from piggyback.taskfile.disk import write_whole
from piggyback.taskfile.file import load, load_file, save, save_file
from piggyback.taskfile.header import header_of as file_header
from piggyback.taskfile.header import read_header
from piggyback.taskfile.task import Task, TaskInfo

GOLDEN = Path(__file__).parent.parent / "golden"


def same(a: Task, b: Task) -> bool:
    """Whether two tasks are equal to the last bit, order of masks included."""
    return (
        (a.name, a.info) == (b.name, b.info)
        and list(a.masks) == list(b.masks)
        and all(same_mask(a.masks[n], b.masks[n]) for n in a.masks)
        and same_tensors(a.head, b.head)
        and same_tensors(a.norm, b.norm)
        and same_tensors(a.coefficients, b.coefficients)
    )


def same_mask(a: PackedMask, b: PackedMask) -> bool:
    return (
        a.shape == b.shape
        and torch.equal(unpack_mask(a), unpack_mask(b))
        and torch.equal(a.keep, b.keep)
    )


def same_tensors(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a
    )


def small(rows: int = 20, name: str = "signs") -> Task:
    generator = torch.Generator().manual_seed(0)
    masks = {
        "a.weight": pack_mask(torch.rand(rows, 30, generator=generator) < 0.95),
        "b.weight": pack_mask(torch.rand(rows, 1, 3, 3, generator=generator) < 0.9),
    }
    info = TaskInfo(
        classes=("stop", "go"),
        preprocessing=Preprocessing(64),
        backbone=BackboneInfo("timm:x", "cd" * 32, {"a.weight": "01" * 32, "b.weight": "fe" * 32}),
        provenance={"seed": 1, "scores": [0.5, {"top1": 91.25}]},
    )
    head = {"weight": torch.randn(2, 7, generator=generator), "bias": torch.zeros(2)}
    return Task(name, masks, head, {"bn.running_var": torch.ones(3)}, info)


def rebuilt(
    data: bytes,
    change: Callable[[dict[str, Any], dict[str, Any]], object] = lambda header, task: None,
    body: Callable[[bytes], bytes] = lambda rest: rest,
    text: Callable[[str], str] = lambda header: header,
) -> bytes:
    """A file changed by someone who also writes a right checksum: only the checks are left."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    task = json.loads(header["__metadata__"]["task"])
    change(header, task)
    if "__metadata__" in header and "task" in header["__metadata__"]:
        header["__metadata__"]["task"] = json.dumps(task)
    raw = text(json.dumps(header)).encode()
    whole = len(raw).to_bytes(8, "little") + raw + body(data[8 + length : -32])
    return whole + hashlib.sha256(whole).digest()


def renamed(header: dict[str, Any], old: str, new: str) -> None:
    header[new] = header.pop(old)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_golden_files_load_for_ever(kind: str) -> None:
    data = (GOLDEN / f"v1-{kind}.safetensors").read_bytes()
    found = load(data)
    ternary = kind == "ternary"
    for name, mask in found.masks.items():
        values = golden.values_1(name, ternary)
        assert unpack_mask(mask).to(torch.int8).flatten().tolist() == values
    assert found.head["weight"].flatten().tolist() == [i / 8 for i in range(12)]
    assert found.head["bias"].dtype == torch.bfloat16
    assert found.head["bias"].tolist() == [0.5, -1.0, 2.0]
    assert found.info.classes == ("stop", "Vorfahrt gewähren", "止まれ")
    assert found.info.rule == MaskRule(kind, 0.005)
    assert found.info.backbone.weights["gate.weight"] == f"{golden.value(4):064x}"
    assert found.info.provenance["recipe"] == {"epochs": 6, "lr": 0.0002}
    assert same(found, golden.task_1(ternary))
    assert save(found) == data


def test_golden_file_without_masks() -> None:
    data = (GOLDEN / "v1-head.safetensors").read_bytes()
    found = load(data)
    assert not found.masks
    assert found.head["weight"].tolist() == [[1, 1], [1, 1]]
    assert save(found) == data


def test_golden_files_are_safetensors() -> None:
    tensors = safetensors_load((GOLDEN / "v1-binary.safetensors").read_bytes())
    assert tensors["head.weight"].shape == (3, 4)
    assert tensors.keys() == {
        "masks", "digests", "head.weight", "head.bias", "norm.bn.running_mean", "checksum"
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_task_comes_back(data: st.DataObject) -> None:
    ternary = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    names = data.draw(st.lists(st.text("ab.é0", min_size=1, max_size=9), unique=True, max_size=4))
    masks = {}
    for name in names:
        shape = data.draw(st.lists(st.integers(0, 20), max_size=4))
        mask = torch.rand(shape, generator=generator) < data.draw(st.floats(0, 1))
        if ternary:
            sign = torch.where(torch.rand(shape, generator=generator) < 0.3, -1, 1)
            masks[name] = pack_mask(mask.to(torch.int8) * sign.to(torch.int8))
        else:
            masks[name] = pack_mask(mask)
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.floats(-1e9, 1e9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
    head = {
        name: torch.ones(data.draw(st.lists(st.integers(0, 3), max_size=3)), dtype=dtype)
        for name, dtype in data.draw(
            st.dictionaries(st.text("wxyz.", max_size=5), st.sampled_from(dtypes), max_size=4)
        ).items()
    }
    info = TaskInfo(
        kind=data.draw(st.text(max_size=5)),
        classes=tuple(data.draw(st.lists(st.text(max_size=5), max_size=5, unique=True))),
        rule=MaskRule("ternary" if ternary else "binary", data.draw(st.floats(0, 1))),
        preprocessing=data.draw(st.sampled_from([None, Preprocessing(7, crop_pct=0.5)])),
        backbone=BackboneInfo("src", "00", dict.fromkeys(names, "ab" * 32)),
        provenance=data.draw(st.dictionaries(st.text(), json_values, max_size=4)),
    )
    task = Task("t", masks, head, {}, info)
    assert same(load(save(task)), task)


def test_same_task_same_bytes_and_another_name() -> None:
    assert save(small()) == save(small())
    assert load(save(small()), name="roads").name == "roads"
    with pytest.raises(TaskNameError):
        load(save(small()), name="../roads")


def test_file_round_trip_and_header(tmp_path: Path) -> None:
    task = small()
    path = tmp_path / "signs.safetensors"
    save_file(task, path)
    assert same(load_file(path), task)
    assert load_file(str(path), "roads").name == "roads"
    header = read_header(path)
    assert (header.name, header.weights, header.density) == ("signs", task.weights, task.density)
    assert header.info == replace(task.info, backbone=replace(task.info.backbone, weights={}))
    assert [layer.shape for layer in header.layers] == [(20, 30), (20, 1, 3, 3)]
    assert [layer.kept for layer in header.layers] == [m.kept for m in task.masks.values()]
    assert header.bytes_head == 4 * (14 + 2)
    assert header.bytes_norm == 6  # in float16, which holds these values
    assert header.version == 3
    assert header.bytes_total == path.stat().st_size
    assert sum(layer.bits for layer in header.layers) == 8 * header.bytes_masks
    assert header.bits_per_weight == pytest.approx(8 * header.bytes_masks / task.weights)
    assert list(tmp_path.iterdir()) == [path]


def test_the_header_of_bytes_is_checked_as_a_file_is() -> None:
    data = save(small())
    shapes = {"a.weight": (20, 30), "b.weight": (20, 1, 3, 3)}
    assert file_header(data) == file_header(data, shapes)
    assert [layer.name for layer in file_header(data).layers] == list(shapes)
    with pytest.raises(BackboneMismatchError, match=r"'b\.weight'"):
        file_header(data, {**shapes, "b.weight": (20, 1, 3, 4)})
    with pytest.raises(TaskFileError, match="SHA-256"):
        file_header(data[:-1] + bytes([data[-1] ^ 1]), shapes)


# ---------------------------------------------------------------- what save refuses


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: replace(t, head={"w": torch.ones(2, dtype=torch.complex64)}), "complex64"),
        (lambda t: replace(t, info=replace(t.info, provenance={"x": float("nan")})), "NaN|nan"),
        (lambda t: replace(t, info=replace(t.info, provenance={"x": {1, 2}})), "JSON"),
        (lambda t: replace(t, info=replace(t.info, classes=("\ud800",))), "JSON"),
        (lambda t: replace(t, info=replace(t.info, rule=MaskRule("ternary"))), "planes"),
        (lambda t: replace(t, info=replace(t.info, backbone=BackboneInfo("", "", {"a": "b"}))), "SHA"),
        (lambda t: replace(t, info=replace(t.info, provenance={"x": "y" * 2_000_000})), "header"),
        (lambda t: replace(t, masks={"a": PackedMask((9,), torch.ones(1, dtype=torch.uint8))}), "a"),
        (lambda t: replace(t, masks={"a": PackedMask((3,), torch.tensor([8], dtype=torch.uint8))}), "past"),
        (lambda t: replace(t, head={"\n": torch.ones(1)}), "tensor"),
    ],
)  # fmt: skip
def test_save_refuses_what_load_would_not_read(
    change: Callable[[Task], Task], error: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.safetensors"
    save_file(small(), path)
    before = path.read_bytes()
    with pytest.raises((InputError, TaskFileError), match=error):
        save_file(change(small()), path)
    assert path.read_bytes() == before


# ---------------------------------------------------------------- hostile and damaged files


def header_of(size: int) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda header, task: task["masks"].__setitem__(0, ["a.weight", [size], 1, "coded", 1])


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda d: b"",
    "seven bytes": lambda d: d[:7],
    "cut in the header": lambda d: d[:100],
    "cut in the tensors": lambda d: d[:-40],
    "one byte short": lambda d: d[:-1],
    "padded": lambda d: d + b"\0",
    "twice": lambda d: d + d,
    "header length 2^63": lambda d: b"\xff" * 7 + b"\x7f" + d[8:],
    "header length beyond the file": lambda d: len(d).to_bytes(8, "little") + d[8:],
    "flipped bit in a tensor": lambda d: d[:-50] + bytes([d[-50] ^ 1]) + d[-49:],
    "no JSON": lambda d: (5).to_bytes(8, "little") + b"hello" + d[-64:],
    "no UTF-8": lambda d: rebuilt(d)[:8] + b"\xff" + rebuilt(d)[9:],
    "a pickle": lambda d: b"\x80\x04\x95" + d,
    "JSON list": lambda d: rebuilt(d, text=lambda t: "[" + t + "]"),
    "deep JSON": lambda d: rebuilt(d, text=lambda t: t[:-1] + ',"x":' + "[" * 10**5 + "]" * 10**5 + "}"),
    "duplicate key": lambda d: rebuilt(d, text=lambda t: t[:-1] + ',"masks":{}}'),
    "NaN": lambda d: rebuilt(d, text=lambda t: t[:-1] + ',"x":NaN}'),
    "huge number": lambda d: rebuilt(d, text=lambda t: t[:-1] + ',"x":1e999}'),
    "endless integer": lambda d: rebuilt(d, text=lambda t: t[:-1] + ',"x":' + "9" * 10**5 + "}"),
    "no metadata": lambda d: rebuilt(d, lambda h, t: h.pop("__metadata__")),
    "metadata of numbers": lambda d: rebuilt(d, lambda h, t: h["__metadata__"].update(a=1)),
    "unknown metadata": lambda d: rebuilt(d, lambda h, t: h["__metadata__"].update(a="1")),
    "another format": lambda d: rebuilt(d, lambda h, t: h["__metadata__"].update(format="pt")),
    "version 0": lambda d: rebuilt(d, lambda h, t: h["__metadata__"].update(version="0")),
    "version of letters": lambda d: rebuilt(d, lambda h, t: h["__metadata__"].update(version="x")),
    "unknown dtype": lambda d: rebuilt(d, lambda h, t: h["masks"].update(dtype="F8")),
    "dtype of another size": lambda d: rebuilt(d, lambda h, t: h["masks"].update(dtype="F32")),
    "dtype list": lambda d: rebuilt(d, lambda h, t: h["masks"].update(dtype=["U8"])),
    "negative shape": lambda d: rebuilt(d, lambda h, t: h["masks"].update(shape=[-1])),
    "shape of floats": lambda d: rebuilt(d, lambda h, t: h["masks"].update(shape=[1.0])),
    "shape of bools": lambda d: rebuilt(d, lambda h, t: h["head.bias"].update(shape=[True, 2])),
    "shape that overflows": lambda d: rebuilt(d, lambda h, t: h["masks"].update(shape=[2**31 - 1] * 4)),
    "too many dimensions": lambda d: rebuilt(d, lambda h, t: h["head.bias"].update(shape=[2] + [1] * 9)),
    "extra field": lambda d: rebuilt(d, lambda h, t: h["masks"].update(more=1)),
    "offsets swapped": lambda d: rebuilt(d, lambda h, t: h["masks"]["data_offsets"].reverse()),
    "offsets three": lambda d: rebuilt(d, lambda h, t: h["masks"]["data_offsets"].append(1)),
    "overlap": lambda d: rebuilt(d, lambda h, t: h["head.weight"].update(data_offsets=[0, 56])),
    "gap": lambda d: rebuilt(d, body=lambda b: b + b"12"),
    "tensor of no part": lambda d: rebuilt(d, lambda h, t: h.update(x=h.pop("head.bias"))),
    "no masks tensor": lambda d: rebuilt(d, lambda h, t: h.update({"head.x": h.pop("masks")})),
    "masks nobody has": lambda d: rebuilt(d, lambda h, t: t.update(masks=[])),
    "no checksum": lambda d: rebuilt(d, lambda h, t: h.update({"head.x": h.pop("checksum")})),
    "no description": lambda d: rebuilt(d, lambda h, t: t.clear()),
    "unknown field": lambda d: rebuilt(d, lambda h, t: t.update(more=1)),
    "path as name": lambda d: rebuilt(d, lambda h, t: t.update(name="../../etc/passwd")),
    "number as name": lambda d: rebuilt(d, lambda h, t: t.update(name=1)),
    "classes text": lambda d: rebuilt(d, lambda h, t: t.update(classes="ab")),
    "classes of numbers": lambda d: rebuilt(d, lambda h, t: t.update(classes=[1])),
    "half a character": lambda d: rebuilt(d, lambda h, t: t.update(classes=["\ud800"])),
    "unknown rule": lambda d: rebuilt(d, lambda h, t: t["rule"].update(kind="x")),
    "rule of lists": lambda d: rebuilt(d, lambda h, t: t["rule"].update(kind=[])),
    "threshold text": lambda d: rebuilt(d, lambda h, t: t["rule"].update(threshold="0")),
    "other rule": lambda d: rebuilt(d, lambda h, t: t["rule"].update(kind="ternary")),
    "preprocessing list": lambda d: rebuilt(d, lambda h, t: t.update(preprocessing=[])),
    "image size": lambda d: rebuilt(d, lambda h, t: t["preprocessing"].update(image_size=10**9)),
    "mean text": lambda d: rebuilt(d, lambda h, t: t["preprocessing"].update(mean="abc")),
    "interpolation list": lambda d: rebuilt(d, lambda h, t: t["preprocessing"].update(interpolation=[])),
    "backbone text": lambda d: rebuilt(d, lambda h, t: t.update(backbone="x")),
    "provenance list": lambda d: rebuilt(d, lambda h, t: t.update(provenance=[])),
    "mask record short": lambda d: rebuilt(d, lambda h, t: t["masks"][0].pop()),
    "mask name twice": lambda d: rebuilt(d, lambda h, t: t["masks"][1].__setitem__(0, "a.weight")),
    "mask name of controls": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(0, "a\x1b[2J")),
    "kept too many": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(2, 601)),
    "kept another": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(2, 3)),
    "unknown codec": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(3, "zip")),
    "shapes swapped": lambda d: rebuilt(d, lambda h, t: t["masks"].reverse()),
    "10^12 weights": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(1, [10**6, 10**6])),
    "10^9 weights": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(1, [10**9])),
    "10^7 weights": lambda d: rebuilt(d, lambda h, t: t["masks"][0].__setitem__(1, [10**7])),
    "digests missing one": lambda d: rebuilt(d, lambda h, t: h["digests"].update(shape=[1, 64])),
    "masks emptied": lambda d: rebuilt(d, lambda h, t: h["masks"].update(dtype="I8")),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_get_one_clear_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[case](save(small())))
    tracemalloc.start()
    with pytest.raises(TaskFileError) as caught:
        load_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert peak < 32 << 20


def test_rebuilt_files_are_right_when_nothing_is_changed() -> None:
    assert same(load(rebuilt(save(small()))), small())


def test_newer_version_says_upgrade() -> None:
    newer = rebuilt(save(small()), lambda h, t: h["__metadata__"].update(version="99"))
    with pytest.raises(TaskFileError, match=r"version 99.*upgrade"):
        load(newer)


def test_every_flipped_bit_is_found() -> None:
    data = save(small(4))
    for i in range(len(data)):
        with pytest.raises(TaskFileError):
            load(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])


def test_every_truncation_is_found() -> None:
    data = save(small(4))
    for i in range(len(data)):
        with pytest.raises(TaskFileError):
            load(data[:i])


def test_shapes_are_checked_against_the_backbone(tmp_path: Path) -> None:
    data = save(small())
    path = tmp_path / "signs.safetensors"
    path.write_bytes(data)
    shapes = {"a.weight": (20, 30), "b.weight": (20, 1, 3, 3), "c.weight": (1,)}
    assert same(load(data, expect=shapes), small())
    with pytest.raises(BackboneMismatchError, match=r"\(20, 30\).*\(30, 20\).*timm:x"):
        load(data, expect={**shapes, "a.weight": (30, 20)})
    with pytest.raises(BackboneMismatchError, match=r"signs.safetensors.*did you mean 'a_.weight'"):
        load_file(path, expect={"a_.weight": (20, 30), "b.weight": (20, 1, 3, 3)})


def test_large_even_masks_need_the_shapes() -> None:
    """All kept compresses to nothing, so only the backbone can say that the size is right."""
    shapes = {f"w{i}": (1 << 12, 1 << 12) for i in range(2)}
    masks = {name: PackedMask(s, torch.full((1 << 21,), 255).byte()) for name, s in shapes.items()}
    data = save(Task("big", masks, {}))
    with pytest.raises(TaskFileError, match="expect="):
        load(data)
    assert load(data, expect=shapes).density == 1.0


@pytest.mark.parametrize("ternary", [False, True])
def test_memory_stays_near_what_the_masks_need(ternary: bool) -> None:
    mask = torch.ones(1 << 12, 1 << 12, dtype=torch.int8 if ternary else torch.bool)
    mask.view(-1)[:: 1 << 8] = 0
    info = TaskInfo(rule=MaskRule("ternary" if ternary else "binary"))
    data = save(Task("big", {"w": pack_mask(mask)}, {"weight": torch.zeros(1 << 20)}, info=info))
    need = len(data) + (1 + ternary) * (1 << 21) + (4 << 20)
    tracemalloc.start()
    load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * need


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "large"])
def test_what_is_no_task_file_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    for read in (load_file, read_header):
        with pytest.raises(TaskFileError, match=re.escape(str(path))):
            read(path)


# ---------------------------------------------------------------- whole writes or none


def no_room(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "signs.safetensors"
    save_file(small(), path)
    before = path.read_bytes()
    owner = os if call == "fsync" else Path
    monkeypatch.setattr(owner, call, no_room)
    with pytest.raises(
        TaskFileError, match=r"signs.safetensors: .*No space left.*nothing was changed"
    ):
        save_file(small(30), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_permission_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = tmp_path / "signs.safetensors"
    save_file(small(), path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TaskFileError, match="Permission denied"):
        save_file(small(30), path)
    with pytest.raises(TaskFileError, match="Permission denied"):
        load_file(path)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_missing_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(TaskFileError, match="No such file"):
        save_file(small(), tmp_path / "none" / "signs.safetensors")


def test_links_and_modes_are_kept(tmp_path: Path) -> None:
    real = tmp_path / "real.safetensors"
    save_file(small(), real)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~umask
    link = tmp_path / "link.safetensors"
    link.symlink_to(real)
    save_file(small(30), link)
    assert link.is_symlink()
    assert same(load_file(real), small(30))
    write_whole(link, b"in the place of the link", follow=False)
    assert not link.is_symlink()
    assert same(load_file(real), small(30))
