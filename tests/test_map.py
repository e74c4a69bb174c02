"""Maps: what is drawn, that both forms are whole or absent, and that a text stays one in the page's source."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.cluster import map as module
from llmindex.cluster.clustering import Clustering, cluster
from llmindex.cluster.map import MapData, check_path, draw, figure, page, read, sample_rows, write_map
from llmindex.errors import MissingPackage, StorageError, UsageError
from llmindex.store.reader import VectorStore
from tests.map_samples import HOSTILE, few, make_map, random_map, summary
from tests.samples import make_store, make_vectors

if TYPE_CHECKING:
    pass


PNG = b"\x89PNG\r\n\x1a\n"


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


def test_whole_texts_are_never_in_memory_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 2 GB of them, which thousands of books have, are refused by Arrow, too."""
    monkeypatch.setattr(module, "MAX_POINTS", 20)
    monkeypatch.setattr("llmindex.store.writer.SHARD_ROWS", 30)
    store = make_store(tmp_path / "some.llmindex", make_vectors(100, 8), window=30)
    labels = np.repeat(np.arange(4, dtype=np.int32), 25)
    rows = sample_rows(labels, 20)
    clustering = make_clustering(store, labels)
    monkeypatch.delattr(VectorStore, "take")
    data = read(store, clustering)
    assert data.ids == [f"d{row}" for row in rows]
    assert data.snippets == [f"document number {row}" for row in rows]


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
    with pytest.raises(MissingPackage, match="pip install matplotlib"):
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
