"""A picture of the pooled token's attention: a bar a token, prompt and text in two colours, base above adapted."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmindex.cluster.map import any_script, fonts
from llmindex.errors import MissingPackage, UsageError
from llmindex.store.files import replacing
from llmindex_training.attention import AttentionReport, TokenAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = {"prompt": "#e0873a", "text": "#2f6fb0"}

_TOKEN_CHARACTERS: Final = 16
_INCHES_A_TOKEN: Final = 0.24
# matplotlib's Agg refuses pictures of 65,536 pixels and more a side.
_MOST_INCHES: Final = 400
_DPI: Final = 150
# What a PNG image begins with.
_PNG: Final = b"\x89PNG\r\n\x1a\n"


def check_path(path: Path) -> None:
    """Refuse at once what would only fail after the model has run.

    Raises:
        UsageError: the suffix is not ".png", the folder does not exist, or the file is there and is no picture.
        MissingPackage: matplotlib is absent.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: the picture is a .png image; end the name with it")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}; make it first")
    if path.is_file() and not _is_png(path):
        raise UsageError(f"--plot {path}: that file is there and is no .png image; name another one")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackage(f"--plot {path} needs matplotlib: pip install matplotlib")


def write_plot(path: Path, report: AttentionReport) -> None:
    """Draw the attention of one text's pooled token as a PNG image, whole or not at all.

    Raises:
        UsageError: the report is of several texts, or its text has no token but the first; or as :func:`check_path`.
        MissingPackage: matplotlib is absent.
        StorageError: the disk refused.
    """
    check_path(path)
    if not report.tokens:
        raise UsageError(f"--plot {path}: there is a bar a token, so one text alone can be drawn")
    if all(token.part == "first" for token in report.tokens):
        raise UsageError(f"--plot {path}: the first token is left out, and this text has no other; give a longer one")
    with replacing(path) as temporary, any_script():
        figure(report).savefig(temporary, format="png", metadata={"Software": None})


def _is_png(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PNG)) == _PNG
    except OSError:
        return False


def figure(report: AttentionReport) -> "Figure":
    """The picture; the first token, left out of the shares, is left out here as well."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [token for token in report.tokens if token.part != "first"]
    panels = {"base": [token.base for token in shown]}
    if report.adapted is not None:
        panels["adapted"] = [token.adapted or 0.0 for token in shown]
    width = min(max(7.0, 1.5 + _INCHES_A_TOKEN * len(shown)), _MOST_INCHES)
    canvas = Figure(figsize=(width, 1.2 + 2.4 * len(panels)), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(canvas)
    rows = canvas.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, heights) in zip(rows, panels.items(), strict=True):
        shares = report.base if name == "base" or report.adapted is None else report.adapted
        _draw(axes, shown, heights)
        axes.set_title(f"{name}: {shares.prompt_share:.0%} on the prompt, {shares.text_share:.0%} on the text", size=10)
    rows[-1].set_xticks(range(len(shown)), [_label(token) for token in shown], rotation=90, size=8)
    for label in rows[-1].get_xticklabels():
        label.set(parse_math=False, family=fonts())
    rows[0].legend(fontsize=8, frameon=False)
    canvas.supylabel(f"attention, layer {report.layer} of {report.layers}", size=9)
    return canvas


def _draw(axes: "Axes", tokens: Sequence[TokenAttention], heights: Sequence[float]) -> None:
    for part, color in COLORS.items():
        places = [place for place, token in enumerate(tokens) if token.part == part]
        axes.bar(places, [heights[place] for place in places], width=0.8, color=color, label=part)
    axes.set_xlim(-0.6, len(tokens) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)


def _label(token: TokenAttention) -> str:
    shown = token.shown
    return shown if len(shown) <= _TOKEN_CHARACTERS else f"{shown[: _TOKEN_CHARACTERS - 1]}…"
