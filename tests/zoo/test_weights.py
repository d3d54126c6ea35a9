"""Weights from files and from the hubs' caches: strict, without pickled objects, in seconds without a network."""

from __future__ import annotations

import argparse
import os
import socket
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn

from piggyback.errors import BackboneError, PiggybackWarning
from piggyback.zoo import weights
from piggyback.zoo.load import load_backbone
from piggyback.zoo.weights import load_strictly, read_state_dict


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.randn(4, 3), "0.bias": torch.zeros(4)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_both_formats(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.safetensors"), state)
    assert same(read_state_dict(str(tmp_path / "a.pth")), state)


def test_a_submodule_called_module_keeps_its_name(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(1), "fc.weight": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["module.weight", "fc.weight"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "x": Evil(tmp_path / "owned")}, tmp_path / "a.pth")
    with pytest.raises(BackboneError, match="without pickled objects") as caught:
        read_state_dict(tmp_path / "a.pth")
    assert not (tmp_path / "owned").exists()
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02", b"PK\x03\x04" + bytes(50)])
def test_junk_is_one_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be read") as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_cut_file_is_one_clear_error(
    tmp_path: Path, state: dict[str, torch.Tensor], name: str
) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(BackboneError):
            read_state_dict(path)


@pytest.mark.parametrize("found", [3, [torch.ones(1)], {}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_other_contents_are_an_error(tmp_path: Path, found: object) -> None:
    torch.save(found, tmp_path / "a.pth")
    with pytest.raises(BackboneError, match="expected a state dict"):
        read_state_dict(tmp_path / "a.pth")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="No such file"):
        read_state_dict(tmp_path / "a.pth")
    with pytest.raises(BackboneError, match=r"[Nn]o such file"):
        read_state_dict(tmp_path / "a.safetensors")
    with pytest.raises(BackboneError, match="not a regular file"):
        read_state_dict(tmp_path)


def test_loading_is_strict_and_leaves_the_module_alone_when_it_fails(
    state: dict[str, torch.Tensor],
) -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wrong = {"0.weight": torch.ones(4, 2), "1.bias": torch.zeros(4)}
    with pytest.raises(BackboneError) as caught:
        load_strictly(net, wrong, "checkpoint 'x'")
    for part in (
        "checkpoint 'x' does not fit Sequential",
        "1 missing (0.bias)",
        "1 unexpected (1.bias)",
        "1 of another shape (0.weight is (4, 2), expected (4, 3))",
    ):
        assert part in str(caught.value)
    assert same(net.state_dict(), before)
    load_strictly(net, state, "checkpoint 'x'")
    assert same(net.state_dict(), state)


# -- hubs ------------------------------------------------------------------------------------------


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
    release, ended = threading.Event(), threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        release.wait(60)
        ended.set()
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    assert not weights.reachable("https://example.invalid", seconds=0.2)
    assert not ended.is_set()
    release.set()


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


# -- checkpoints as training scripts leave them ----------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), act=nn.ReLU(), fc=nn.Linear(3, 2)))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\ndef build():\n"
        "    return nn.Sequential(OrderedDict(body=nn.Linear(4, 3), act=nn.ReLU(), fc=nn.Linear(3, 2)))\n"
    )
    return f"{tmp_path / 'own.py'}:build"


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, out=Path("x")), "epoch": 3},
        lambda state: {"state_dict": state, "best": np.float64(0.5), "history": np.arange(3.0)},
        lambda state: {"model_state_dict": state, "steps": np.int64(7), "ok": np.bool_(True)},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"net": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"model.backbone.{name}": tensor for name, tensor in state.items()},
    ],
)  # fmt: skip
def test_checkpoints_of_training_scripts_are_read(tmp_path, factory, wrapped):
    state = network().state_dict()
    torch.save(wrapped(state), tmp_path / "a.pth")
    assert same(load_backbone(factory, checkpoint=tmp_path / "a.pth").module.state_dict(), state)


def test_what_lies_beside_the_network_is_said_to_be_left_out(tmp_path, factory):
    state = network().state_dict()
    saved = {f"encoder.{name}": tensor for name, tensor in state.items()}
    torch.save({**saved, "projector.weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    with pytest.warns(PiggybackWarning, match=r"projector\.weight"):
        found = load_backbone(factory, checkpoint=tmp_path / "a.pth")
    assert same(found.module.state_dict(), state)


def test_a_network_without_its_classifier_answers_zeros_and_says_so(tmp_path, factory):
    state = {name: tensor for name, tensor in network().state_dict().items() if "fc" not in name}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.pth")
    with pytest.warns(PiggybackWarning, match="no classifier"):
        found = load_backbone(factory, checkpoint=tmp_path / "a.pth").module
    assert torch.equal(found.body.weight, state["body.weight"])
    assert not found(torch.ones(1, 4)).any()


def test_a_classifier_beside_the_network_is_taken(tmp_path, factory):
    state = network().state_dict()
    saved = {name if "fc" in name else f"encoder.{name}": tensor for name, tensor in state.items()}
    torch.save(saved, tmp_path / "a.pth")
    assert same(load_backbone(factory, checkpoint=tmp_path / "a.pth").module.state_dict(), state)


def test_a_state_dict_beside_the_one_that_is_taken_is_named(tmp_path):
    state = network().state_dict()
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged, "epoch": 1}, tmp_path / "a.pth")
    with pytest.warns(PiggybackWarning, match="state_dict_ema"):
        assert same(read_state_dict(tmp_path / "a.pth"), state)
    torch.save(
        {"weights": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "b.pth"
    )
    assert same(read_state_dict(tmp_path / "b.pth"), state)


def test_two_networks_or_half_of_one_are_refused(tmp_path, factory):
    state = network().state_dict()
    both = {f"{part}.{name}": t for part in ("student", "teacher") for name, t in state.items()}
    torch.save(both, tmp_path / "two.pth")
    with pytest.raises(BackboneError, match=r"'student\.', 'teacher\.'"):
        load_backbone(factory, checkpoint=tmp_path / "two.pth")
    half = {name: t for name, t in state.items() if name != "body.bias"}
    torch.save(half, tmp_path / "half.pth")
    with pytest.raises(BackboneError, match=r"body\.bias"):
        load_backbone(factory, checkpoint=tmp_path / "half.pth")
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(BackboneError, match="extra"):
        load_backbone(factory, checkpoint=tmp_path / "more.pth")
