"""The page of a map in a real browser, hostile texts included."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmindex.cluster.map import draw
from tests.map_samples import HOSTILE, few, make_map, random_map, summary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A headless Chromium; skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = [os.environ.get("LLMINDEX_TEST_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"]
    program = next(filter(None, map(shutil.which, filter(None, names))), None)
    if program is None:
        pytest.skip("no Chromium here: install one, or name it in LLMINDEX_TEST_BROWSER")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A map in the browser, and what it should not have done."""

    page: "Page"
    faults: list[str]
    requests: list[str]

    def __getitem__(self, selector: str) -> "Locator":
        return self.page.locator(selector)

    def middle(self) -> tuple[float, float]:
        box = self["#map"].bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element is seen with exactly this text."""
        from playwright.sync_api import expect

        expect(self[selector]).to_be_visible()
        expect(self[selector]).to_have_text(text)

    def color_at(self, x: float, y: float) -> list[int]:
        """Red, green and blue of the canvas at a place of the window, a moment later."""
        found: list[int] = self.page.evaluate(
            """([x, y]) => new Promise((done) => setTimeout(() => {
                const copy = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
                copy.drawImage(document.getElementById("map"), -x * devicePixelRatio, -y * devicePixelRatio);
                done([...copy.getImageData(0, 0, 1, 1).data].slice(0, 3));
            }, 200))""",
            [x, y],
        )
        return found


@pytest.fixture
def opened(browser: "Browser", tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The small map, or the one given as the fixture's parameter, in a window of its own."""
    path = tmp_path / "map.html"
    draw(path, getattr(request, "param", make_map()))
    context = browser.new_context(viewport={"width": 1000, "height": 700}, reduced_motion="reduce")
    window = context.new_page()
    window.set_default_timeout(10_000)
    result = Opened(window, [], [])
    window.on("console", lambda message: result.faults.append(message.text))
    window.on("pageerror", lambda error: result.faults.append(str(error)))
    window.on("request", lambda request: result.requests.append(request.url))
    window.goto(path.as_uri())
    yield result
    assert result.faults == []
    assert result.requests == [path.as_uri()]
    assert window.evaluate("window.hacked") is None
    context.close()


def test_page_opens(opened: Opened) -> None:
    opened.shows("h1", "ships and bread")
    opened.shows("#counts", "6 documents, 2 clusters, 16.7% noise")
    assert opened.page.title() == "ships and bread: map of 6 documents"
    assert opened["#legend button"].all_text_contents() == ["harbour, ship, anchor3", "bread, oven2"]
    assert opened["#noise-size"].text_content() == "1"


def test_page_shows_the_text_under_the_pointer_and_hostile_text_stays_text(opened: Opened) -> None:
    assert opened["#tip"].is_hidden()
    opened.page.mouse.move(*opened.middle())
    opened.shows("#tip-cluster", "Noise")
    assert opened["#tip-text"].text_content() == HOSTILE
    assert opened["#tip-text"].evaluate("element => element.childElementCount") == 0
    assert opened["#tip-id"].text_content() == "d5"
    opened.page.mouse.move(opened.middle()[0] + 60, opened.middle()[1])
    opened["#tip"].wait_for(state="hidden")


def test_page_keeps_a_clicked_point(opened: Opened) -> None:
    x, y = opened.middle()
    opened.page.mouse.click(x, y)
    opened.page.mouse.move(x + 100, y)
    opened.shows("#tip-id", "d5")
    opened.page.keyboard.press("Escape")
    opened["#tip"].wait_for(state="hidden")


def test_page_search_counts_zooms_and_clears(opened: Opened) -> None:
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("ANCHOR d2")
    opened.shows("#found", "Found 1 of 6; Enter zooms there")
    opened.page.keyboard.press("Enter")
    opened.page.mouse.move(*opened.middle())
    opened.shows("#tip-text", "the Anchor")
    opened.shows("#tip-cluster", "harbour, ship, anchor")
    opened.shows("#tip-probability", "probability 0.25")
    opened["#search"].fill("bread")
    opened.shows("#found", "Found 2 of 6; Enter zooms there")
    opened["#search"].fill("nothing like it")
    opened.shows("#found", "Found 0 of 6")
    opened["#search"].press("Escape")
    assert opened["#search"].input_value() == ""
    assert opened["#found"].text_content() == ""


def test_page_legend_isolates_clusters(opened: Opened) -> None:
    ships, bread = opened["#legend button"].all()
    opened["#search"].fill("a")  # a letter that every text has
    opened.shows("#found", "Found 6 of 6; Enter zooms there")
    ships.click()
    assert (ships.get_attribute("aria-pressed"), bread.get_attribute("aria-pressed")) == ("true", "false")
    opened.shows("#found", "Found 3 of 6, chosen clusters only; Enter zooms there")
    opened.page.mouse.move(*opened.middle())
    assert opened["#tip"].is_hidden()
    bread.click()
    opened.shows("#found", "Found 5 of 6, chosen clusters only; Enter zooms there")
    ships.click()
    opened.shows("#found", "Found 2 of 6, chosen clusters only; Enter zooms there")
    opened["#all"].click()
    opened.shows("#found", "Found 6 of 6; Enter zooms there")
    assert opened["#all"].is_disabled()


def test_page_hides_noise(opened: Opened) -> None:
    x, y = opened.middle()
    ground = opened.color_at(x + 60, y)
    assert opened.color_at(x, y) != ground
    opened["#noise"].uncheck()
    assert opened.color_at(x, y) == ground
    opened.page.mouse.move(x, y)
    assert opened["#tip"].is_hidden()
    opened["#noise"].check()
    assert opened.color_at(x, y) != ground


def test_page_by_keyboard(opened: Opened) -> None:
    opened["#map"].focus()
    opened.page.keyboard.press("n")
    opened.shows("#tip-id", "d5")
    opened.page.keyboard.press("n")
    opened.shows("#tip-id", "d0")
    assert opened["#announce"].text_content() == "d0, harbour, ship, anchor: harbour of ships"
    opened.page.keyboard.press("p")
    opened.shows("#tip-id", "d5")
    for key in ("+", "+", "ArrowLeft", "ArrowUp", "-", "0"):
        opened.page.keyboard.press(key)
    opened.page.keyboard.press("Escape")
    opened.page.mouse.move(*opened.middle())
    opened.shows("#tip-id", "d5")
    opened["#legend button"].first.focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Enter")
    assert opened["#legend button"].nth(1).get_attribute("aria-pressed") == "true"


def test_page_zooms_under_the_pointer_and_is_dragged(opened: Opened) -> None:
    x, y = opened.middle()
    opened.page.mouse.move(x, y)
    opened.page.mouse.wheel(0, -600)
    opened.shows("#tip-id", "d5")
    opened.page.mouse.move(x + 30, y + 30)
    opened["#tip"].wait_for(state="hidden")
    opened.page.mouse.down()
    opened.page.mouse.move(x + 130, y + 80, steps=5)
    opened.page.mouse.up()
    opened.page.mouse.move(x + 100, y + 50)
    opened.shows("#tip-id", "d5")
    opened["#zoom-fit"].click()
    opened.page.mouse.move(x, y)
    opened.shows("#tip-id", "d5")


def test_page_fits_any_window_and_both_themes(opened: Opened) -> None:
    x, y = opened.middle()
    assert min(opened.color_at(x + 60, y)) > 200
    opened.page.emulate_media(color_scheme="dark")
    assert max(opened.color_at(x + 60, y)) < 60
    for width, height in ((420, 800), (1_400, 500)):
        opened.page.set_viewport_size({"width": width, "height": height})
        opened.color_at(0, 0)
        opened.page.mouse.move(*opened.middle())
        opened.shows("#tip-id", "d5")
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "opened",
    [
        make_map(clusters=[], labels=np.full(6, -1, np.int32), noise=6),
        make_map(title=HOSTILE, ids=[HOSTILE] * 6, clusters=[summary(7, 3, HOSTILE, HOSTILE, HOSTILE), summary(2, 2)]),
        few(0),
        random_map(20_000, 60),
    ],
    ids=["all noise", "hostile", "nothing", "large"],
    indirect=True,
)
def test_page_of_unusual_maps(opened: Opened) -> None:
    opened.page.mouse.move(*opened.middle())
    opened["#search"].fill("nothing like it")
    opened["#search"].fill("")
    for button in opened["#legend button"].all()[:2]:
        button.click()
    opened["#map"].focus()
    opened.page.keyboard.press("n")
    opened["#zoom-in"].click()
