"""Coloured squares, a toy backbone in a file, a trained task, the command line in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback.cli import main
from support.cli_toys import BACKBONE, COLOURS, FAST, Command, Ran, train


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``path/to/file.py`` of the toy backbones; add ``:build``."""
    file = tmp_path_factory.mktemp("backbone") / "toy.py"
    file.write_text(BACKBONE)
    return str(file)


@pytest.fixture(scope="session")
def network(toy: str) -> tuple[str, str]:
    """The option that trusts the toy backbone's code."""
    return "--backbone", f"{toy}:build"


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: train/ and test/ with squares that are mostly blue, green or red."""
    root = tmp_path_factory.mktemp("images") / "colours"
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name in COLOURS:
            (root / split / name).mkdir(parents=True)
            for at in range(count):
                pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8)
                pixels[..., {"red": 0, "green": 1, "blue": 2}[name]] += 120
                Image.fromarray(pixels).save(root / split / name / f"{at}.png")
    return root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the current folder, know no data sets, and see 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIGGYBACK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def piggyback(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        captured = capsys.readouterr()
        return Ran(code if isinstance(code, int) else int(code is not None), *captured)

    return run


@pytest.fixture(scope="session")
def trained(toy: str, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task file, trained by ``piggyback train``."""
    out = tmp_path_factory.mktemp("trained")
    train("--data", colours, "--backbone", f"{toy}:build", "--out", out, *FAST)
    return out / "colours.safetensors"
