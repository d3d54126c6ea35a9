"""Checkpoint files: whole or refused, and never half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from piggyback.errors import CheckpointError
from piggyback.masks.optimizer import MaskOptimizer
from piggyback.train import checkpoint
from piggyback.train.checkpoint import Checkpoint, check_identity, read, write
from piggyback.train.recipe import Recipe

CONTENT = Checkpoint(
    {"recipe": {"epochs": 3, "augment": {"flip": False}}},
    {"epoch": 1, "loss": 0.1 + 0.2},
    {"live/a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3), "c": torch.zeros(0)},
)


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "c", CONTENT)
    back = read(tmp_path / "c")
    assert (back.identity, back.progress) == (CONTENT.identity, CONTENT.progress)
    assert back.tensors.keys() == CONTENT.tensors.keys()
    for name, tensor in CONTENT.tensors.items():
        assert torch.equal(back.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_tied_tensors_are_written_twice(tmp_path: Path) -> None:
    tied = torch.rand(3)
    write(tmp_path / "c", Checkpoint({}, {}, {"a": tied, "b": tied}))
    assert torch.equal(read(tmp_path / "c").tensors["b"], tied)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    write(tmp_path / "c", CONTENT)
    whole = (tmp_path / "c").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "d").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"d'.*delete it to start anew"):
            read(tmp_path / "d")
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "d").write_bytes(bytes(damaged))
        try:
            back = read(tmp_path / "d")
        except CheckpointError:
            continue
        assert back.progress == CONTENT.progress  # padding of the header: nothing was lost
    for name, content in (("e", "hello"), ("absent", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "c", CONTENT)
    before = (tmp_path / "c").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        write(tmp_path / "c", CONTENT)
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        write(tmp_path / "c" / "below-a-file", CONTENT)


def test_another_run_is_named_by_the_field_that_differs() -> None:
    now = {"recipe": {"epochs": 5, "augment": {"flip": False}}}
    with pytest.raises(CheckpointError, match=r"another run: recipe\.epochs is 3 there, 5 now"):
        check_identity(Path("run"), CONTENT.identity, now)
    check_identity(Path("run"), CONTENT.identity, dict(CONTENT.identity))


def test_a_run_from_before_a_field_was_added_or_removed_is_still_the_same_run() -> None:
    saved, now = ({"recipe": Recipe().identity(), "data": {"name": "x"}} for _ in range(2))
    now["data"]["learned_from"] = "AAAA"
    del saved["recipe"]["grad_scale"], saved["recipe"]["augment"]["flip"]
    saved["recipe"]["form_lr"] = 2e-3  # one that was removed
    check_identity(Path("run"), saved, now)
    now["recipe"]["augment"]["flip"] = True
    with pytest.raises(CheckpointError, match=r"augment\.flip is False there, True now"):
        check_identity(Path("run"), saved, now)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizer_state_comes_back_in_the_parameters_layout(layout: torch.memory_format) -> None:
    def make() -> tuple[nn.Module, MaskOptimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
        net.to(memory_format=layout)
        groups = [
            {"params": [net[0].weight], "masked": True, "lr": 1e-2},
            {"params": list(net[2].parameters())},
        ]
        base = net[0].weight.detach().clone()  # as a MultiTaskModel holds it
        optimizer = MaskOptimizer(
            groups, torch.optim.AdamW, base=lambda _: base, lr=1e-2, fused=True
        )
        optimizer.initialize()
        return net, optimizer

    def step(net: nn.Module, optimizer: MaskOptimizer) -> None:
        generator = torch.Generator().manual_seed(1)
        optimizer.zero_grad()
        net(torch.rand(4, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()

    one, two = make(), make()
    step(*one)
    checkpoint.load_live(two[0][2].state_dict(), one[0][2].state_dict())
    saved = checkpoint.optimizer_tensors(one[1])
    assert not any(name.endswith("/base") for name in saved)
    checkpoint.load_optimizer(two[1], {name: t.contiguous().clone() for name, t in saved.items()})
    assert two[1].scores(two[0][0].weight).stride() == two[0][0].weight.stride()
    for _ in range(3):
        step(*one)
        step(*two)
    for mine, theirs in zip(one[0].parameters(), two[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for name, tensor in checkpoint.optimizer_tensors(one[1]).items():
        assert torch.equal(tensor, checkpoint.optimizer_tensors(two[1])[name])


def test_tensors_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match=r"'a': expected shape \(2,\), found None"):
        checkpoint.load_live({"a": torch.zeros(2)}, {})
