from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from piggyback.zoo import weights


def test_a_listening_host_is_reachable_and_a_closed_port_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/model"
        assert weights.reachable(url)
    assert not weights.reachable(url)


def test_behind_a_proxy_the_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert weights.reachable("https://no-such-host.invalid/model")


def test_a_name_server_that_hangs_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        time.sleep(5)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    begin = time.monotonic()
    assert not weights.reachable("https://example.invalid", seconds=0.2)
    assert time.monotonic() - begin < 2


def test_the_users_offline_switch_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "reachable", lambda url: True)
    assert not weights.huggingface_reachable()


def test_cached_weights_are_found_by_repository_and_revision(hub_cache: Path) -> None:
    assert weights.cached_weights("timm/tiny") is None
    repository = hub_cache / "models--timm--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert weights.cached_weights("timm/tiny") == snapshot / "pytorch_model.bin"
    assert weights.cached_weights("timm/tiny@" + "a" * 40) == snapshot / "pytorch_model.bin"
    assert weights.cached_weights("timm/tiny@v2") is None
    assert weights.cached_weights("timm/tiny", "other.bin") is None
