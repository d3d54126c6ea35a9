"""Trains a tiny network in child processes that are killed at random moments, and once whole.

    python resume_driver.py FOLDER METHOD KILLS

A moment is a step, and a random part of the time after it in the child's own processor time, so that a busy or slow
machine does not move them far.
Prints, per kill, what the child left: nothing, a checkpoint, or all its work done; writes
FOLDER/{whole,killed}/end.safetensors: scores, optimizer state, head, and all else that training
changes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.train import Augment, Listener, Recipe, Step, from_tensors, train, training
from piggyback.train.checkpoint import optimizer_tensors
from piggyback.train.loop import Run


class KillAfter(Listener):
    """Ends the process as by kill -9 a while of processor time after so many steps; 0 for never."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds

    def on_step(self, step: Step) -> None:
        self.steps -= 1
        if self.steps == 0:
            signal.setitimer(
                signal.ITIMER_PROF, self.seconds
            )  # SIGPROF, which nobody handles, is fatal


def run(folder: Path, method: str, listener: Listener) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )
    labels = torch.arange(80) % 4
    images = (torch.rand(80, 3, 12, 12) * 150).byte()
    images[:, 0] += (labels * 25).byte().view(-1, 1, 1)
    data = from_tensors("toy", list("abcd"), (images, labels))
    recipe = Recipe(
        method,
        epochs=3,
        batch_size=8,
        norm="trained",
        mask_lr=1e-3,
        amp="no",
        channels_last="yes",
        augment=Augment(flip=True, policy="trivial"),
        checkpoint_minutes=0,  # after every step
    )
    finish = training.finish

    def finish_and_tell(done: Run) -> Any:
        ended = optimizer_tensors(done.learner.optimizer) | done.learner.live()
        plain = {name: tensor.contiguous().clone() for name, tensor in ended.items()}
        save_file(plain, folder / "end.safetensors")
        return finish(done)

    training.finish = finish_and_tell
    backbone = Backbone(module.eval(), "", Preprocessing(12), "8")
    train(backbone, data, "toy", recipe, folder, resume=True, listener=listener)


def in_child(folder: Path, method: str, steps: int = 0, seconds: float = 0) -> int:
    """Run in a child process that is killed as ``KillAfter`` says; return its status.

    No thread runs yet when it is forked.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(folder, method, KillAfter(steps, seconds))
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main() -> None:
    root, method, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for name in ("whole", "killed"):
        (root / name).mkdir(parents=True)
    if status := in_child(root / "whole", method):
        sys.exit(f"the undisturbed run ended with {status}")
    chance = random.Random(0)
    for _ in range(kills):
        in_child(root / "killed", method, chance.randint(2, 5), chance.uniform(0.0, 0.01) + 1e-6)
        there = (root / "killed" / "checkpoint.safetensors").exists()
        done = (root / "killed" / "result.json").exists()
        sys.stdout.write("done\n" if done else "checkpoint\n" if there else "nothing\n")
        if done:
            break
    sys.exit(1 if in_child(root / "killed", method) else 0)


if __name__ == "__main__":
    main()
