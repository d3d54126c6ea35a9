"""The tasks of a folder: files come, change and go, and what is held always matches its version."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from piggyback.errors import (
    BackboneMismatchError,
    InputError,
    PiggybackError,
    TaskFileError,
    TaskNameError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.kinds.classification import Classification
from piggyback.serve.store import stores
from piggyback.serve.store.folder import TaskEntry, TaskFolder, version_of
from piggyback.serve.store.stores import LocalStore, Stamp
from piggyback.taskfile.file import save
from piggyback.taskfile.header import TaskHeader, header_of
from piggyback.taskfile.task import Task, TaskInfo


@cache
def made(number: int) -> bytes:
    """A task file like no other; all have the same size."""
    head = {"weight": torch.full((2, 40), float(number))}
    return save(Task("signs", {}, head, info=TaskInfo(classes=("stop", "go"))))


def check(data: bytes, name: str) -> TaskHeader:
    return header_of(data)


def nothing(*_: object) -> None:
    """What happens when nothing does."""


class Counted(LocalStore):
    """Counts reads, and lets something happen before and after them, and after writes."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.reads = 0
        self.on_read: Callable[[str], None] = nothing
        self.after_read: Callable[[str], None] = nothing
        self.after_write: Callable[[str], None] = nothing

    def read(self, name: str) -> bytes:
        self.reads += 1
        self.on_read(name)
        data = super().read(name)
        self.after_read(name)
        return data

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        self.after_write(name)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


@pytest.fixture
def store(place: Path) -> Counted:
    return Counted(place)


@pytest.fixture
def retired() -> list[tuple[str, bool]]:
    """Version of each entry that is served no longer, and whether its task is gone."""
    return []


@pytest.fixture
def folder(store: Counted, retired: list[tuple[str, bool]]) -> TaskFolder:
    return TaskFolder(store, check, lambda entry, gone: retired.append((entry.version, gone)))


@pytest.fixture
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are trusted as soon as they lie there."""
    monkeypatch.setattr(stores, "SETTLE_S", -1.0)


def lay(place: Path, name: str, data: bytes) -> None:
    (place / f"{name}.safetensors").write_bytes(data)


def versions(folder: TaskFolder) -> dict[str, str]:
    return {name: entry.version for name, entry in folder.entries.items()}


# -- scan ------------------------------------------------------------------------------------------


def test_files_come_change_and_go(
    place: Path, folder: TaskFolder, retired: list[tuple[str, bool]]
) -> None:
    folder.scan()
    assert not folder.entries
    lay(place, "signs", made(1))
    lay(place, "letters", made(2))
    folder.scan()
    assert versions(folder) == {"signs": version_of(made(1)), "letters": version_of(made(2))}
    signs = folder.entry("signs")
    assert signs == TaskEntry(
        "signs", version_of(made(1)), len(made(1)), Classification(("stop", "go")), None
    )
    folder.scan()
    assert not retired
    lay(place, "signs", made(3))
    folder.scan()
    assert folder.entry("signs").version == version_of(made(3))
    assert retired == [(signs.version, False)]
    (place / "letters.safetensors").unlink()
    folder.scan()
    assert list(folder.entries) == ["signs"]
    assert retired[1:] == [(version_of(made(2)), True)]
    assert not folder.refused
    assert folder.problem is None


@pytest.mark.usefixtures("_settled")
def test_a_scan_of_what_did_not_change_reads_nothing(
    place: Path, store: Counted, folder: TaskFolder
) -> None:
    for number in range(300):
        lay(place, f"t{number}", made(1))
    lay(place, "bad", b"bad")
    folder.scan()
    assert store.reads == 301
    held = folder.entries
    folder.scan()
    assert store.reads == 301
    assert folder.entries is held
    lay(place, "bad", b"another")
    folder.scan()
    assert store.reads == 302


def test_a_half_written_file_is_refused_until_it_is_whole(place: Path, folder: TaskFolder) -> None:
    data = made(1)
    for length in (0, 7, 40, len(data) - 1):
        lay(place, "signs", data[:length])
        folder.scan()
        assert not folder.entries
        assert list(folder.refused) == ["signs.safetensors"]
        assert "cut off" in folder.refused["signs.safetensors"]
    lay(place, "signs", data)
    folder.scan()
    assert list(folder.entries) == ["signs"]
    assert not folder.refused


def test_a_bad_replacement_leaves_the_old_version_served(
    place: Path, folder: TaskFolder, retired: list[tuple[str, bool]]
) -> None:
    lay(place, "signs", made(1))
    folder.scan()
    entry = folder.entry("signs")
    lay(place, "signs", made(1)[:-5] + b"wrong")
    folder.scan()
    assert folder.entry("signs") is entry
    assert "SHA-256" in folder.refused["signs.safetensors"]
    with pytest.raises(
        UnavailableError, match=r"'signs'.* replaced by one that cannot be.*SHA-256"
    ):
        folder.read(entry)
    lay(place, "signs", made(1))
    folder.scan()
    assert not folder.refused
    assert folder.read(entry) == (entry, made(1))
    assert not retired


def test_what_the_check_refuses_is_not_served(place: Path, store: Counted) -> None:
    def picky(data: bytes, name: str) -> TaskHeader:
        if name == "other":
            raise BackboneMismatchError("task 'other' was learned on other weights")
        if name == "custom":
            raise InputError("task 'custom': its head is a module of its own")
        return header_of(data)

    folder = TaskFolder(store, picky, nothing)
    for name in ("other", "custom", "signs"):
        lay(place, name, made(1))
    folder.scan()
    assert list(folder.entries) == ["signs"]
    assert dict(folder.refused) == {
        "other.safetensors": "task 'other' was learned on other weights",
        "custom.safetensors": "task 'custom': its head is a module of its own",
    }
    (place / "other.safetensors").unlink()
    folder.scan()
    assert list(folder.refused) == ["custom.safetensors"]
    with pytest.raises(UnknownTaskError, match="its file is refused: task 'custom'"):
        folder.entry("custom")


def test_a_file_that_cannot_name_a_task_is_refused_and_shown_safely(
    place: Path, folder: TaskFolder
) -> None:
    lay(place, "my task", made(1))
    lay(place, "two\nlines", made(1))
    (Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9.safetensors"))).write_bytes(made(1))
    folder.scan()
    assert not folder.entries
    assert sorted(folder.refused) == [
        r"'caf\udce9'.safetensors",
        r"'two\nlines'.safetensors",
        "my task.safetensors",
    ]
    "".join((*folder.refused, *folder.refused.values())).encode()  # can be shown
    assert all("expected letters" in why for why in folder.refused.values())
    for path in place.iterdir():
        path.unlink()
    folder.scan()
    assert not folder.refused


@pytest.mark.usefixtures("_settled")
def test_a_file_that_cannot_be_read_is_tried_again_without_a_change(
    place: Path, store: Counted, folder: TaskFolder
) -> None:
    def broken(name: str) -> None:
        raise UnavailableError(f"{name}.safetensors: cannot be read (Input/output error)")

    def short(name: str) -> None:
        raise MemoryError

    lay(place, "signs", made(1))
    for trouble, reason in ((broken, "Input/output error"), (short, "memory was too short")):
        store.on_read = trouble
        folder.scan()
        assert not folder.entries
        assert reason in folder.refused["signs.safetensors"]
    store.on_read = nothing
    folder.scan()
    assert list(folder.entries) == ["signs"]
    assert not folder.refused
    store.on_read = broken
    time.sleep(0.02)
    lay(place, "signs", made(2))
    folder.scan()
    assert versions(folder) == {"signs": version_of(made(1))}  # still served
    store.on_read = nothing
    folder.scan()
    assert versions(folder) == {"signs": version_of(made(2))}


def test_a_listing_that_misses_a_file_removes_no_task(place: Path, store: Counted) -> None:
    """A listing may miss a file that another is just being renamed over."""
    listed: list[dict[str, Stamp]] = []
    store.list = lambda: listed[-1]  # type: ignore[method-assign]
    folder = TaskFolder(store, check, nothing)
    lay(place, "signs", made(1))
    listed.append({"signs": 1})
    folder.scan()
    listed.append({})
    folder.scan()
    assert list(folder.entries) == ["signs"]
    (place / "signs.safetensors").unlink()
    folder.scan()
    assert not folder.entries


# -- read ------------------------------------------------------------------------------------------


def test_read_gives_the_bytes_and_the_version_that_they_are(
    place: Path, folder: TaskFolder, retired: list[tuple[str, bool]]
) -> None:
    lay(place, "signs", made(1))
    folder.scan()
    old = folder.entry("signs")
    assert folder.read(old) == (old, made(1))
    lay(place, "signs", made(2))
    new, data = folder.read(old)
    assert (new.version, data) == (version_of(made(2)), made(2))
    assert folder.entry("signs") is new
    assert retired == [(old.version, False)]
    assert folder.read(old) == (new, made(2))  # asked by who still knows the old one
    lay(place, "signs", made(1))
    assert folder.read(old) == (old, made(1))  # it came back
    assert folder.entry("signs") == old


def test_read_of_what_is_gone_and_of_what_became_no_task_file(
    place: Path, folder: TaskFolder
) -> None:
    for name in ("signs", "letters", "large"):
        lay(place, name, made(1))
    folder.scan()
    path = place / "signs.safetensors"
    path.unlink()
    with pytest.raises(UnknownTaskError, match="'signs'"):
        folder.read(folder.entry("signs"))
    path.mkdir()
    lay(place, "letters", b"")
    lay(place, "large", bytes(2 << 20))
    for name, why in (("signs", "not a regular file"), ("letters", "0 bytes"), ("large", "header")):
        with pytest.raises(UnavailableError, match=why):
            folder.read(folder.entry(name))


def test_a_scan_never_puts_an_older_file_in_the_place_of_a_newer(
    place: Path, store: Counted, folder: TaskFolder
) -> None:
    """A put comes between the listing and the read, another while the scan waits."""
    lay(place, "signs", made(1))
    listing = store.list

    def listed() -> dict[str, Stamp]:
        found = listing()
        folder.put("signs", made(2))
        folder.put("letters", made(3))
        return found

    store.list = listed  # type: ignore[method-assign]
    folder.scan()
    assert versions(folder) == {"signs": version_of(made(2)), "letters": version_of(made(3))}
    store.list = listing  # type: ignore[method-assign]
    folder.scan()
    assert versions(folder) == {"signs": version_of(made(2)), "letters": version_of(made(3))}


# -- put and remove --------------------------------------------------------------------------------


def test_put_writes_and_serves_and_remove_deletes(
    place: Path, folder: TaskFolder, retired: list[tuple[str, bool]]
) -> None:
    first = folder.put("signs", made(1))
    assert folder.entries["signs"] is first
    assert (place / "signs.safetensors").read_bytes() == made(1)
    second = folder.put("signs", made(2))
    assert folder.read(first) == (second, made(2))
    folder.put("signs", made(2))
    folder.scan()
    assert retired == [(first.version, False)]
    folder.remove("signs")
    assert list(place.iterdir()) == []
    folder.scan()
    assert retired == [(first.version, False), (second.version, True)]


def test_put_replaces_a_file_that_was_refused(place: Path, folder: TaskFolder) -> None:
    lay(place, "signs", b"bad")
    folder.scan()
    folder.put("signs", made(1))
    assert not folder.refused


BAD_PUTS: dict[str, tuple[str, bytes, type[PiggybackError]]] = {
    "parent": ("../signs", made(1), TaskNameError),
    "hidden": (".signs", made(1), TaskNameError),
    "no bytes": ("signs", b"", TaskFileError),
    "junk": ("signs", b"\x89PNG\r\n" * 100, TaskFileError),
    "cut off": ("signs", made(1)[:-1], TaskFileError),
    "too long": ("signs", made(1) + b"x", TaskFileError),
    "a flipped bit": ("signs", made(1)[:-40] + b"x" + made(1)[-39:], TaskFileError),
}


@pytest.mark.parametrize("case", BAD_PUTS)
def test_a_bad_put_changes_nothing(case: str, place: Path, store: Counted) -> None:
    name, data, error = BAD_PUTS[case]
    folder = TaskFolder(store, check, nothing)
    kept = folder.put("signs", made(7))
    folder.scan()
    with pytest.raises(error) as raised:
        folder.put(name, data)
    assert "\n" not in str(raised.value)
    assert dict(folder.entries) == {"signs": kept}
    assert [path.name for path in place.iterdir()] == ["signs.safetensors"]
    assert list(place.parent.iterdir()) == [place]
    assert folder.read(kept) == (kept, made(7))
    assert not folder.refused


@pytest.mark.parametrize("name", ["sings", "../signs", "x" * 100_000, "a\nb\0"])
def test_unknown_tasks_get_one_line_with_names_like_theirs(name: str, folder: TaskFolder) -> None:
    with pytest.raises(UnknownTaskError, match="no task is served"):
        folder.entry(name)
    folder.put("signs", made(1))
    for call in (folder.entry, folder.remove):
        with pytest.raises(UnknownTaskError, match="1 tasks are served") as raised:
            call(name)
        assert len(str(raised.value)) < 300
        assert "\n" not in str(raised.value)
    if name == "sings":
        assert "did you mean 'signs'?" in str(raised.value)


def test_remove_of_a_file_that_is_gone_already(place: Path, folder: TaskFolder) -> None:
    folder.put("signs", made(1))
    (place / "signs.safetensors").unlink()
    folder.remove("signs")
    assert not folder.entries


def test_a_reader_keeps_the_mapping_it_took(folder: TaskFolder) -> None:
    folder.put("signs", made(1))
    held = folder.entries
    for entry in held.values():
        folder.put("letters", made(2))
        folder.remove(entry.name)
    assert list(held) == ["signs"]
    assert list(folder.entries) == ["letters"]


# -- all at once -----------------------------------------------------------------------------------


def test_bytes_always_match_their_version_whatever_goes_on(
    place: Path, folder: TaskFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads put, remove, overwrite in place, rename over and cut off, while others scan and read."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 3000 writes
    names = ("signs", "letters", "cars")
    known = {version_of(made(number)): made(number) for number in range(12)}
    begin, wrong, reads = threading.Barrier(7), [], [0]
    over = threading.Event()

    def through_the_folder(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(250):
            name = pick.choice(names)
            try:
                if pick.random() < 0.7:
                    data = made(pick.randrange(12))
                    if folder.put(name, data).version != version_of(data):
                        wrong.append("put")
                else:
                    folder.remove(name)
            except UnknownTaskError:
                continue

    def behind_its_back(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(400):
            path = place / f"{pick.choice(names)}.safetensors"
            data = made(pick.randrange(12))
            how = pick.randrange(4)
            if how == 0:
                path.write_bytes(data)  # in place
            elif how == 1:
                path.write_bytes(data[: pick.randrange(len(data))])
            elif how == 2:
                path.unlink(missing_ok=True)
            else:
                other = place / f".{seed}"
                other.write_bytes(data)
                other.replace(path)

    def read(seed: int) -> None:
        while not over.is_set():
            for entry in folder.entries.values():
                try:
                    found, data = folder.read(entry)
                except (UnavailableError, UnknownTaskError):
                    continue
                reads[0] += 1
                if known.get(found.version) != data or found.name != entry.name:
                    wrong.append(found)

    def scan(seed: int) -> None:
        while not over.is_set():
            folder.scan()

    def run(work: Callable[[int], None], seed: int) -> None:
        begin.wait()
        try:
            work(seed)
        except BaseException as error:
            wrong.append(error)
            raise

    writers = [
        threading.Thread(target=run, args=(work, seed))
        for seed, work in enumerate((through_the_folder, through_the_folder, behind_its_back))
    ]
    others = [
        threading.Thread(target=run, args=(work, seed))
        for seed, work in enumerate((read, read, scan, scan))
    ]
    for thread in (*writers, *others):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    assert wrong == []
    assert reads[0] > 100
    folder.scan()  # what is held at last is what lies there
    lying = {path.stem: path.read_bytes() for path in place.glob("*.safetensors")}
    for name, data in lying.items():
        if version_of(data) in known:
            assert folder.read(folder.entry(name))[1] == data
        else:
            assert f"{name}.safetensors" in folder.refused
    assert folder.entries.keys() <= lying.keys()


def test_a_read_does_not_wait_for_a_slow_check_of_another_file(place: Path, store: Counted) -> None:
    checking, go_on = threading.Event(), threading.Event()

    def slow(data: bytes, name: str) -> TaskHeader:
        if name == "slow":
            checking.set()
            go_on.wait(60)
        return header_of(data)

    folder = TaskFolder(store, slow, nothing)
    entry = folder.put("signs", made(1))
    lay(place, "slow", made(2))
    scan = threading.Thread(target=folder.scan)
    scan.start()
    assert checking.wait(60)
    assert folder.read(entry) == (entry, made(1))
    assert folder.entry("signs") is entry
    assert scan.is_alive()
    go_on.set()
    scan.join()
    assert sorted(folder.entries) == ["signs", "slow"]
