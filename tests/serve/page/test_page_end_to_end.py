"""The page, the real server, the real engine and a network that knows colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from support import map_tasks
from support.colour_tasks import Colours, picture, task_file
from support.fake_engine import FakeEngine, served
from support.visiting import photo, take, until

Visit = Callable[..., Any]


def upload(colour: str) -> dict[str, Any]:
    """A picture as playwright's file inputs take it."""
    return {"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture(colour)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shift in (("colours", 0), ("shifted", 1)):
        (tmp_path / f"{name}.safetensors").write_bytes(task_file(name, shift))
    (tmp_path / "broken.safetensors").write_bytes(b"not a task")
    return tmp_path


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(Colours(), folder, "64MiB", EngineOptions(watch_s=0.05, device="cpu")) as started:
        yield started


def test_answers_errors_and_new_tasks_reach_the_page(
    visit: Visit, engine: Engine, folder: Path
) -> None:
    with served(engine, token="s3cret") as server:
        page = visit(f"{server.address}/")
        page.wait_for_selector("#token")
        page.fill("#token-text", "s3cret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#tasks")
        assert page.locator("#tasks tbody bdi").all_inner_texts() == ["colours", "shifted"]
        assert page.locator("#refused dt").inner_text() == "broken.safetensors"

        take(page, "shifted")
        page.set_input_files("#files", upload("red"))
        page.wait_for_selector(".bars")
        first = page.locator(".bars li").first
        assert first.locator("bdi").inner_text() == "shifted lime"
        assert first.locator(".number").inner_text() == "96.5%"  # e^4 of e^4 + 2
        version = engine.task("shifted").version
        assert f"Answered by shifted, version {version}" in page.locator(".said").inner_text()

        take(page, "colours")
        until(page, "document.querySelector('.bars bdi')?.textContent === 'colours red'")

        page.set_input_files("#files", [{**photo(), "buffer": b"no image at all"}, upload("blue")])
        page.wait_for_selector(".error")
        page.wait_for_selector(".bars >> text=colours blue")
        assert "\n" not in page.locator(".error").inner_text()

        (folder / "late.safetensors").write_bytes(task_file("late", 2))
        page.wait_for_selector("#tasks >> text=late")


def test_the_documentation_opens_and_loads_nothing_from_elsewhere(browser: Any) -> None:
    seen: list[str] = []
    with served(FakeEngine()) as server:
        page = browser.new_page()
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda asked: seen.append(asked.url))
        page.goto(f"{server.address}/docs")
        page.wait_for_selector("[data-path='/v1/predict']")
        page.close()
    assert [one for one in seen if not one.startswith(server.address)] == []


def test_a_label_map_lies_over_its_picture(visit: Visit, tmp_path: Path) -> None:
    for name, seed in (("streets", 1), ("trees", 2)):
        (tmp_path / f"{name}.safetensors").write_bytes(map_tasks.task_file(name, seed))
    options = EngineOptions(watch_s=0, device="cpu", precision="float32")
    sent = map_tasks.picture(1, (60, 90), "JPEG", turned=6)
    with Engine(map_tasks.build(), tmp_path, options=options) as engine, served(engine) as server:
        page = visit(f"{server.address}/")
        page.set_input_files("#files", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": sent})
        page.wait_for_selector(".shares li")
        until(page, "document.querySelector('.map').naturalWidth === 90")
        assert page.evaluate("document.querySelector('.map').naturalHeight") == 60
        picture, drawn = (
            page.locator(one).bounding_box() for one in (".view img >> nth=0", ".map")
        )
        assert picture == drawn

        found = engine.predict(sent, "streets").label_map.shares
        assert page.locator(".shares bdi").all_inner_texts() == [one.name for one in found]
        first = page.locator(".shares .number").first.inner_text()
        assert first == f"{found[0].percent:.1f}%"
        colours = page.evaluate(
            "[...document.querySelectorAll('.shares li')].map((li) => li.style.getPropertyValue('--colour'))"
        )
        assert colours == [one.colour for one in found]
        assert f"{found[0].name} {first}" in page.locator("#spoken").inner_text()
        page.get_by_role("combobox", name="Task").click()
        assert page.locator("#task-list li").count() == 2  # no letting the tasks decide
        page.get_by_label("Label map").fill("0")
        assert page.evaluate("getComputedStyle(document.querySelector('.map')).opacity") == "0"
