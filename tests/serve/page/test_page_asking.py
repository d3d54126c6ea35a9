"""What a user does on the page, and what is there then."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.stand_in import Service, task
from support.visiting import photo, take, until

FLOWERS = ("oxeye daisy", "sunflower", "gazania", "dandelion", "moss rose", "lily")
Visit = Callable[..., Any]


def few(**changes: Any) -> Service:
    tasks = [
        task("birds", ("wren", "robin")),
        task("flowers", FLOWERS, "dense"),
        task("signs-64px", tier="disk"),
    ]
    return Service(tasks, **changes)


def bars(page: Any) -> list[tuple[str, str, float]]:
    """Return class, percentage and the bar's part of its track, of every row."""
    page.wait_for_selector(".bars")
    return [
        (
            row.locator("bdi").inner_text(),
            row.locator(".number").inner_text(),
            row.locator(".bar span").bounding_box()["width"]
            / row.locator(".bar").bounding_box()["width"],
        )
        for row in page.locator(".bars li").all()
    ]


def test_a_task_and_a_file_give_bars(visit: Visit) -> None:
    service = few()
    page = visit(service)
    take(page, "flowers")
    sent = photo()
    page.set_input_files("#files", sent)
    shown = bars(page)
    assert [(name, text) for name, text, _ in shown] == [
        ("oxeye daisy", "75.0%"),
        ("sunflower", "15.0%"),
        ("gazania", "3.0%"),
        ("dandelion", "0.6%"),
        ("moss rose", "0.1%"),
    ]
    assert [width for *_, width in shown] == pytest.approx(
        [0.75, 0.15, 0.03, 0.006, 0.0012], abs=0.004
    )
    assert service.images == [sent["buffer"]]  # as it is, byte for byte
    said = page.locator(".said").inner_text()
    assert f"Answered by flowers, version {service.tasks[1].version}" in said
    assert "From a dense copy" in said
    assert page.locator(".card img").evaluate("image => image.naturalWidth") == 64


def test_the_time_is_broken_down(visit: Visit) -> None:
    page = visit(few())
    take(page, "flowers")
    page.set_input_files("#files", photo())
    page.wait_for_selector(".times")
    rows = dict(text.split("\n") for text in page.locator(".times div").all_inner_texts())
    assert rows["Reading image"] == "3.2 ms"
    assert rows["Waiting"] == "1.1 ms"
    assert rows["Loading task"] == "0.0 ms"
    assert rows["Running"] == "15 ms"
    assert rows["In the server"] == "19 ms"
    assert rows["Batch of"] == "1 image"
    assert re.fullmatch(r"[\d.]+ m?s", rows["Round trip"])


@pytest.mark.parametrize(
    ("name", "words"), [("birds", "From packed bits"), ("signs-64px", "From disk")]
)
def test_where_the_task_was_is_said_in_words(visit: Visit, name: str, words: str) -> None:
    page = visit(few())
    take(page, name)
    page.set_input_files("#files", photo())
    page.wait_for_selector(f"text={words}")


def decide(page: Any) -> None:
    """Let the tasks decide."""
    page.get_by_role("combobox", name="Task").click()
    page.get_by_text("Let the tasks decide").click()


def test_the_tasks_decide_if_asked(visit: Visit) -> None:
    service = few()
    page = visit(service)
    assert page.get_by_role("combobox", name="Task").input_value() == "birds"
    decide(page)
    page.set_input_files("#files", photo())
    assert bars(page)[0][0] == "wren"
    page.get_by_text("How sure each of 3 tasks is").click()
    assert [text.split("\n") for text in page.locator(".others li").all_inner_texts()] == [
        ["birds", "wren", "90.0%"],
        ["flowers", "oxeye daisy", "45.0%"],
        ["signs-64px", "cat", "30.0%"],
    ]
    assert service.asked[-1] == "/v1/predict?top_k=5"


def test_no_task_answers_where_none_is_sure(visit: Visit) -> None:
    page = visit(few(sure=False))
    decide(page)
    page.set_input_files("#files", photo())
    page.wait_for_selector(".others")
    assert "None of these" in page.locator(".said").inner_text()
    assert "None of these" in page.locator("#spoken").inner_text()
    assert page.locator(".bars").count() == 0
    take(page, "flowers")
    assert bars(page)[0][0] == "oxeye daisy"


def test_another_task_is_asked_about_the_same_image(visit: Visit) -> None:
    service = few()
    page = visit(service)
    take(page, "flowers")
    page.set_input_files("#files", photo())
    assert bars(page)[0][0] == "oxeye daisy"
    page.get_by_role("button", name="birds").click()
    page.wait_for_selector(".bars >> text=wren")
    page.get_by_role("button", name="Ask again").click()
    until(page, "document.querySelector('.card').getAttribute('aria-busy') === 'false'")
    assert [path for path in service.asked if "predict" in path] == [
        "/v1/tasks/flowers/predict?top_k=5",
        "/v1/tasks/birds/predict?top_k=5",
        "/v1/tasks/birds/predict?top_k=5",
    ]
    assert len(set(service.images)) == 1


def test_several_images_have_a_card_each(visit: Visit) -> None:
    service = few()
    page = visit(service)
    names = [f"photo-{i}{'x' * i}.jpg" for i in range(6)]
    page.set_input_files("#files", [photo(name) for name in names])
    until(page, "document.querySelectorAll('.bars').length === 6")
    captions = page.locator("figcaption bdi").all_inner_texts()
    assert captions == names
    assert sorted(service.images) == sorted(photo(name)["buffer"] for name in names)


def test_an_image_is_pasted(visit: Visit) -> None:
    service = few()
    page = visit(service, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(8, 8);
            canvas.getContext("2d").fillRect(0, 0, 8, 8);
            const blob = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }"""
    )
    page.keyboard.press("Control+V")
    assert bars(page)
    assert [image[:8] for image in service.images] == [b"\x89PNG\r\n\x1a\n"]


def test_an_image_is_dropped_anywhere(visit: Visit) -> None:
    service = few()
    page = visit(service)
    sent = photo()
    dropped = page.evaluate_handle(
        """([name, data]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([new Uint8Array(data)], name, { type: "image/jpeg" }));
            return moved;
        }""",
        [sent["name"], list(sent["buffer"])],
    )
    page.dispatch_event("header", "dragover", {"dataTransfer": dropped})
    assert "over" in page.locator("#drop").get_attribute("class")
    page.dispatch_event("header", "drop", {"dataTransfer": dropped})
    assert bars(page)
    assert page.locator("#drop").get_attribute("class") == ""
    assert service.images == [sent["buffer"]]


def test_everything_can_be_done_by_keyboard(visit: Visit) -> None:
    service = few()
    page = visit(service)
    page.on("filechooser", lambda chooser: None)  # from the start: the real dialog would win a race
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"no visible focus on {order[-1]}"
    assert order == ["task", "SUMMARY", "choose", "copy", "PRE", "filter"]

    page.locator("#task").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#task").get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    active = page.locator(f"#{page.locator('#task').get_attribute('aria-activedescendant')}")
    assert active.inner_text().split("\n")[0] == "flowers"
    assert active.get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#task").get_attribute("aria-expanded") == "false"
    assert page.locator("#task").input_value() == "birds"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator("#task").input_value() == "signs-64px"

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "What it can answer"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as choosing:
        page.keyboard.press("Enter")
    choosing.value.set_files([photo()])
    assert bars(page)[0][0] == "cat"


def test_the_answer_is_told_to_those_who_listen(visit: Visit) -> None:
    page = visit(few())
    take(page, "flowers")
    page.set_input_files("#files", photo())
    until(page, "document.querySelector('#spoken').textContent !== ''")
    assert page.locator("#spoken").get_attribute("role") == "status"
    spoken = page.locator("#spoken").text_content()
    assert re.fullmatch(r"oxeye daisy, 75\.0%, says flowers, in [\d.]+ m?s\.", spoken)


def test_a_thousand_tasks_are_searched(visit: Visit) -> None:
    tasks = [task(f"task-{i}", (f"class {i}", "other"), "disk") for i in range(1000)]
    page = visit(Service(tasks))
    assert page.locator("#tasks tbody tr").count() == 200
    assert page.locator("#tasks-more").inner_text() == "800 more tasks: search to find them"
    assert (
        page.locator("#tasks tbody tr td:first-child").nth(2).inner_text() == "task-2"
    )  # not task-10
    field = page.get_by_role("combobox", name="Task")
    field.click()
    assert page.locator("#task-list li").count() == 200
    assert page.locator("#task-more").inner_text() == "800 more tasks: search to find them"
    assert page.get_by_text("Let the tasks decide").count() == 0  # the server would not ask so many
    field.fill("ASK-456")
    assert page.locator("#task-list li").all_inner_texts() == ["task-456\n2 classes"]
    field.fill("class 77")
    assert page.locator("#task-list li").all_inner_texts()[0] == "task-77\nclass 77"
    page.keyboard.press("Enter")
    assert field.input_value() == "task-77"
    field.fill("nothing like this")
    assert page.locator("#task-more").inner_text() == "No task has this in its name or its classes."
    page.get_by_role("button", name="Task", exact=True).click()
    assert page.locator("#tasks tbody bdi").first.inner_text() == "task-999"  # all are sorted
    page.get_by_role("searchbox", name="Search the tasks").fill("task-99")
    assert page.locator("#tasks tbody tr").count() == 11


def test_the_list_can_be_sorted(visit: Visit) -> None:
    page = visit(few())
    names = page.locator("#tasks tbody td:first-child")
    assert names.all_inner_texts() == ["birds", "flowers", "signs-64px"]
    page.get_by_role("button", name="Classes").click()
    assert names.all_inner_texts() == ["birds", "signs-64px", "flowers"]
    page.get_by_role("button", name="Classes").click()
    assert names.all_inner_texts() == ["flowers", "signs-64px", "birds"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Where").click()
    assert page.locator("#tasks td[data-tier]").all_inner_texts() == ["dense", "packed", "disk"]


def test_the_command_is_copied_without_the_token(visit: Visit, tmp_path: Path) -> None:
    service = few(token="s3cret")
    page = visit(service, permissions=["clipboard-read", "clipboard-write"])
    page.fill("#token-text", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#curl")
    take(page, "flowers")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_selector("text=Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == (
        'curl -H "Authorization: Bearer $PIGGYBACK_TOKEN" -F image=@photo.jpg '
        f"'{page.url}v1/tasks/flowers/predict?top_k=5'"
    )
    if shutil.which("curl"):
        sent = photo()["buffer"]
        (tmp_path / "photo.jpg").write_bytes(sent)
        env = {"PIGGYBACK_TOKEN": "s3cret", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        ran = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, check=True
        )
        assert b"oxeye daisy" in ran.stdout
        assert service.images == [sent]


def test_numbers_and_labels_are_shown_as_such(visit: Visit) -> None:
    tasks = [
        task("height", ("tall",), kind="regression"),
        task("tags", ("sea", "sky"), kind="multilabel"),
    ]
    page = visit(Service(tasks))
    take(page, "height")
    page.set_input_files("#files", photo())
    page.wait_for_selector(".bars")
    assert page.locator(".bars li").inner_text().split("\n") == ["tall", "1,235 m"]
    take(page, "tags")
    page.set_input_files("#files", photo())
    page.get_by_text("Labels: sea.").wait_for()


def test_a_text_is_written_and_its_spans_are_marked(visit: Visit) -> None:
    tasks = [
        task("places", ("O", "B-place", "I-place"), kind="tokens", max_tokens=512),
        task("mood", ("bad", "good"), max_tokens=512),
    ]
    service = Service(tasks)
    page = visit(service)
    take(page, "places")
    assert not page.locator("#drop").is_visible()
    page.get_by_role("textbox", name="Text").fill("😀 <Paris> is far")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector("mark")
    assert page.locator("mark").inner_text() == "Paris place"
    assert page.locator(".marked").inner_text() == "😀 <Paris place> is far"
    assert page.locator("blockquote").inner_text() == "😀 <Paris> is far"
    assert service.images == ["😀 <Paris> is far".encode()]
    times = page.locator(".times").inner_text()
    assert "Reading text" in times
    assert "1 text" in times
    assert "image" not in times
    take(page, "mood")
    page.wait_for_selector(".bars")
    assert bars(page)[0][0] == "bad"
