"""Pickles that are read as data: what is not on the list is refused by name, and nothing is ever run."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from piggyback.errors import PiggybackError, TaskFileError
from piggyback.lab.official.packs import import_official
from piggyback.lab.official.torch_files import Record, read_archive, read_pickle
from support.official_packs import FORMATS, made_pack, small


class Calls:
    """Pickled as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


class Custom(nn.Module):
    """A module class that is not torch's own."""


def hostile(mark: Path) -> dict[str, tuple[Any, str]]:
    """Objects that would write ``mark`` when unpickled, and the name each must be refused by."""
    code = f"open({str(mark)!r}, 'w').close()"
    touch = Calls(os.system, f"touch {mark}")
    return {
        "system": (touch, f"{os.system.__module__}.system"),
        "eval": (Calls(eval, code), "__builtin__.eval"),
        "getattr": (Calls(getattr, "text", "upper"), "__builtin__.getattr"),
        "open": (Calls(builtins.open, str(mark), "w"), "io.open"),
        "in a list": ([1, {"a": (touch,)}], f"{os.system.__module__}.system"),
        "an argument": (Calls(dict, [("a", touch)]), "__builtin__.dict"),
        "a state": (Calls(torch.nn.Identity, state=touch), f"{os.system.__module__}.system"),
        "a class": (Calls(Custom), f"{Custom.__module__}.Custom"),
        "torch's": (Calls(torch.load, str(mark)), "torch.serialization.load"),
    }


@pytest.mark.parametrize("case", hostile(Path("x")))
@pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}]
)
def test_hostile_pickles_are_refused_by_name_and_not_run(case, options, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "packed.pt"
    value, name = hostile(mark)[case]
    torch.save({"x": value}, path, **options)
    with pytest.raises(TaskFileError, match="nothing of it was run") as caught:
        read_archive(path)
    if options.get("pickle_protocol"):
        name = name.replace("__builtin__", "builtins")
    assert f"it holds {name!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


LINEAR = b"ctorch.nn.modules.linear\nLinear\n"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"(ios\nsystem\n.", "os.system"),
        (b"cposix\nsystem\nU\x04true\x85R.", "posix.system"),
        (b"\x80\x02\x82\x01.", "ValueError"),
        (b"ctorch.nn.modules.linear\nLinear.__init__\n.", "Linear.__init__"),
        (b"ctorch.nn.modules.module os\nsystem\n.", "torch.nn.modules.module os.system"),
        (b"(U\x04file" + LINEAR + b"tQ.", "torch.nn.modules.linear.Linear"),
        # Calls, and attributes, of what the list's names stand for.
        (b"ctorch\nFloatStorage\n)R.", "TypeError"),
        (LINEAR + b"(K\x01tR.", "TypeError"),
        (LINEAR + b"}U\x04nameU\x01xsb.", "TypeError"),
        (LINEAR + b")\x81K\x01b.", "TypeError"),
        (b"ctorch._utils\n_rebuild_tensor\nN}U\x08__code__K\x01s\x86b.", "TypeError"),
        (b"}U\x01ab.", "UnpicklingError"),
    ],
)
def test_pickles_that_torch_does_not_write(code, name):
    with pytest.raises(TaskFileError) as caught:
        read_pickle(io.BytesIO(code))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_is_a_record_whatever_its_attributes_say():
    layer = nn.Identity()
    layer.__dict__["__setstate__"] = layer.__dict__["name"] = "text"
    found = read_pickle(io.BytesIO(pickle.dumps([layer, nn.ReLU()], 2)))
    assert all(isinstance(record, Record) for record in found)
    assert found[0].name == "torch.nn.modules.linear.Identity"
    assert found[0].state["name"] == "text"
    assert found[1].name == "torch.nn.modules.activation.ReLU"


def test_what_containers_come_as():
    value = {"a": [1, -2, 1 << 70], 5: (None, True, 2.5), "é": {"x": ()}}
    for protocol in (1, 2, 4):
        assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def storage(key: bytes, numel: bytes = b"K\x01") -> bytes:
    return b"(U\x07storagectorch\nFloatStorage\n" + key + b"U\x03cpu" + numel + b"NtQ"


def tensor(stored: bytes, shape: bytes, stride: bytes) -> bytes:
    head = b"ctorch._utils\n_rebuild_tensor\n("
    return head + stored + b"K\x00(" + shape + b"t(" + stride + b"ttR"


@pytest.mark.parametrize(
    "code",
    [
        b"]" * (1 << 20),
        b"X\xff\xff\xff\x7fabc",
        b"Nr\xff\xff\xff\x7f",
        storage(b"U\x02\n1"),
        tensor(storage(b"U\x010"), b"K\x01", b"J\xff\xff\xff\xff"),
        tensor(storage(b"U\x010", b"K\x05"), b"K\x02", b"K\x09"),
        tensor(storage(b"U\x010"), b"J\0\0\0\x40", b"K\x00"),
        storage(b"U\x010", b"J\xff\xff\xff\x7f"),
    ],
    ids=["steps", "text", "memo", "key", "negative", "beyond", "one number", "numbers"],
)
def test_few_bytes_cannot_ask_for_much(code):
    def storages(key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        if numel > 100:
            raise ValueError(numel)
        return torch.zeros(numel, dtype=dtype)

    with pytest.raises(TaskFileError, match="get it again") as caught:
        read_pickle(io.BytesIO(b"\x80\x02" + code + b"."), storages)
    assert len(str(caught.value)) < 200


def test_tensors_and_storages_beyond_the_file_are_refused(tmp_path):
    path = tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(4, 4, dtype=torch.uint8)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    for find, put in ((b"K\x04K\x04\x86", b"K\x04K\x05\x86"), (b"K\x10", b"K\x11")):
        with zipfile.ZipFile(path, "w") as file:
            for name, data in parts.items():
                file.writestr(name, data.replace(find, put) if name.endswith("data.pkl") else data)
        with pytest.raises(TaskFileError):
            read_archive(path)
    torch.save(torch.zeros(100), path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    path.write_bytes(old.replace(b"K\x64", b"J\0\0\0\x40"))  # 1 << 30 numbers
    with pytest.raises(TaskFileError):
        read_archive(path)
    path.write_bytes(old[:-1])
    with pytest.raises(TaskFileError, match="cut off"):
        read_archive(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "packed.pt"
    cases = {
        b"": "empty",
        b"text\n" * 99: "does not begin as torch.save does",
        pickle.dumps({"a": 1}, 2): "does not begin as torch.save does",
        b"PK\x03\x04" + b"x" * 99: "zip archive cannot be read",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(TaskFileError, match=message):
            read_archive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(TaskFileError, match=r"'data.pkl' is compressed"):
        read_archive(path)


def test_damaged_packs_are_refused_whatever_the_damage(tmp_path):
    backbone, path = small("densenet121"), tmp_path / "packed.pt"
    refused = 0
    rng = random.Random(0)
    for write in FORMATS.values():
        write(made_pack("densenet121", backbone.module), path)
        whole = path.read_bytes()
        for attempt in range(90):
            bad = bytearray(whole)
            if attempt % 3 == 0:
                bad = bad[: rng.randrange(len(bad))]
            else:  # where the pickles are, or a zip archive's table of contents
                near = rng.randrange(min(len(bad), 4000))
                bad[near if attempt % 3 == 1 else ~near] = rng.randrange(256)
            path.write_bytes(bad)
            with contextlib.suppress(PiggybackError):
                import_official(path, "flowers", "densenet121", backbone)
                refused -= 1
            refused += 1
    assert refused > 100  # the rest hit source texts, hooks, or numbers of the classifier
