"""What a run shows on a console of 80 columns."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from piggyback.backbones.backbone import Backbone
from piggyback.training import ImageData, train
from piggyback.training.progress import ProgressBar


def test_a_pipe_gets_one_line_an_epoch_and_nothing_else(
    backbone: Backbone, data: ImageData, recipe: Callable[..., object]
) -> None:
    text = io.StringIO()
    train(backbone, data, "colours", recipe(), listener=ProgressBar(Console(file=text, width=80)))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    size = "16 px (the images hold 16)"
    assert lines[0] == f"colours · masks: 108 images, {size}, 3 epochs of 3 steps, float32"
    for number, line in enumerate(lines[1:], 1):
        assert line.startswith(f"  epoch {number}/3  loss ")
        assert "img/s" in line
        assert "kept" in line
        assert len(line) <= 80


def test_a_terminal_gets_a_bar_with_speed_and_time_left(
    backbone: Backbone, data: ImageData, recipe: Callable[..., object]
) -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True)
    train(backbone, data, "colours", recipe("head"), listener=ProgressBar(console))
    shown = text.getvalue()
    assert "img/s" in shown
    assert "left" in shown
    assert "measuring on test" in shown
    assert shown.endswith("\x1b[?25h") or "\x1b[?25h" in shown.rsplit("\x1b[?25l", 1)[-1]
