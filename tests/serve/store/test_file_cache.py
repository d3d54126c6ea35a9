"""Files kept on disk: whole, right, bounded, shared."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from piggyback.errors import (
    InputError,
)
from piggyback.serve.store.file_cache import FileCache


class TestFileCache:
    def test_least_recently_used_goes_first(self, tmp_path):
        cache = FileCache(tmp_path, largest=3 * (1000 + 32))
        for age, name in enumerate("abc"):
            cache.put(name, bytes(1000))
            self.used(cache, name, age)
        assert cache.get("a") is not None  # used again
        cache.put("d", bytes(1000))
        assert [name for name in "abcd" if cache.get(name)] == ["a", "c", "d"]

    def test_one_file_larger_than_the_limit_is_kept_until_the_next(self, tmp_path):
        cache = FileCache(tmp_path, largest=10)
        cache.put("a", bytes(1000))
        assert cache.get("a") == bytes(1000)
        self.used(cache, "a", 0)
        cache.put("b", b"x")
        assert cache.get("a") is None

    def test_a_damaged_file_is_not_given_out(self, tmp_path, caplog):
        cache = FileCache(tmp_path)
        cache.put("a", b"some bytes")
        (path,) = tmp_path.iterdir()
        for damaged in (path.read_bytes()[:-1], b"", b"x" + path.read_bytes()[1:]):
            path.write_bytes(damaged)
            with caplog.at_level(logging.WARNING):
                assert cache.get("a") is None
            assert "damaged" in caplog.text
            assert not path.exists()

    def test_a_disk_that_takes_nothing_is_logged(self, tmp_path, caplog):
        (tmp_path / "cache").write_text("a file where the folder should be")
        cache = FileCache(tmp_path / "cache")
        with caplog.at_level(logging.WARNING):
            cache.put("a", b"some bytes")
        assert "cannot be kept" in caplog.text
        assert cache.get("a") is None

    def test_what_a_dead_process_left_is_removed(self, tmp_path):
        old, new = tmp_path / ".old.tmp", tmp_path / ".new.tmp"
        old.write_bytes(b"x")
        new.write_bytes(b"x")
        os.utime(old, (0, 0))
        FileCache(tmp_path).put("a", b"x")
        assert not old.exists()
        assert new.exists()

    def test_many_at_once_see_whole_files_only(self, tmp_path):
        contents = {name: name.encode() * 5000 for name in "abcdef"}
        wrong = []

        def work():
            cache = FileCache(tmp_path, largest=3 * 5032)
            for _ in range(20):
                for name, data in contents.items():
                    found = cache.get(name)
                    if found is None:
                        cache.put(name, data)
                    elif found != data:
                        wrong.append(name)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".")]) <= 4

    @pytest.mark.parametrize("largest", [0, -1])
    def test_a_cache_of_nothing_is_refused(self, tmp_path, largest):
        with pytest.raises(InputError, match="cache size"):
            FileCache(tmp_path, largest)

    @staticmethod
    def used(cache, name, age):
        """Set when a file was used last: a second after the file before it."""
        os.utime(cache._path(name), (age + 1, age + 1))
