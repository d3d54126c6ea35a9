"""Runs that were lost, or begun anew, without a word."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest

from piggyback import ScoreInit
from piggyback.errors import CheckpointError, InputError
from piggyback.taskfile.disk import check_output, lock_folder
from piggyback.train import Listener, Recipe, train
from piggyback.train.events import EpochRow
from support.training_toys import Recorder


def test_a_finished_run_is_not_replaced_by_another_one_unasked(backbone, data, recipe, tmp_path):
    short: Recipe = recipe(epochs=1)
    first = train(backbone, data, "toy", short, tmp_path)
    kept = (tmp_path / "toy.safetensors").read_bytes()
    other = replace(short, batch_size=short.batch_size // 2)
    with pytest.raises(CheckpointError, match="batch_size"):
        train(backbone, data, "toy", other, tmp_path)
    assert (tmp_path / "toy.safetensors").read_bytes() == kept
    assert train(backbone, data, "toy", short, tmp_path).accuracy == first.accuracy
    assert train(backbone, data, "toy", other, tmp_path, overwrite=True).path == first.path


def test_an_interrupted_run_that_starts_anew_is_said(backbone, data, recipe, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"of a run that was stopped")
    told = Recorder()
    train(backbone, data, "toy", recipe(epochs=1), tmp_path, listener=told)
    assert any("resume=True" in notice for notice in told.notices)


@pytest.mark.skipif(os.name != "posix", reason="locks are those of POSIX")
def test_two_trainings_do_not_write_into_one_folder(backbone, data, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("piggyback.taskfile.disk._LOCK_TRIES", 1)

    class Other(Listener):
        """Tries to take the folder meanwhile."""

        refused = 0

        def on_epoch(self, row: EpochRow) -> None:
            with pytest.raises(CheckpointError, match=str(tmp_path)), lock_folder(tmp_path):
                pytest.fail("two hold one folder")
            self.refused += 1

    told = Other()
    train(backbone, data, "toy", recipe(epochs=2), tmp_path, listener=told)
    assert told.refused == 2
    kept = sorted(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    with lock_folder(tmp_path):
        for options in ({}, {"overwrite": True}):
            with pytest.raises(CheckpointError, match="another training"):
                train(backbone, data, "toy", recipe(epochs=2), tmp_path, **options)
    assert kept == sorted(file.read_bytes() for file in tmp_path.iterdir() if file.is_file())
    train(backbone, data, "toy", recipe(epochs=2), tmp_path)


def test_a_path_back_out_of_a_folder_that_is_not_there_is_refused(tmp_path):
    for folder in (False, True):
        with pytest.raises(InputError, match="none"):
            check_output(tmp_path / "none" / ".." / "a", "--out", folder=folder)
    assert not any(tmp_path.iterdir())


def test_a_folder_is_waited_for_while_the_workers_of_a_killed_training_notice(tmp_path):
    held = ExitStack()
    held.enter_context(lock_folder(tmp_path))
    threading.Timer(0.3, held.close).start()
    with lock_folder(tmp_path):
        pass


def test_an_output_that_is_a_link_to_nowhere_is_found_before_the_work(tmp_path):
    gone = tmp_path / "gone"
    for name, target, folder in (("run", gone, True), ("a", gone / "a", False)):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(InputError, match=r"--out.*gone"):
            check_output(tmp_path / name, "--out", folder=folder)
    (tmp_path / "b").symlink_to(tmp_path / "new")  # its target can be made
    check_output(tmp_path / "b", "--out")


def test_a_run_that_is_refused_leaves_no_folder(backbone, data, recipe, tmp_path):
    steep = ScoreInit(power=40.0)  # seen only with the weights at hand
    with pytest.raises(InputError, match="power 40"):
        train(backbone, data, "a", recipe(init=steep), tmp_path / "run")
    assert not (tmp_path / "run").exists()
