"""Where a run computes and how: defaults by device and network, bfloat16, compiled, on GPUs, in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from piggyback.taskfile.file import load_file
from piggyback.train import Recipe, device, train
from piggyback.train.device import Speed, speed_of
from support.training_toys import interrupted

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DENSE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
DEPTHWISE = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
LINEAR = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("network", "place", "multiplies", "speed"),
    [
        (DENSE, CPU, True, Speed("bf16", True)),
        (DENSE, CPU, False, Speed("no", True)),
        (DEPTHWISE, CPU, True, Speed("no", True)),
        (DEPTHWISE, CUDA, True, Speed("bf16", True)),
        (LINEAR, CPU, True, Speed("bf16", False)),
    ],
)
def test_how_to_compute_follows_from_network_and_device(
    network, place, multiplies, speed, monkeypatch
):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda _: multiplies)
    assert speed_of(Recipe(), network, place) == speed
    asked = Recipe(amp="bf16", channels_last="no")
    assert speed_of(asked, network, place) == Speed("bf16", False)


def test_bfloat16_trains(backbone, data, recipe):
    result = train(backbone, data, "a", recipe(amp="bf16", channels_last="yes", epochs=8))
    assert result.accuracy > 60
    assert result.provenance["speed"] == {"amp": "bf16", "channels_last": True}


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(backbone, data, recipe):
    plain = train(backbone, data, "a", recipe("head", epochs=2))
    fast = train(backbone, data, "a", recipe("head", epochs=2, compile=True))
    assert fast.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, abs=0.2)
    assert fast.accuracy == pytest.approx(plain.accuracy, abs=15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["masks", "finetune"])
def test_on_a_gpu_a_resumed_run_ends_as_an_undisturbed_one(
    method, backbone, data, recipe, tmp_path
):
    options = recipe(method, epochs=4, amp="bf16", channels_last="yes")
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    whole = train(backbone, data, "a", options)
    assert whole.provenance["machine"]["device"] == "cuda"
    resumed = interrupted(backbone, data, "a", options, tmp_path)
    assert [row.train_loss for row in resumed.history] == [row.train_loss for row in whole.history]
    assert resumed.accuracy == whole.accuracy
    for name, tensor in backbone.module.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])


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
recipe = Recipe(epochs=2, batch_size=16, mask_lr=1e-3, amp="no", channels_last="no")
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
def test_two_processes_learn_what_one_learns(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone, together = (launch(script, tmp_path / str(n), n) for n in (1, 2))
    assert alone == together
    assert len(together) == 1
    one, two = (load_file(tmp_path / str(n) / "toy.safetensors") for n in (1, 2))
    assert abs(one.density - two.density) < 0.02
    assert two.info.provenance["machine"]["processes"] == 2
