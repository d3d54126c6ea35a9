"""The watcher looks until it is stopped, whatever happens."""

from __future__ import annotations

import logging
import threading

import pytest

from piggyback.errors import InputError
from piggyback.serve.store.watcher import Watcher

PATIENCE = 20


def test_it_looks_again_and_again_until_stopped() -> None:
    looks, many = [0], threading.Event()

    def look() -> None:
        looks[0] += 1
        if looks[0] == 3:
            many.set()

    watcher = Watcher(look, watch_s=0.001)
    assert many.wait(PATIENCE)
    watcher.stop()
    seen = looks[0]
    watcher.stop()
    assert not watcher._thread.is_alive()
    assert looks[0] == seen


def test_an_error_is_logged_and_the_next_look_comes(caplog: pytest.LogCaptureFixture) -> None:
    looks, recovered = [0], threading.Event()

    def look() -> None:
        looks[0] += 1
        if looks[0] == 1:
            raise MemoryError("for once")
        recovered.set()

    with caplog.at_level(logging.ERROR):
        watcher = Watcher(look, watch_s=0.001)
        assert recovered.wait(PATIENCE)
        watcher.stop()
    assert [record.message for record in caplog.records] == ["a look at the tasks directory failed"]
    assert "for once" in caplog.text


def test_a_look_may_stop_its_watcher() -> None:
    stopped = threading.Event()

    def look() -> None:
        watcher.stop()
        stopped.set()

    ready = threading.Event()
    watcher = Watcher(lambda: ready.wait() and look(), watch_s=0.001)
    ready.set()
    assert stopped.wait(PATIENCE)
    watcher._thread.join(PATIENCE)
    assert not watcher._thread.is_alive()


def test_a_look_that_hangs_does_not_hang_who_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piggyback.serve.store.watcher.STOP_S", 0.01)
    looking, end = threading.Event(), threading.Event()

    def look() -> None:
        looking.set()
        end.wait(PATIENCE)

    watcher = Watcher(look, watch_s=0.001)
    assert looking.wait(PATIENCE)
    watcher.stop()
    assert watcher._thread.is_alive()
    assert watcher._thread.daemon  # and so does not keep the process
    end.set()
    watcher._thread.join(PATIENCE)


@pytest.mark.parametrize("watch_s", [0, -1, float("nan"), float("inf")])
def test_the_time_between_looks_is_checked(watch_s: float) -> None:
    with pytest.raises(InputError, match="watch_s"):
        Watcher(lambda: None, watch_s)
