"""A headless Chromium for the page's tests, and a way to visit what a server says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.stand_in import Service, served
from support.visiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REFUSED = re.compile(r"Failed to load resource: (the server responded with a status of [45]|net::)")
"""What Chromium itself notes about an answer that is an error, however well a page deals with it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for a module's tests; playwright's loop would disturb other tests if it lived on."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium, or another one on the path")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """``visit(service or url, **context)`` opens the page. In the end: no error, no foreign address, no dialog."""
    seen: list[str] = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and not REFUSED.match(message.text):
            seen.append(f"console: {message.text}")

    def watch(page: Any, url: str) -> None:
        page.on("console", note)
        page.on("pageerror", lambda error: seen.append(f"script: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, f"blob:{url}"))
                else seen.append(f"foreign address: {request.url}")
            ),
        )

    with ExitStack() as stack:

        def open_page(served_by: Service | str, *, clock: bool = False, **context: Any) -> Any:
            url = (
                served_by if isinstance(served_by, str) else stack.enter_context(served(served_by))
            )
            opened = browser.new_context(**{"reduced_motion": "reduce", **context})
            stack.callback(opened.close)
            opened.set_default_timeout(60_000)
            page = opened.new_page()
            watch(page, url)
            if clock:
                page.clock.install()
            page.goto(url)
            until(page, "document.querySelector('#state').textContent !== ''")
            return page

        yield open_page
    assert not seen
