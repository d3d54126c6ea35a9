"""A folder of task files: what is listed, when a stamp changes, and what is said when the disk does not answer."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from piggyback.errors import TaskFileError, TaskNameError, UnavailableError, UnknownTaskError
from piggyback.serve.store import stores
from piggyback.serve.store.stores import LocalStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stores, "time", found)
    return found


def test_only_task_files_on_the_top_level_are_listed(tmp_path: Path, store: LocalStore) -> None:
    for name in ("signs.safetensors", "letters.safetensors", "notes.txt", "safetensors", "a.tmp"):
        (tmp_path / name).write_bytes(b"x")
    for hidden in (".safetensors", "._signs.safetensors", ".0123.tmp"):
        (tmp_path / hidden).write_bytes(b"x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "cars.safetensors").write_bytes(b"x")
    assert sorted(store.list()) == ["letters", "signs"]


def test_a_file_is_written_read_replaced_and_deleted(tmp_path: Path, store: LocalStore) -> None:
    store.write("signs", b"one")
    store.write("signs", b"three")
    assert store.read("signs") == b"three"
    assert names(tmp_path) == ["signs.safetensors"]
    store.delete("signs")
    assert names(tmp_path) == []
    for gone in (store.read, store.delete):
        with pytest.raises(UnknownTaskError, match=r"'signs': there is no signs\.safetensors"):
            gone("signs")


@pytest.mark.parametrize("name", ["../signs", "a/b", "", ".hidden", "a\0b", "x" * 101, "a\\b", "ü"])
def test_no_name_leaves_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "signs.safetensors").write_bytes(b"not yours")
    store = LocalStore(folder)
    for call in (store.read, store.delete, lambda name: store.write(name, b"x")):
        with pytest.raises(TaskNameError):
            call(name)
    assert names(tmp_path) == ["signs.safetensors", "tasks"]
    assert names(folder) == []
    assert (tmp_path / "signs.safetensors").read_bytes() == b"not yours"


def test_the_folder_stays_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store("tasks")
    store.write("signs", b"x")
    monkeypatch.chdir("/")
    assert store.read("signs") == b"x"
    assert store.place == str(tmp_path / "tasks")


# -- stamps ----------------------------------------------------------------------------------------


def test_a_settled_file_keeps_its_stamp_and_a_young_one_does_not(
    store: LocalStore, clock: Clock
) -> None:
    store.write("signs", b"x")
    young = store.list()["signs"]
    assert store.list()["signs"] != young
    clock.now += stores.SETTLE_S
    settled = store.list()["signs"]
    clock.now += 1
    assert store.list()["signs"] == settled != young


@pytest.mark.parametrize("how", ["other size", "same size", "renamed over", "touched", "mode"])
def test_every_kind_of_change_shows_in_the_stamp(
    how: str, tmp_path: Path, store: LocalStore, clock: Clock
) -> None:
    path = tmp_path / "signs.safetensors"
    path.write_bytes(b"one")
    old = path.stat()
    store.list()
    clock.now += 10
    before = store.list()["signs"]
    time.sleep(0.02)  # more than a tick of the kernel's clock
    if how == "other size":
        path.write_bytes(b"three")
    elif how == "same size":
        path.write_bytes(b"two")
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # as rsync and cp -p do
    elif how == "renamed over":
        other = tmp_path / "other"
        other.write_bytes(b"two")
        os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
        other.rename(path)
    elif how == "touched":
        path.touch()
    else:
        path.chmod(0o400)
    changed = store.list()["signs"]
    assert store.list()["signs"] != changed  # young again
    clock.now += 10
    assert before not in (changed, store.list()["signs"])


def test_a_file_that_did_not_change_for_a_day_has_settled(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("signs", b"x")
    monkeypatch.setattr(stores, "_look", lambda entry: ((1, 2), time.time() - 2 * stores.OLD_S))
    assert store.list() == store.list()
    monkeypatch.setattr(stores, "_look", lambda entry: ((1, 3), time.time() + 2 * stores.OLD_S))
    assert store.list() != store.list()  # a clock that is ahead proves nothing


# -- links -----------------------------------------------------------------------------------------


def test_links_are_followed_and_put_and_delete_leave_their_target_alone(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    target = tmp_path / "signs-v1.safetensors"
    target.write_bytes(b"one")
    link = tmp_path / "tasks" / "signs.safetensors"
    link.symlink_to(target)
    store = LocalStore(tmp_path / "tasks")
    assert list(store.list()) == ["signs"]
    assert store.read("signs") == b"one"
    before = store.list()["signs"]
    link.unlink()
    (tmp_path / "v2").write_bytes(b"two")
    link.symlink_to(tmp_path / "v2")
    assert store.list()["signs"] != before
    assert store.read("signs") == b"two"
    store.write("signs", b"three")
    assert not link.is_symlink()
    assert (tmp_path / "v2").read_bytes() == b"two"
    link.unlink()
    link.symlink_to(target)
    store.delete("signs")
    assert target.read_bytes() == b"one"
    assert store.list() == {}


def test_a_link_whose_target_is_away_is_no_deleted_task(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / "signs.safetensors").symlink_to(tmp_path / "away")
    assert list(store.list()) == ["signs"]
    with pytest.raises(UnavailableError, match="a link to a file that is not there"):
        store.read("signs")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, store: LocalStore) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert sorted(store.list()) == ["folder", "pipe"]
    for name in ("pipe", "folder"):
        with pytest.raises(TaskFileError, match="not a regular file"):
            store.read(name)


# -- a disk that does not answer -------------------------------------------------------------------


def test_a_folder_that_is_gone_is_no_folder_without_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    store = LocalStore(folder)
    store.write("signs", b"x")
    shutil.move(folder, tmp_path / "away")
    calls = (store.list, lambda: store.read("signs"), lambda: store.delete("signs"))
    for call in (*calls, lambda: store.write("signs", b"y")):
        with pytest.raises(UnavailableError, match=r"tasks directory .*cannot be") as raised:
            call()
        # What a listing says is for the log; the rest reaches those who ask a server.
        assert (str(folder) in str(raised.value)) == (call == store.list)
    assert not folder.exists()
    shutil.move(tmp_path / "away", folder)
    assert store.read("signs") == b"x"
    assert list(store.list()) == ["signs"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
def test_an_empty_mount_point_is_no_folder_without_tasks(tmp_path: Path) -> None:
    """Where a disk was unmounted, an empty folder is left."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        mount, under = tmp_path / "tasks", tmp_path / "under"
        under.mkdir()
        if Path(other).stat().st_dev == under.stat().st_dev:
            pytest.skip("needs a second disk")
        mount.symlink_to(other)
        store = LocalStore(mount)
        store.write("signs", b"x")
        assert list(store.list()) == ["signs"]
        mount.unlink()
        mount.symlink_to(under)
        calls = (store.list, lambda: store.read("signs"), lambda: store.delete("signs"))
        for call in (*calls, lambda: store.write("signs", b"y")):
            with pytest.raises(UnavailableError, match="on another disk") as raised:
                call()
            assert (str(mount) in str(raised.value)) == (call == store.list)
        assert names(under) == []
        mount.unlink()
        mount.symlink_to(other)
        assert store.read("signs") == b"x"
        (under / "letters.safetensors").write_bytes(b"y")  # a folder with tasks is one, wherever
        mount.unlink()
        mount.symlink_to(under)
        assert list(store.list()) == ["letters"]
        store.delete("letters")
        assert store.list() == {}


def test_no_permission_is_one_error(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("signs", b"x")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UnavailableError, match=r"^signs\.safetensors: cannot be read \(Perm"):
        store.read("signs")
    with pytest.raises(UnavailableError, match=r"1 bytes cannot be written .* nothing was changed"):
        store.write("signs", b"y")
    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(UnavailableError, match="cannot be deleted"):
        store.delete("signs")
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UnavailableError, match="cannot be listed"):
        store.list()


def test_a_file_that_vanishes_during_the_listing_is_passed_over(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("signs", "letters"):
        store.write(name, b"x")
    look = stores._look

    def slow(entry: os.DirEntry[str]) -> object:
        if entry.name == "signs.safetensors":
            Path(entry.path).unlink()
            Path(entry.path).stat()
        return look(entry)

    monkeypatch.setattr(stores, "_look", slow)
    assert list(store.list()) == ["letters"]
