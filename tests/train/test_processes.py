"""Two processes learn what one learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from piggyback.taskfile.file import load_file

SCRIPT = """
import sys
import torch
from torch import nn
from piggyback.network.backbone import Backbone
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import Recipe, from_tensors, train

torch.manual_seed(0)
module = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
)
labels = torch.arange(90) % 3
images = (torch.rand(90, 3, 12, 12) * 100).byte()
images[torch.arange(90), labels] += 100
data = from_tensors("toy", list("abc"), (images, labels))
speed = {"amp": "no", "channels_last": "no"}
recipe = Recipe(epochs=2, batch_size=16, mask_lr=1e-3, **speed)
backbone = Backbone(module.eval(), "", Preprocessing(12), "4")
result = train(backbone, data, "toy", recipe, sys.argv[1])
print(f"accuracy {result.accuracy} loss {result.history[-1].train_loss:.5f}")
"""


def launch(script: Path, out: Path, processes: int) -> set[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), str(script), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {line for line in ran.stdout.splitlines() if line.startswith("accuracy")}


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone, together = (launch(script, tmp_path / str(n), n) for n in (1, 2))
    assert alone == together
    assert len(together) == 1
    one, two = (load_file(tmp_path / str(n) / "toy.safetensors") for n in (1, 2))
    assert abs(one.density - two.density) < 0.02
    assert two.info.provenance["machine"]["processes"] == 2
