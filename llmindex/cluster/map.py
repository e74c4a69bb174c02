"""Pictures of a clustering: a web page to explore, and a still image.

Both are drawn from a ``MapData``, which knows nothing of stores: at most ``MAX_POINTS`` documents with a place in the
plane, their clusters and the start of their texts. The page is one file that never asks a network for anything, and
documents are hostile input to it: texts travel as escaped JSON, reach the page as text alone, and a content security
policy with the hashes of the page's own script and style forbids whatever else might slip in.
"""

import base64
import functools
import hashlib
import html
import importlib.resources
import importlib.util
import json
import string
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.layout import layout
from llmindex.errors import MissingPackage, UsageError
from llmindex.progress import ProgressCallback
from llmindex.records import Rows
from llmindex.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    from llmindex.cluster.clustering import Clustering, ClusterSummary
    from llmindex.store.reader import VectorStore

SUFFIXES: Final = (".html", ".png")

MAX_POINTS: Final = 20_000
"""More dots than this hide each other, and the page would grow beyond what a browser opens at once."""

SNIPPET_CHARACTERS: Final = 300
NAME_CHARACTERS: Final = 40
ID_CHARACTERS: Final = 120

PALETTE: Final = (
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5"),
    *("#9c6b4e", "#bc257d", "#c92516", "#089ac3", "#a1ca08", "#b273ac", "#6a770d", "#d79afc"),
    *("#a09c57", "#808ef3", "#01816e", "#06da76", "#d17a02", "#9c41ad", "#e466d3", "#cc8b86"),
)
"""Colours as far from each other, from grey, and from white and black grounds as 24 can be (in OKLab)."""

NOISE_COLOR: Final = "#c4c7cc"
INK: Final = "#1b1e23"

LABELED: Final = 40
"""Clusters named on the still image, if there is room."""

FALLBACK_FONTS: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans"),
    *("Noto Sans KR", "Malgun Gothic", "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Arial Unicode MS"),
)


@dataclass(frozen=True, slots=True)
class MapData:
    """What a map shows.

    Attributes:
        title: the index's name.
        documents: documents in the clustering; where more than points, the points are a sample.
        noise: documents of them in no cluster.
        positions: ``(m, 2) float32``, within -1 and 1, y upwards.
        labels: ``(m,) int32``, -1 for noise.
        probabilities: ``(m,) float32``.
        ids: of each point.
        snippets: the start of each point's text.
        clusters: all clusters, the largest first.
    """

    title: str
    documents: int
    noise: int
    positions: NDArray[np.float32]
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    ids: Sequence[str]
    snippets: Sequence[str]
    clusters: "Sequence[ClusterSummary]"

    def __len__(self) -> int:
        return len(self.labels)


def write_map(
    path: Path, store: "VectorStore", clustering: "Clustering", on_progress: ProgressCallback | None = None
) -> None:
    """Draw a clustering as a page (``.html``) or an image (``.png``).

    Raises:
        UsageError: if the suffix is neither, or the folder does not exist.
        MissingPackage: if an image is wanted and matplotlib is absent.
        StorageError: if the disk refused; a map that was there before is unharmed.
    """
    check_path(path)
    draw(path, read(store, clustering, on_progress))


def check_path(path: Path) -> None:
    """Refuse at once what would only fail after minutes of clustering.

    Raises:
        UsageError: if the suffix is not that of a map, or the folder does not exist.
        MissingPackage: if an image is wanted and matplotlib is absent.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: a map is a .html page or a .png image; end the name with one of these")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}; make it first")
    if path.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise MissingPackage(f"--plot {path} needs matplotlib: pip install matplotlib, or draw a .html map")


def read(store: "VectorStore", clustering: "Clustering", on_progress: ProgressCallback | None = None) -> MapData:
    """Gather from the store what a map shows, and give each document its place."""
    rows = sample_rows(clustering.labels, MAX_POINTS)
    ids, snippets = _beginnings(store, rows)
    return MapData(
        title=store.path.resolve().name.removesuffix(".llmindex"),
        documents=len(clustering.labels),
        noise=int((clustering.labels < 0).sum()),
        positions=layout(store.take_vectors(rows), on_progress=on_progress),
        labels=clustering.labels[rows],
        probabilities=clustering.probabilities[rows],
        ids=ids,
        snippets=snippets,
        clusters=sorted(clustering.clusters, key=lambda cluster: (-cluster.size, cluster.label)),
    )


def _beginnings(store: "VectorStore", rows: Rows) -> tuple[list[str], list[str]]:
    """Ids and texts of ascending rows, cut: whole, the texts of thousands of books would not fit into one column."""
    ids: list[str] = []
    snippets: list[str] = []
    start = 0
    for batch in store.iter_columns(["id", "text"]):
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        for row in (rows[first:last] - start).tolist():
            ids.append(_shorten(batch.column(0)[row].as_py(), ID_CHARACTERS))
            snippets.append(_shorten(batch.column(1)[row].as_py(), SNIPPET_CHARACTERS))
        start += len(batch)
    return ids, snippets


def draw(path: Path, data: MapData) -> None:
    """Write a map in the form that the suffix asks for; whole or not at all."""
    check_path(path)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".html":
            temporary.write_bytes(page(data).encode())
        else:
            _save(figure(data), temporary)


def sample_rows(labels: NDArray[np.int32], limit: int) -> Rows:
    """Return at most ``limit`` rows, sorted, each cluster and the noise in proportion and with one point at least."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, sizes = np.unique(labels[by_label], return_index=True, return_counts=True)
    # A row's place in its cluster's random order, as a share of the cluster: the lowest shares are taken from all.
    share = (np.arange(len(labels)) - np.repeat(starts, sizes)) / np.repeat(sizes, sizes)
    return np.sort(by_label[np.argsort(share, kind="stable")[:limit]]).astype(np.int64)


def _shorten(text: str, characters: int) -> str:
    line = " ".join(text[: 4 * characters].split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def _centers(data: MapData) -> NDArray[np.float32]:
    """The median place of each cluster's surer half, ``(clusters, 2) float32``; the origin for one without points."""
    centers = np.zeros((len(data.clusters), 2), np.float32)
    for place, cluster in enumerate(data.clusters):
        own = np.flatnonzero(data.labels == cluster.label)
        if len(own):
            sure = data.probabilities[own]
            centers[place] = np.median(data.positions[own[sure >= np.median(sure)]], axis=0)
    return centers


def colors_of(centers: NDArray[np.float32]) -> list[str]:
    """Choose a colour for each cluster: each its own while they last, then the one whose bearers are farthest away."""
    chosen: list[int] = list(range(min(len(PALETTE), len(centers))))
    for place in range(len(chosen), len(centers)):
        distances = np.linalg.norm(centers[:place] - centers[place], axis=1)
        nearest = np.full(len(PALETTE), np.inf)
        np.minimum.at(nearest, chosen, distances)
        chosen.append(int(nearest.argmax()))
    return [PALETTE[color] for color in chosen]


def counts_of(data: MapData) -> str:
    """Say in one line how much there is of what."""
    share = data.noise / data.documents if data.documents else 0.0
    documents = "document" if data.documents == 1 else "documents"
    clusters = "cluster" if len(data.clusters) == 1 else "clusters"
    return f"{data.documents:,} {documents}, {len(data.clusters):,} {clusters}, {share:.1%} noise"


# ---- The page ------------------------------------------------------------------------------------------------------


def page(data: MapData) -> str:
    """Return the interactive map: one HTML document that needs nothing else."""
    script, style = _asset("map_plot.js") + _asset("map_page.js"), _asset("map_style.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    return string.Template(_asset("map_template.html")).substitute(
        title=html.escape(f"{data.title}: map of {data.documents:,} documents"),
        policy=policy,
        style=style,
        script=script,
        data=_embedded(_content(data)),
    )


def _asset(name: str) -> str:
    return importlib.resources.files("llmindex.cluster").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _content(data: MapData) -> dict[str, Any]:
    centers = _centers(data)
    colors = colors_of(centers)
    note = (
        f"Drawn: a sample of {len(data):,} documents, each cluster in proportion. Search looks through the sample."
        if len(data) < data.documents
        else ""
    )
    place = {cluster.label: place for place, cluster in enumerate(data.clusters)}
    return {
        "title": data.title,
        "counts": counts_of(data),
        "note": note,
        "noise": data.noise,
        "clusters": [
            {
                "label": int(cluster.label),
                "size": int(cluster.size),
                "keywords": list(cluster.keywords),
                "day": color,
                "night": _lighter(color),
                "x": round(float(x), 4),
                "y": round(float(y), 4),
            }
            for cluster, color, (x, y) in zip(data.clusters, colors, centers, strict=True)
        ],
        "x": [round(x, 4) for x in data.positions[:, 0].tolist()],
        "y": [round(y, 4) for y in data.positions[:, 1].tolist()],
        "cluster": [place.get(label, -1) for label in data.labels.tolist()],
        "probability": [round(probability, 2) for probability in data.probabilities.tolist()],
        "ids": list(data.ids),
        "texts": list(data.snippets),
    }


def _lighter(color: str) -> str:
    """The same hue for a dark ground."""
    return "#" + "".join(f"{round(0.78 * int(color[i : i + 2], 16) + 0.22 * 255):02x}" for i in (1, 3, 5))


def _embedded(content: dict[str, Any]) -> str:
    """Write JSON that no HTML parser can leave: characters that could end the element are escaped within strings."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


# ---- The image -----------------------------------------------------------------------------------------------------


def figure(data: MapData) -> "Figure":
    """Return the still image; needs matplotlib and leaves its global state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 9.5), dpi=200, facecolor="white")
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0.02, 0.015, 0.96, 0.885))
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.03)
    centers = _centers(data)
    _scatter(axes, data, colors_of(centers))
    _headline(canvas, data)
    axes.apply_aspect()  # now, for names find their room in pixels
    with any_script():
        _name_clusters(canvas, axes, data, centers)
    return canvas


@contextmanager
def any_script() -> Iterator[None]:
    """Let a script that no installed font has be drawn as boxes, without a warning for each letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _save(image: "Figure", path: Path) -> None:
    with any_script():
        # The metadata would name matplotlib's version, and differ where the picture does not.
        image.savefig(path, format="png", metadata={"Software": None})


def _scatter(axes: "Axes", data: MapData, colors: Sequence[str]) -> None:
    """Noise underneath, then the clusters, small ones on top of large ones; the surer, the fuller the colour."""
    size = float(np.clip(60_000 / max(len(data), 1), 5, 34))
    noise = data.labels < 0
    axes.scatter(
        data.positions[noise, 0], data.positions[noise, 1], s=size * 0.7, c=NOISE_COLOR, alpha=0.5, linewidths=0
    )
    for cluster, color in zip(data.clusters, colors, strict=True):
        own = data.labels == cluster.label
        strength = 0.35 + 0.5 * np.clip(data.probabilities[own], 0, 1)
        axes.scatter(data.positions[own, 0], data.positions[own, 1], s=size, c=color, alpha=strength, linewidths=0)


def _headline(canvas: "Figure", data: MapData) -> None:
    counts = counts_of(data)
    if len(data) < data.documents:
        counts += f"; drawn: a sample of {len(data):,}"
    style: dict[str, Any] = {"ha": "left", "va": "baseline", "parse_math": False, "usetex": False, "family": fonts()}
    canvas.text(0.03, 0.95, _shorten(data.title, 80), size=19, weight="bold", color=INK, **style)
    canvas.text(0.03, 0.92, counts, size=11.5, color="#666c75", **style)


def _name_clusters(canvas: "Figure", axes: "Axes", data: MapData, centers: NDArray[np.float32]) -> None:
    """Write the largest clusters' keywords at their centres, a line higher or lower where another name is."""
    from matplotlib.patheffects import withStroke

    taken: list[Bbox] = []
    halo = [withStroke(linewidth=2.6, foreground="white", alpha=0.85)]
    style: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False, "usetex": False, "family": fonts()}
    style |= {"size": 9, "weight": "bold", "color": INK, "path_effects": halo, "textcoords": "offset points"}
    for cluster, center in list(zip(data.clusters, centers.tolist(), strict=True))[:LABELED]:
        text = axes.annotate(_shorten(" · ".join(cluster.keywords[:2]), NAME_CHARACTERS), center, (0, 0), **style)
        box = _free_place(text, canvas, taken)
        if box is None:
            text.remove()
        else:
            taken.append(box)


def _free_place(text: "Annotation", image: "Figure", taken: "Sequence[Bbox]") -> "Bbox | None":
    for offset in (0, 11, -11, 20, -20):
        text.set_position((0, offset))
        box = text.get_window_extent().padded(4)
        beyond = max(0, -box.x0) - max(0, box.x1 - image.bbox.width)  # back into the image, in pixels
        text.set_position((beyond * 72 / image.dpi, offset))
        box = box.translated(beyond, 0)
        if not any(box.overlaps(other) for other in taken):
            return box
    return None


@functools.cache
def fonts() -> list[str]:
    """Return matplotlib's own font, and whatever is installed for the scripts that it lacks."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
