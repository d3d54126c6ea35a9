"""What tests do on the page, over and over."""

from __future__ import annotations

import io
import time
from typing import Any

from PIL import Image


def photo(name: str = "meadow.jpg", size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    """Return a small JPEG as playwright's file inputs take it."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (120, 180, len(name) % 256)).save(buffer, "JPEG")
    return {"name": name, "mimeType": "image/jpeg", "buffer": buffer.getvalue()}


def take(page: Any, name: str) -> None:
    """Choose a task as a user with a keyboard does."""
    page.get_by_role("combobox", name="Task").fill(name)
    page.keyboard.press("Enter")


def until(page: Any, script: str, arg: Any = None, seconds: float = 60.0) -> None:
    """Wait until ``script`` is true on the page; playwright's own way needs what the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(script, arg):
        assert time.monotonic() < end, f"not within {seconds:g} s: {script}"
        page.wait_for_timeout(20)
