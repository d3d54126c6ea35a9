"""``piggyback import-official`` and ``export-official`` on a whole DenseNet-121 with random weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from piggyback.lab.official.network import shared_weights
from piggyback.masks.bits import unpack_mask
from piggyback.taskfile.file import load_file
from support.cli_toys import Command
from support.official_packs import made_pack
from support.old_torch import save_old


@pytest.fixture(scope="module")
def densenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a backbone's weights and a ternary pack, and what is in the pack."""
    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    net = torchvision.models.densenet121()
    torch.save(net.state_dict(), folder / "densenet121.pth")
    pack = made_pack("densenet121", net, ternary=True, classes=102)
    for index, name in shared_weights("densenet121", net).items():
        pack["dataset2masks"]["flowers"][index][0] = 255 if "conv0" in name else 1
    save_old(pack, folder / "packed.pt", cuda=True)
    return folder, pack


def imported(piggyback: Command, pack: Path, densenet: Path, *out: str) -> Any:
    return piggyback(
        *("import-official", pack, "--arch", "densenet121", "--dataset", "flowers"),
        *("--checkpoint", densenet / "densenet121.pth", *out),
    )


def test_round_trip(piggyback, densenet, tmp_path):
    folder, pack = densenet
    ran = imported(piggyback, folder / "packed.pt", folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(
        "wrote flowers.safetensors: ternary masks of 6,870,208 weights in 120"
    )
    said = json.loads(piggyback("inspect", "flowers.safetensors", "--json").out)
    assert said["backbone"]["source"] == "torchvision:densenet121.IMAGENET1K_V1"
    assert (len(said["classes"]), said["rule"]["kind"]) == (102, "ternary")
    task = load_file("flowers.safetensors")
    onto = ("export-official", "flowers.safetensors", "--out", "flowers.safetensors")
    for ran in (imported(piggyback, folder / "packed.pt", folder), piggyback(*onto)):
        ran.refuses("--out 'flowers.safetensors'", "lost")
    with torch.device("meta"):
        indices = shared_weights("densenet121", torchvision.models.densenet121())
    expected = pack["dataset2masks"]["flowers"]
    for index, name in indices.items():
        assert torch.equal(unpack_mask(task.masks[name]), expected[index].view(torch.int8)), name

    (tmp_path / "again").mkdir()
    ran = piggyback("export-official", "flowers.safetensors", "--out", "again/packed.pt")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("wrote again/packed.pt: densenet121, flowers, ")
    ran = imported(piggyback, Path("again/packed.pt"), folder, "--out", "again.safetensors")
    assert ran.code == 0
    first, again = (Path(f"{name}.safetensors").read_bytes() for name in ("flowers", "again"))
    assert first == again


def test_errors_are_one_line(piggyback, densenet, trained):
    folder, _ = densenet
    ran = piggyback("import-official", "a.pt", "--arch", "vgg", "--dataset", "b", "--out", "c")
    assert ran.code == 2
    ran = piggyback(
        "import-official", "a.pt", "--arch", "vgg16", "--dataset", "b", "--checkpoint", "c"
    )
    assert "a.pt: it cannot be read" in ran.err, "before a network is fetched for it"
    torch.save({"dataset2masks": os.system}, "hostile.pt")
    ran = imported(piggyback, Path("hostile.pt"), folder)
    ran.refuses(f"error: hostile.pt: it holds '{os.system.__module__}.system'")
    assert not Path("flowers.safetensors").exists()
    ran = piggyback("export-official", trained, "--out", "packed.pt")
    ran.refuses("masks 2 weights: expected all those of torchvision's vgg16, vgg16bn")
    assert not Path("packed.pt").exists()
