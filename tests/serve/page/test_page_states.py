"""What the page says when things are not as they should be, and how it looks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from piggyback.errors import OverloadError
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from support.fake_engine import running
from support.stand_in import Service, StandIn, task
from support.visiting import photo, take, until

Visit = Callable[..., Any]
HOSTILE = "<img src=x onerror=alert(1)>" + "long" * 25
NAMES = ("مرحبا بالعالم", "🦉 owl", "a" * 200, "<b>bold</b>", "<script>alert(2)</script>")


def wait_for_state(page: Any, text: str) -> None:
    until(page, "text => document.querySelector('#state').textContent === text", arg=text)


def test_a_token_is_asked_for_once_it_is_needed(visit: Visit) -> None:
    page = visit(Service([task("birds")], token="s3cret"))
    page.wait_for_selector("#token")
    assert page.evaluate("document.activeElement.id") == "token-text"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.locator("#token-why", has_text="found another one").wait_for()
    assert page.locator("#token-text").input_value() == ""
    page.set_input_files("#files", photo())  # it waits
    page.keyboard.type("s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bars")
    assert not page.locator("#token").is_visible()
    assert page.evaluate("Object.values(sessionStorage)") == ["s3cret"]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    page.reload()
    page.wait_for_selector("#tasks")
    assert not page.locator("#token").is_visible()


def test_an_error_line_is_shown_as_it_is(visit: Visit) -> None:
    service = Service(
        [task("birds")], failure=OverloadError("1024 questions wait: <try> again in 1 s")
    )
    page = visit(service)
    page.set_input_files("#files", photo())
    page.wait_for_selector(".error")
    assert page.locator(".error").inner_text() == "1024 questions wait: <try> again in 1 s"
    assert page.locator("#spoken").text_content() == "1024 questions wait: <try> again in 1 s"
    service.failure = None
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".bars")
    assert page.locator(".error").count() == 0


def test_a_file_that_is_too_large_is_not_sent(visit: Visit) -> None:
    service = Service([task("birds")], limits=Limits(body_bytes=1500))
    page = visit(service)
    big = {"name": "big.jpg", "mimeType": "image/jpeg", "buffer": b"x" * 2000}
    page.set_input_files("#files", [big, photo()])
    page.wait_for_selector(".bars")
    assert page.locator(".error").inner_text() == (
        "big.jpg: 2.00 kB; this server takes at most 1.50 kB. It was not sent: choose a smaller one."
    )
    assert service.images == [photo()["buffer"]]


def test_an_image_with_too_many_pixels_is_not_sent(visit: Visit) -> None:
    service = Service([task("birds")], pixels=1000)
    page = visit(service)
    page.set_input_files("#files", photo(size=(40, 30)))
    page.wait_for_selector("text=40 x 30 pixels; this server takes at most 1,000 pixels")
    assert service.images == []


def test_no_tasks_yet(visit: Visit) -> None:
    service = Service()
    page = visit(service, clock=True)
    page.wait_for_selector("text=There are no tasks yet")
    assert not page.locator("#tasks").is_visible()
    service.tasks = [task("birds")]
    page.clock.run_for(3100)
    page.wait_for_selector("#tasks >> text=birds")


def test_starting_then_ready_then_stopping(visit: Visit) -> None:
    go = threading.Event()

    def start() -> StandIn:
        assert go.wait(30)
        return StandIn(Service([task("birds")]))

    with running(create_app(start), ready=False) as server:
        page = visit(f"{server.address}/", clock=True)
        wait_for_state(page, "the network is being loaded; ask again in a moment")
        assert page.locator("#state").get_attribute("data-state") == "starting"
        go.set()
        until(page, "fetch('health').then((said) => said.ok)")
        page.clock.run_for(3100)
        wait_for_state(page, "Ready")
        server.service.refuse()
        page.clock.run_for(3100)
        wait_for_state(page, "the server is stopping")
        assert page.locator("#tasks tbody tr").count() == 1  # what was known stays


def test_offline_and_back(visit: Visit) -> None:
    page = visit(Service([task("birds")]))
    page.wait_for_selector("#tasks")
    page.context.set_offline(True)
    page.set_input_files("#files", photo())
    page.wait_for_selector(".error")
    assert (
        page.locator(".error").inner_text() == "no answer from the server: this device is offline"
    )
    page.context.set_offline(False)
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".bars")


def test_the_list_keeps_itself_up_to_date_without_moving_the_focus(visit: Visit) -> None:
    service = Service([task("birds"), task("flowers")])
    page = visit(service, clock=True)
    page.wait_for_selector("#tasks")
    page.get_by_role("button", name="flowers").focus()
    page.evaluate("document.querySelector('#tasks tbody tr').mark = 'the same row'")
    service.tasks = [task("birds"), task("crops"), task("flowers", tier="dense")]
    page.clock.run_for(3100)
    page.wait_for_selector("#tasks >> text=crops")
    assert page.locator("#tasks td[data-tier]").all_inner_texts() == ["packed", "packed", "dense"]
    assert page.evaluate("document.activeElement.textContent") == "flowers"
    assert page.evaluate("document.querySelector('#tasks tbody tr').mark") == "the same row"


def test_a_hidden_page_asks_nothing(visit: Visit) -> None:
    service = Service([task("birds")])
    page = visit(service, clock=True)
    page.wait_for_selector("#tasks")
    become = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(become, True)
    before = len(service.asked)
    page.clock.run_for(60_000)
    assert len(service.asked) == before
    with page.expect_response("**/v1/tasks"):
        page.evaluate(become, False)


def test_refused_files_and_their_reasons(visit: Visit) -> None:
    page = visit(
        Service([task("birds")], refused={"old.safetensors": "made for another <backbone>"})
    )
    page.wait_for_selector("#refused")
    assert page.locator("#refused dt").inner_text() == "old.safetensors"
    assert page.locator("#refused dd").inner_text() == "made for another <backbone>"


def test_names_stay_text(visit: Visit) -> None:
    page = visit(Service([task(HOSTILE, NAMES), task("b")], refused={HOSTILE: HOSTILE}))
    take(page, "<img")
    page.set_input_files("#files", photo("<i>x</i>.jpg"))
    page.wait_for_selector(".bars")
    assert page.locator(".bars bdi").all_inner_texts() == list(NAMES)
    assert page.locator("figcaption bdi").inner_text() == "<i>x</i>.jpg"
    assert page.locator("#tasks tbody bdi").first.inner_text() == HOSTILE
    assert page.locator("main img").count() == 1  # the preview
    assert page.locator("main script, main b, main i").count() == 0


@pytest.mark.parametrize("width", [320, 360, 1024])
def test_nothing_is_wider_than_the_screen(visit: Visit, width: int) -> None:
    service = Service([task(HOSTILE, NAMES, "disk"), task("b")], refused={HOSTILE: HOSTILE * 2})
    page = visit(service, viewport={"width": width, "height": 740}, has_touch=True)
    page.set_input_files("#files", [photo("x" * 150 + ".jpg", (900, 300)), photo()])
    until(page, "document.querySelectorAll('.bars').length === 2")
    page.locator("summary").last.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") == width
    table = page.locator(".scroll")
    assert table.evaluate("it => it.scrollWidth <= it.clientWidth")
    assert page.get_by_role("button", name="Take a photo").is_visible()
    small = "all => all.filter(it => it.offsetWidth && it.offsetHeight < 24).map(it => it.id || it.textContent)"
    assert page.locator("button, input, summary").evaluate_all(small) == []


CONTRASTS = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const linear = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    };
    const ground = (it) => {
        for (let at = it; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    const ratio = (a, b) => {
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
    };
    const found = [];
    for (const it of document.body.querySelectorAll("*")) {
        if (!it.checkVisibility()) continue;
        const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        const name = it.id || it.textContent.slice(0, 40);
        if (own) found.push([name, ratio(parse(getComputedStyle(it).color), ground(it)), 4.5]);
        const hint = it.placeholder && getComputedStyle(it, "::placeholder").color;
        if (hint) found.push([name, ratio(parse(hint), ground(it)), 4.5]);
        if (it.matches("input, .head button, #drop"))
            found.push([name, ratio(parse(getComputedStyle(it).borderTopColor), ground(it.parentElement)), 3]);
        if (it.matches(".bar span"))
            found.push(["bar", ratio(parse(getComputedStyle(it).backgroundColor), ground(it.parentElement)), 3]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(visit: Visit, scheme: str) -> None:
    service = Service(
        [task("birds", tier="dense"), task("flowers", tier="disk")],
        refused={"old.safetensors": "made for another backbone"},
        limits=Limits(body_bytes=1500),
    )
    page = visit(service, color_scheme=scheme)
    page.set_input_files(
        "#files", [photo(), {"name": "big.jpg", "mimeType": "", "buffer": b"x" * 2000}]
    )
    page.wait_for_selector(".bars")
    page.wait_for_selector(".error")
    page.get_by_role("button", name="birds").click()
    page.locator("summary").first.click()
    page.locator("#task").click()
    page.keyboard.press("ArrowDown")
    page.evaluate("document.querySelector('#token').hidden = false")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert [(name, round(ratio, 2)) for name, ratio, wanted in found if ratio < wanted] == []


def test_motion_only_for_those_who_want_it(visit: Visit) -> None:
    for motion, seconds in (("reduce", "0s"), ("no-preference", "0.35s")):
        page = visit(Service([task("birds")]), reduced_motion=motion)
        page.set_input_files("#files", photo())
        page.wait_for_selector(".bars")
        bar = page.locator(".bar span").first
        assert bar.evaluate("it => getComputedStyle(it).transitionDuration") == seconds
