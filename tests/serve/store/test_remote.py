"""Task files behind a URL: fetched once, right, bounded, and nothing told that is secret."""

from __future__ import annotations

import shutil
import sys
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from piggyback.errors import (
    InputError,
    MissingExtraError,
    TaskNameError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from piggyback.serve.store.stores import open_store, without_secrets
from piggyback.taskfile.file import save
from support.telling import INPUT, Telling, expected, telling_tasks


class Bucket(MemoryFileSystem):
    """A file system in memory with an ETag or not, a network that can go, and a count of reads."""

    protocol = "bucket"
    store: dict = {}  # noqa: RUF012 - as in its base class
    pseudo_dirs = [""]  # noqa: RUF012
    marks = True
    failure: Exception | None = None
    reads = 0
    while_reading = None

    def _entry(self, entry):
        entry = {k: v for k, v in entry.items() if k != "created"}
        if self.marks and entry["type"] == "file":
            entry["ETag"] = str(hash(bytes(self.store[entry["name"]].getvalue())))
        return entry

    def _reach(self):
        if Bucket.failure is not None:
            raise Bucket.failure

    def ls(self, path, detail=True, **kwargs):
        self._reach()
        return [self._entry(entry) for entry in super().ls(path, detail=True)]

    def info(self, path, **kwargs):
        self._reach()
        return self._entry(super().info(path))

    def cat_file(self, path, **kwargs):
        self._reach()
        Bucket.reads += 1
        data = super().cat_file(path, **kwargs)
        if Bucket.while_reading is not None:
            Bucket.while_reading()
        return data

    def pipe_file(self, path, value, **kwargs):
        self._reach()
        super().pipe_file(path, value, **kwargs)


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture
def bucket(monkeypatch):
    """A URL of a folder that no other test has used; the network is there again afterwards."""
    for name, value in (("marks", True), ("failure", None), ("reads", 0), ("while_reading", None)):
        monkeypatch.setattr(Bucket, name, value)
    return f"bucket://{uuid.uuid4().hex}/tasks"


@pytest.fixture
def store(bucket, tmp_path):
    return open_store(bucket, tmp_path / "cache")


def put(url, name, data):
    fsspec.open(f"{url}/{name}", "wb").fs.pipe_file(f"{url}/{name}", data)


def test_files_are_listed_by_task_name_with_a_stamp_that_follows_their_content(store, bucket):
    store.write("signs", b"one")
    put(bucket, "README.md", b"no task")
    put(bucket, "deeper/letters.safetensors", b"not at the top")
    put(bucket, ".hidden.safetensors", b"hidden")
    first = store.list()
    assert set(first) == {"signs"}
    assert store.list() == first
    put(bucket, "signs.safetensors", b"two")  # the same size
    assert store.list()["signs"] != first["signs"]


def test_what_is_read_is_what_was_written_and_is_fetched_once(store, bucket, tmp_path):
    store.write("signs", b"one")
    store.list()
    assert [store.read("signs") for _ in range(3)] == [b"one"] * 3
    assert open_store(bucket, tmp_path / "cache").read("signs") == b"one"  # another process
    assert Bucket.reads == 1
    put(bucket, "signs.safetensors", b"two")
    store.list()
    assert store.read("signs") == b"two"
    assert Bucket.reads == 2


def test_the_newest_is_read_where_nothing_was_listed(store, bucket):
    store.write("signs", b"one")
    assert store.read("signs") == b"one"
    put(bucket, "signs.safetensors", b"two")
    assert store.read("signs") == b"two"


def test_a_cached_task_is_read_while_the_network_is_gone(store):
    store.write("signs", b"one")
    store.write("letters", b"two")
    store.list()
    store.read("signs")
    Bucket.failure = ConnectionError("no route to host")
    assert store.read("signs") == b"one"
    with pytest.raises(
        UnavailableError, match=r"letters\.safetensors cannot be looked at .*no route"
    ):
        store.read("letters")
    with pytest.raises(UnavailableError, match="cannot be listed"):
        store.list()
    with pytest.raises(UnavailableError, match=r"signs\.safetensors cannot be written"):
        store.write("signs", b"three")
    Bucket.failure = None
    assert store.read("letters") == b"two"


def test_a_file_that_is_replaced_while_it_is_read_is_not_kept_under_the_wrong_stamp(store, bucket):
    store.write("signs", b"one")

    def replace():
        Bucket.while_reading = None
        put(bucket, "signs.safetensors", b"two")

    Bucket.while_reading = replace
    assert store.read("signs") == b"two"
    put(bucket, "signs.safetensors", b"one")
    store.list()
    assert store.read("signs") == b"one"


def test_a_file_that_never_stands_still_is_unavailable(store, bucket):
    store.write("signs", b"0")
    count = iter(range(1, 100))
    Bucket.while_reading = lambda: put(bucket, "signs.safetensors", str(next(count)).encode())
    with pytest.raises(UnavailableError, match="replaced again and again"):
        store.read("signs")


def test_a_store_reads_what_it_wrote_itself(store):
    store.write("signs", b"one")
    store.list()
    store.read("signs")
    store.write("signs", b"two")
    assert store.read("signs") == b"two"


def test_what_is_not_there_is_an_unknown_task(store):
    store.write("signs", b"one")
    store.list()
    store.read("signs")
    store.delete("signs")
    for call in (store.read, store.delete):
        with pytest.raises(UnknownTaskError, match="unknown task 'signs'"):
            call("signs")


def test_an_empty_folder_cannot_be_told_from_none(store):
    with pytest.raises(UnavailableError, match="cannot be listed"):
        store.list()


@pytest.mark.parametrize("name", ["../signs", "a/b", ".hidden", "", "a\n"])
def test_names_that_could_lead_elsewhere_are_refused(store, name):
    for call in (store.read, store.delete, lambda name: store.write(name, b"x")):
        with pytest.raises(TaskNameError):
            call(name)


def test_a_file_system_that_marks_nothing_cannot_be_watched(store):
    store.write("signs", b"one")
    Bucket.marks = False
    with pytest.raises(UnavailableError, match="neither a checksum nor a time"):
        store.list()


def test_a_time_is_the_stamp_where_there_is_no_checksum(tmp_path):
    store = open_store(f"memory://{uuid.uuid4().hex}", tmp_path)
    store.write("signs", b"one")
    first = store.list()
    store.write("signs", b"two")
    assert store.list() != first
    assert store.read("signs") == b"two"


def test_secrets_of_a_url_are_in_no_message(tmp_path, monkeypatch, bucket):
    url = bucket.replace("://", "://AKIAUSER:pa%24%24word@") + "?X-Signature=abcdef123"
    system = Bucket()
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (system, "/tasks"))
    store = open_store(url, tmp_path)
    Bucket.failure = OSError(
        f"403 for {url}\nand https://other:hunter22@host/x?sig=zzzzzz with pa$$word"
    )
    with pytest.raises(UnavailableError) as caught:
        store.list()
    told = f"{caught.value} {store.place}"
    for secret in ("AKIAUSER", "pa%24", "pa$$", "abcdef123", "hunter22", "zzzzzz", "\n"):
        assert secret not in told
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "403" in told


def test_a_secret_that_a_long_message_would_cut_is_hidden_first():
    long = ValueError("x" * 180 + " opensesame " + "y" * 99)
    hidden = without_secrets(long, "s3://me:opensesame@b")
    assert "opens" not in hidden
    assert len(hidden) == 200


def test_a_file_system_that_cannot_be_made_is_unavailable(monkeypatch):
    def refuse(url, **options):
        raise RuntimeError(f"no login at {url}")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(UnavailableError, match="cannot be reached") as caught:
        open_store("sftp://me:opensesame@host/tasks")
    assert "opensesame" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(
        known_implementations,
        "nowhere",
        {"class": "no_such_package.System", "err": "Install no_such_package"},
    )
    with pytest.raises(MissingExtraError, match=r"nowhere:// needs .*pip install no_such_package"):
        open_store("nowhere://bucket/tasks")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"fsspec.*\[serve\]"):
        open_store("nowhere://bucket/tasks")


def test_an_unknown_protocol_and_what_is_no_url_are_refused():
    with pytest.raises(InputError, match="qqq:// is unknown"):
        open_store("qqq://bucket/tasks")
    with pytest.raises(InputError, match="expected a URL"):
        open_store("://tasks")


def test_a_file_url_is_a_folder(tmp_path):
    store = open_store(f"file://{tmp_path}")
    store.write("signs", b"one")
    assert (tmp_path / "signs.safetensors").read_bytes() == b"one"
    assert store.place == str(tmp_path)


def test_other_urls_are_opened_from_the_users_cache(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path))
    store = open_store(bucket)
    store.write("signs", b"one")
    store.read("signs")
    assert len(list((tmp_path / "tasks").iterdir())) == 1


def test_an_engine_goes_on_while_the_network_is_gone(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path))
    for name, task in telling_tasks(3).items():
        put(bucket, f"{name}.safetensors", save(task))
    options = EngineOptions(workers=1, watch_s=0)
    with Engine(Telling(), bucket, "1MiB", options) as engine:
        for name in ("t0", "t1"):
            engine.predict(INPUT, name)
    reads = Bucket.reads
    with Engine(Telling(), bucket, "1MiB", options) as engine:  # nothing in memory, files on disk
        Bucket.failure = ConnectionError("no route to host")
        engine.rescan()
        assert "no route to host" in engine.problem
        for name in ("t0", "t1"):
            assert engine.predict(INPUT, name).classes[0] == expected(name)
        Bucket.failure = None
    assert Bucket.reads == reads


def test_a_bucket_that_is_gone_makes_no_task_unknown(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path))
    put(bucket, "t0.safetensors", save(telling_tasks(1)["t0"]))
    with Engine(Telling(), bucket, "1MiB", EngineOptions(workers=1, watch_s=0)) as engine:
        shutil.rmtree(tmp_path / "tasks")
        fsspec.filesystem("bucket").rm(bucket, recursive=True)
        engine.rescan()
        with pytest.raises(UnavailableError, match="'t0'"):
            engine.predict(INPUT, "t0")
