"""Maps: what is drawn, that both forms are whole or absent, and the page in a real browser, hostile texts included."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.cluster import map as module
from llmindex.cluster.clustering import Clustering, ClusterSummary, cluster
from llmindex.cluster.map import MapData, check_path, draw, figure, page, read, sample_rows, write_map
from llmindex.errors import MissingPackage, StorageError, UsageError
from llmindex.store.reader import VectorStore
from tests.samples import make_store, make_vectors

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<!--<script> ]]> ${alert(1)} {{7*7}} \u2028\u2029 \x00 &lt;b&gt; \"'"
)
PNG = b"\x89PNG\r\n\x1a\n"


def make_map(**changes: Any) -> MapData:  # noqa: ANN401
    """Five points of two clusters and one of noise, which lies in the middle."""
    data = MapData(
        title="ships and bread",
        documents=6,
        noise=1,
        positions=np.array([[-1, -1], [-1, -0.9], [-0.9, -1], [1, 1], [1, 0.9], [0, 0]], np.float32),
        labels=np.array([7, 7, 7, 2, 2, -1], np.int32),
        probabilities=np.array([1, 0.5, 0.25, 1, 0.75, 0], np.float32),
        ids=["d0", "d1", "d2", "d3", "d4", "d5"],
        snippets=["harbour of ships", "a ship", "the Anchor", "warm bread", "yeast and bread", HOSTILE],
        clusters=[summary(7, 3, "harbour", "ship", "anchor"), summary(2, 2, "bread", "oven")],
    )
    return replace(data, **changes)


def summary(label: int, size: int, *keywords: str) -> ClusterSummary:
    return ClusterSummary(label, size, keywords, central_rows=(0,), central_ids=("d0",), persistence=0.5)


def random_map(count: int, clusters: int, seed: int = 0) -> MapData:
    """Clusters of Gaussian shape, a fifth of the points noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(-clusters // 4, clusters, count).clip(-1).astype(np.int32)
    centers = random.uniform(-0.8, 0.8, (clusters + 1, 2))
    positions = (centers[labels] + random.normal(scale=0.05, size=(count, 2))).clip(-1, 1).astype(np.float32)
    sizes = np.bincount(labels + 1, minlength=clusters + 1)
    return MapData(
        title="random",
        documents=count,
        noise=int(sizes[0]),
        positions=positions,
        labels=labels,
        probabilities=random.random(count, np.float32),
        ids=[f"d{i}" for i in range(count)],
        snippets=[f"document number {i}" for i in range(count)],
        clusters=sorted(
            [summary(i, int(sizes[i + 1]), f"keyword{i}", f"another{i}") for i in range(clusters)],
            key=lambda cluster: -cluster.size,
        ),
    )


def few(count: int) -> MapData:
    """So many points of noise, and nothing else."""
    zeros = np.zeros((count, 2), np.float32)
    noise = np.full(count, -1, np.int32)
    return MapData("few", count, count, zeros, noise, zeros[:, 0], ["d"] * count, ["text"] * count, [])


def embedded(html: str) -> Any:  # noqa: ANN401
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


# ---- What is drawn -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 6), max_size=200), st.integers(7, 220))
def test_a_sample_keeps_each_cluster_in_proportion(of: list[int], limit: int) -> None:
    labels = np.array(of, np.int32)
    rows = sample_rows(labels, limit)
    assert len(rows) == min(len(of), max(limit, 0))
    assert (np.diff(rows) > 0).all()
    share = len(rows) / max(len(labels), 1)
    for label in set(of):
        drawn, size = int((labels[rows] == label).sum()), of.count(label)
        assert drawn >= 1 or limit < len(set(of))
        assert abs(drawn - share * size) <= len(set(of))


def test_the_sample_is_always_the_same() -> None:
    labels = np.random.default_rng(1).integers(-1, 5, 1_000).astype(np.int32)
    assert (sample_rows(labels, 100) == sample_rows(labels, 100)).all()
    assert (sample_rows(labels, 1_000) == np.arange(1_000)).all()


def test_colours_are_distinct_while_they_last_and_then_far_apart() -> None:
    few = np.zeros((len(module.PALETTE), 2), np.float32)
    assert module.colors_of(few) == list(module.PALETTE)
    line = np.stack([np.arange(100), np.zeros(100)], axis=1).astype(np.float32)
    colors = module.colors_of(line)
    assert max(colors.count(color) for color in colors) <= 5
    for color in set(colors):
        bearers = [place for place, other in enumerate(colors) if other == color]
        assert min(np.diff(bearers), default=99) >= 10


def make_clustering(store: VectorStore, labels: NDArray[np.int32]) -> Clustering:
    """A clustering of the store with these labels, whatever the vectors say."""
    sizes = {label: int((labels == label).sum()) for label in sorted(set(labels.tolist()) - {-1})}
    return replace(
        cluster(store),
        labels=labels,
        probabilities=np.linspace(0, 1, len(labels), dtype=np.float32),
        clusters=tuple(summary(label, size, f"word{label}") for label, size in sizes.items()),
    )


def test_read_gathers_ids_texts_and_places_from_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "harbour.llmindex", make_vectors(30, 8))
    labels = np.array([0] * 8 + [1] * 12 + [-1] * 10, np.int32)
    seen: list[str] = []
    data = read(store, make_clustering(store, labels), lambda progress: seen.append(progress.stage))
    assert (data.title, data.documents, data.noise, len(data)) == ("harbour", 30, 10, 30)
    assert (data.ids[3], data.snippets[3], data.probabilities[-1]) == ("d3", "document number 3", 1.0)
    assert [cluster.label for cluster in data.clusters] == [1, 0]
    assert data.positions.shape == (30, 2)
    assert set(seen) == {"layout"}


def test_a_large_corpus_is_sampled_and_the_map_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", 20)
    store = make_store(tmp_path / "harbour.llmindex", make_vectors(50, 8))
    clustering = make_clustering(store, np.repeat(np.array([0, 1, -1], np.int32), [20, 20, 10]))
    data = read(store, clustering)
    assert (len(data), data.documents, data.noise) == (20, 50, 10)
    assert [int((data.labels == label).sum()) for label in (0, 1, -1)] == [8, 8, 4]
    assert data.ids == [f"d{row}" for row in sample_rows(clustering.labels, 20)]
    assert "a sample of 20 documents" in embedded(page(data))["note"]
    assert "a sample of 20" in " ".join(text.get_text() for text in figure(data).texts)
    assert embedded(page(make_map()))["note"] == ""


def test_long_texts_are_cut() -> None:
    assert module._shorten("a\n\n b\t c", 10) == "a b c"
    assert module._shorten("word " * 1_000, 12) == "word word w…"
    assert module._shorten("", 5) == ""


# ---- Files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["map.html", "map.png", "MAP.PNG"])
def test_write_map(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "harbour.llmindex", make_vectors(30, 8))
    clustering = make_clustering(store, np.repeat(np.array([0, 1, -1], np.int32), 10))
    path = tmp_path / name
    write_map(path, store, clustering)
    first = path.read_bytes()
    assert first.startswith(PNG if name.lower().endswith(".png") else b"<!doctype html>")
    write_map(path, store, clustering)
    assert path.read_bytes() == first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["harbour.llmindex", name])


@pytest.mark.parametrize("name", ["map.pdf", "map", ".html", "missing/map.html"])
def test_a_name_that_cannot_work_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UsageError, match=re.escape(f"--plot {path}")):
        check_path(path)
    with pytest.raises(UsageError):
        draw(path, make_map())
    assert not list(tmp_path.iterdir())


def test_an_image_needs_matplotlib_and_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"pip install 'llmindex\[plot\]'"):
        draw(tmp_path / "map.png", make_map())
    draw(tmp_path / "map.html", make_map())


def test_a_failed_write_leaves_the_map_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.html"
    draw(path, make_map())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        draw(path, make_map(title="other"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_importing_loads_nothing_heavy() -> None:
    program = "import sys, llmindex.cluster.map; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"matplotlib", "sklearn", "torch"} & set(loaded)


# ---- The page's source ---------------------------------------------------------------------------------------------


def test_the_page_carries_the_data() -> None:
    content = embedded(page(make_map()))
    assert content["texts"][5] == HOSTILE
    assert content["cluster"] == [0, 0, 0, 1, 1, -1]
    assert [(one["size"], one["keywords"]) for one in content["clusters"]] == [
        (3, ["harbour", "ship", "anchor"]),
        (2, ["bread", "oven"]),
    ]
    assert content["counts"] == "6 documents, 2 clusters, 16.7% noise"


def test_no_text_can_leave_its_element() -> None:
    data = make_map(title=HOSTILE, ids=[HOSTILE] * 6, clusters=[summary(7, 3, HOSTILE), summary(2, 2, HOSTILE)])
    plain = make_map(title="", snippets=[""] * 6)
    html = page(data)
    # However hostile the texts, the page has the same elements as one without them.
    assert re.findall(r"<[!/a-z][^\s>]*", html) == re.findall(r"<[!/a-z][^\s>]*", page(plain))
    body = html.partition('id="data">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(body)


def test_the_page_asks_for_nothing() -> None:
    html = page(make_map(snippets=[""] * 6))
    assert "default-src 'none'" in html
    assert "unsafe" not in html
    assert not re.search(r"https?:|//cdn|@import|url\(|<link|innerHTML|insertAdjacent|document\.write|eval\(", html)


# ---- The image -----------------------------------------------------------------------------------------------------


def names(data: MapData) -> "list[Any]":
    return [text for text in figure(data).axes[0].texts if text.get_text()]


@pytest.mark.parametrize(("count", "clusters"), [(300, 5), (2_000, 60)])
def test_names_do_not_overlap_nor_leave_the_image(count: int, clusters: int) -> None:
    data = random_map(count, clusters)
    texts = names(replace(data, clusters=[replace(data.clusters[0], keywords=("long" * 20,)), *data.clusters[1:]]))
    assert min(clusters, 10) - 2 <= len(texts) <= module.LABELED
    image = texts[0].figure
    image.canvas.draw()  # where they are in the end, and not where they were when placed
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(image.bbox.x0 <= box.x0 and box.x1 <= image.bbox.x1 for box in boxes)


def test_a_name_at_the_edge_is_moved_inwards() -> None:
    left = np.tile(np.array([[-1, 0], [1, 0.1]], np.float32), (3, 1))
    data = make_map(
        positions=left,
        labels=np.array([7, 2] * 3, np.int32),
        clusters=[summary(7, 3, "long" * 9), summary(2, 3, "long" * 9)],
    )
    first, second = names(data)
    first.figure.canvas.draw()
    assert first.get_window_extent().x0 >= 0
    assert second.get_window_extent().x1 <= first.figure.bbox.x1


@pytest.mark.parametrize(
    "data",
    [
        make_map(title="$x^2$ and \\frac{"),
        make_map(clusters=[summary(7, 3, "機械", "学习", "$a"), summary(2, 2)]),
        make_map(clusters=[], labels=np.full(6, -1, np.int32), noise=6),
        make_map(noise=0, labels=np.array([7, 7, 7, 2, 2, 2], np.int32)),
        few(0),
        few(1),
    ],
    ids=["mathematics", "scripts", "all noise", "no noise", "nothing", "one point"],
)
def test_unusual_maps_are_drawn(tmp_path: Path, data: MapData) -> None:
    for suffix in module.SUFFIXES:
        draw(tmp_path / f"map{suffix}", data)
        assert (tmp_path / f"map{suffix}").stat().st_size > 1_000


def test_noise_is_grey_and_underneath() -> None:
    first, *others = figure(make_map()).axes[0].collections
    red, green, blue, _ = first.get_facecolor()[0]
    assert max(red, green, blue) - min(red, green, blue) < 0.05
    assert [np.shape(dots.get_offsets())[0] for dots in (first, *others)] == [1, 3, 2]


# ---- The page in a browser -----------------------------------------------------------------------------------------

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
