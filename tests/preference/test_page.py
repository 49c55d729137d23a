"""The page in a real browser, against a real server: what a listener sees, presses and hears."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from musicrl.preference.collect import CollectConfig
from musicrl.preference.database import READS
from musicrl.preference.server import PAGE
from musicrl.preference.store import Store
from musicrl.preference.tables import choices, prompts, ratings, servings
from tests.preference.playable import write_tones
from tests.preference.serving import ServerThread

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PHONE, DESK = {"width": 320, "height": 640}, {"width": 1200, "height": 800}
TOUCH = 44
"""Pixels that a control must measure at least."""
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--mute-audio"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("pools") / "pool", seconds=0.8)


@pytest.fixture(scope="module")
def comparing(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    with ServerThread(CollectConfig(out=tmp_path_factory.mktemp("out"), pool=tones)) as server:
        yield server


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """`visit(url)` opens a page as a new listener; at the end, nothing may have gone wrong on it:
    no fault of a script, nothing blocked by the policy, no request to another host. The one thing
    that may be told is that a request was refused."""
    with ExitStack() as stack:
        faults: list[str] = []
        told: list[str] = []

        def go(url: str, viewport: dict[str, int] = DESK, *, has_touch: bool = False) -> Page:
            context = chromium.new_context(viewport=viewport, has_touch=has_touch)  # type: ignore[arg-type]
            stack.callback(context.close)
            page = context.new_page()

            def check(request: Request) -> None:
                if not request.url.startswith((url, f"blob:{url}")):
                    faults.append(f"asked {request.url}")

            page.on("request", check)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.on("console", lambda message: told.append(message.text))
            page.goto(url)
            return page

        yield go
        assert not faults
        assert all("the server responded with a status of 503" in text for text in told), told


def listen(page: Page, *sides: str) -> None:
    for side in sides:
        page.click(f".card[data-side={side}] .play")
        page.wait_for_selector(f".card[data-side={side}] .heard.enough")


def stored(server: ServerThread, table: object = choices) -> list[dict[str, object]]:
    """Answers with their prompts, oldest first."""
    store = Store.open(server.out / "preferences.db")
    query = select(table, prompts.c.text).select_from(table.join(servings).join(prompts))  # type: ignore
    with store.engine.connect().execution_options(**READS) as connection:
        rows = [dict(row._mapping) for row in connection.execute(query)]
    store.close()
    return rows


@pytest.mark.browser
def test_listen_to_both_give_the_trophy_go_on(comparing: ServerThread, visit: Open) -> None:
    page = visit(comparing.url)
    before = len(stored(comparing))
    chip = page.locator("#suggestions button").first
    text = chip.text_content()
    chip.click()
    page.wait_for_selector(".card[data-side=b]")
    assert page.locator("#asked").text_content() == text
    trophies = page.locator(".trophy")
    assert [trophies.nth(i).is_disabled() for i in range(2)] == [True, True]
    listen(page, "a")
    assert trophies.nth(0).is_disabled()
    listen(page, "b")
    page.get_by_role("button", name="Give the trophy to clip B").click()
    assert [trophies.nth(i).get_attribute("aria-pressed") for i in range(2)] == ["false", "true"]
    assert page.locator("#status").text_content() == "The trophy goes to clip B."
    page.click("#next")
    page.wait_for_selector("#ask:not([hidden])")
    assert page.locator("#count").text_content() == "1 answer, thank you"
    (answer,) = stored(comparing)[before:]
    assert (answer["choice"], answer["text"]) == ("b", text)
    assert answer["heard_a"] >= 0.5 <= answer["heard_b"]  # type: ignore[operator]


@pytest.mark.browser
def test_the_keyboard_is_enough(comparing: ServerThread, visit: Open) -> None:
    page = visit(comparing.url)
    before = len(stored(comparing))
    page.wait_for_selector("#suggestions button")
    page.keyboard.press("n")
    page.wait_for_selector(".card[data-side=b]")
    page.keyboard.press("1")  # too early: nothing happens
    for key in ("a", "b"):
        page.keyboard.press(key)
        page.wait_for_selector(f".card[data-side={key}] .heard.enough")
    for key in ("2", "1"):
        page.keyboard.press(key)
    assert page.locator(".card.winner").get_attribute("data-side") == "a"
    page.keyboard.press("n")
    page.wait_for_selector("#ask:not([hidden])")
    assert [row["choice"] for row in stored(comparing)[before:]] == ["a"]


@pytest.mark.browser
def test_an_answer_lost_on_the_way_is_sent_again_and_kept_once(
    comparing: ServerThread, visit: Open
) -> None:
    page = visit(comparing.url)
    before, lost = len(stored(comparing)), []

    def lose(route: Route) -> None:
        lost.append(route.fetch().json())  # the server has it, the page never learns
        route.fulfill(status=503, body="{}")

    page.wait_for_selector("#suggestions button")
    page.click("#surprise")
    page.wait_for_selector(".card[data-side=b]")
    page.route("**/api/choices", lose, times=1)
    page.click("#next")
    page.wait_for_selector("#ask:not([hidden])")
    assert lost == [{"kept": True, "new": True, "answered": 1}]
    assert page.locator("#count").text_content() == "1 answer, thank you"
    assert [row["choice"] for row in stored(comparing)[before:]] == ["none"]


@pytest.mark.browser
def test_only_what_is_played_counts_as_heard(comparing: ServerThread, visit: Open) -> None:
    page = visit(comparing.url)
    page.wait_for_selector("#suggestions button")
    page.click("#surprise")
    slider = page.get_by_role("slider", name="Position in clip A")
    slider.wait_for()
    slider.fill("900")  # to the end, past what must be heard
    page.click(".card[data-side=a] .play")
    page.wait_for_selector(".card.playing", state="detached")
    page.wait_for_timeout(200)
    text = page.locator(".card[data-side=a] .heard").text_content() or ""
    assert int(text.split()[0]) < 30
    assert page.locator(".trophy").first.is_disabled()


@pytest.mark.browser
def test_clips_are_rated_from_one_to_five(tones: Path, tmp_path: Path, visit: Open) -> None:
    with ServerThread(CollectConfig(out=tmp_path, pool=tones, mode="rating")) as server:
        page = visit(server.url)
        page.wait_for_selector(".card[data-side=a]")
        marks = page.get_by_role("radio")
        assert [marks.nth(i).is_disabled() for i in range(5)] == [True] * 5
        listen(page, "a")
        first = page.locator("#asked").text_content()
        page.get_by_role("radio", name=re.compile("4")).check()
        page.click("#next")
        page.get_by_text("1 answer, thank you").wait_for()
        page.wait_for_selector(".card[data-side=a] .heard:not(.enough)")
        assert page.locator("#next").is_disabled()
        (mark,) = stored(server, ratings)
        assert (mark["score"], mark["text"]) == (4, first)


@pytest.mark.browser
def test_a_phone_shows_all_of_it_and_fingers_can_press_it(
    comparing: ServerThread, visit: Open
) -> None:
    page = visit(comparing.url, PHONE, has_touch=True)
    page.wait_for_selector("#suggestions button")
    check_touch(page)
    page.tap("#surprise")
    page.wait_for_selector(".card[data-side=b]")
    check_touch(page)
    page.tap(".card[data-side=a] .play")
    page.wait_for_selector(".card[data-side=a] .heard.enough")


def check_touch(page: Page) -> None:
    """Nothing is wider than the screen, and every control is as large as a finger."""
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    controls = page.locator("button:visible, input:visible")
    boxes = [controls.nth(i).bounding_box() for i in range(controls.count())]
    assert len(boxes) > 3
    for box in boxes:
        assert box is not None
        assert min(box["width"], box["height"]) >= TOUCH
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.browser
def test_a_hostile_text_is_shown_as_text(tiny_world: Path, tmp_path: Path, visit: Open) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    with ServerThread(CollectConfig(out=tmp_path, weights=tiny_world)) as server:
        page = visit(server.url)
        page.get_by_label("Describe some music").fill(hostile)
        page.keyboard.press("Enter")
        page.wait_for_selector(".card[data-side=b]")
        assert page.locator("#asked").text_content() == hostile
        assert page.locator("#asked").evaluate("box => box.children.length") == 0


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_and_white() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_text_stands_out(scheme: int) -> None:
    styles = (PAGE / "page.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", styles, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    pairs = [
        *((text, back) for text in ("ink", "soft", "accent", "gold") for back in ("paper", "card")),
        ("accent-ink", "accent"),
        ("ink", "accent-soft"),
        ("gold", "gold-soft"),
        ("fault", "fault-soft"),
    ]
    for text, back in pairs:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for back in ("paper", "card"):  # edges of controls need less (WCAG 1.4.11)
        assert contrast(colours["edge"], colours[back]) >= 3, back
