"""Trains a tiny network in child processes that are killed at random moments, and once whole.

    python resume_driver.py FOLDER METHOD KILLS

The moments are counted in the child's own processor time, so that a busy machine does not move them.
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
from piggyback.train import Augment, Recipe, from_tensors, train, training
from piggyback.train.checkpoint import optimizer_tensors
from piggyback.train.loop import Run


def run(folder: Path, method: str) -> None:
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
    train(backbone, data, "toy", recipe, folder, resume=True)


def in_child(folder: Path, method: str, seconds: float = 0) -> tuple[int, float]:
    """Run in a child process that ends as by kill -9 after ``seconds`` of processor time, 0 for never.

    Returns its status and the processor time it took. No thread runs yet when it is forked.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, which nobody handles, is fatal
            run(folder, method)
            code = 0
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    return status, used.ru_utime + used.ru_stime


def main() -> None:
    root, method, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for name in ("whole", "killed"):
        (root / name).mkdir(parents=True)
    status, undisturbed = in_child(root / "whole", method)
    if status:
        sys.exit(f"the undisturbed run ended with {status}")
    chance = random.Random(0)
    for _ in range(kills):
        in_child(root / "killed", method, chance.uniform(0.1, 0.7) * undisturbed)
        there = (root / "killed" / "checkpoint.safetensors").exists()
        done = (root / "killed" / "result.json").exists()
        sys.stdout.write("done\n" if done else "checkpoint\n" if there else "nothing\n")
        if done:
            break
    status, _ = in_child(root / "killed", method)
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    main()
