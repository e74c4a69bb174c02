"""Everything that is written to the terminal except progress: tables, JSON, notes, log lines.

Documents, ids and file names are text of unknown origin. What goes into a table or a message is stripped of control
characters and escape sequences, and is never read as markup.
"""

import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from typing import Any, Literal, NamedTuple

import click

PIPE_WIDTH = 120
LIBRARIES = ("llmindex", "llmindex_training")

_ELLIPSIS = "…"

_ESCAPE_SEQUENCE = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement
    r"|(?:\x1b[\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS and their kin
    r"|\x1b[ -/]*[0-~]?"
)
# Controls, line and direction overrides, lone surrogates; joiners stay, as emoji and several scripts need them.
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: its heading.
        align: "right" for numbers.
        fit: "full" is as wide as its widest cell; "quarter" too, up to a quarter of the line, and "most" up to two
            thirds of what the full ones leave; "rest" shares with its like what is left then; "open" is never cut, but
            goes on in further lines on a terminal (for a last column that must be read whole).
    """

    title: str
    align: Literal["left", "right"] = "left"
    fit: Literal["full", "quarter", "most", "rest", "open"] = "full"


def plain(text: str) -> str:
    """Text as one line that a terminal shows and does not obey."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return re.sub(_UNPRINTABLE, "", " ".join(re.sub(_ESCAPE_SEQUENCE, "", text).split()))


def one_line(message: str) -> str:
    """A message on one line, with anything unprintable written as an escape."""
    folded = " ".join(part.strip() for part in message.splitlines() if part.strip())
    return re.sub(_UNPRINTABLE, lambda match: ascii(match[0])[1:-1], folded)


def cut(text: str, width: int) -> str:
    """Text shortened to a number of terminal cells, an ellipsis at its end if something is missing."""
    if _cells(text) <= width:
        return text
    ellipsis = _ELLIPSIS if _can_show(_ELLIPSIS) else "..."
    room = max(0, width - len(ellipsis))
    if text.isascii():
        return text[:room].rstrip() + ellipsis
    from rich.cells import set_cell_size

    return set_cell_size(text, room).rstrip() + ellipsis


def _cells(text: str) -> int:
    """Terminal cells of a text without controls; for ASCII, cut or not, rich need not be loaded."""
    if text.removesuffix(_ELLIPSIS).isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def say(line: str, *, heading: bool = False) -> None:
    """Write a line of results; a heading is bold on a terminal.

    Not by click.echo, which writes UTF-8 to streams that declare themselves ASCII.
    """
    if sys.stdout is None:
        return
    bold = heading and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    sys.stdout.write(f"\x1b[1m{line}\x1b[0m\n" if bold else f"{line}\n")


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under headings, fitted to the width of the terminal (120 columns where there is none).

    Args:
        columns: what is shown.
        rows: each as many cells as there are columns; their text may be anything.
    """
    # A cell shows at most one line of the text: what lies far behind its end need not be cleaned.
    total = _line_width()
    cells = [
        [plain(cell if column.fit == "open" else cell[: 16 * total]) for column, cell in zip(columns, row, strict=True)]
        for row in rows
    ]
    natural = [
        max([_cells(column.title), *(_cells(row[number]) for row in cells)]) for number, column in enumerate(columns)
    ]
    widths = _widths(columns, natural, total)
    for line in _lines([column.title for column in columns], columns, widths, total):
        say(line, heading=True)
    for row in cells:
        for line in _lines(row, columns, widths, total):
            say(line)


def _line_width() -> int:
    """As ``shutil.get_terminal_size`` has it, which a search does without: shutil loads three compressors."""
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with suppress(OSError):
        return os.get_terminal_size().columns or PIPE_WIDTH
    return PIPE_WIDTH


def _widths(columns: Sequence[Column], natural: Sequence[int], total: int) -> list[int]:
    widths = list(natural)
    gaps = 2 * (len(columns) - 1)
    fixed = sum(width for column, width in zip(columns, natural, strict=True) if column.fit in ("full", "open"))
    limits = {"quarter": total // 4, "most": max(8, (total - gaps - fixed) * 2 // 3)}
    for number, column in enumerate(columns):
        widths[number] = min(widths[number], limits.get(column.fit, widths[number]))
    flexible = [number for number, column in enumerate(columns) if column.fit == "rest"]
    spare = total - gaps - sum(w for n, w in enumerate(widths) if n not in flexible)
    for left, number in zip(range(len(flexible), 0, -1), flexible, strict=True):
        widths[number] = min(natural[number], max(8, spare // left))
        spare -= widths[number]
    return widths


def _lines(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int], total: int) -> list[str]:
    """A row: one line, but for an open cell that a terminal has no room for. Who reads a pipe reads by the line."""
    line = _line(cells, columns, widths)
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    if columns[-1].fit != "open" or not on_terminal or _cells(line) <= total:
        return [line]
    import textwrap

    first = _line([*cells[:-1], ""], columns, widths)
    start = sum(widths[:-1]) + 2 * (len(widths) - 1)
    indent = start if start <= total // 2 else 4  # where the others leave little, it has lines of its own
    # Words, such as paths, stay whole: who copies one wants no break in it.
    parts = textwrap.wrap(cells[-1], max(1, total - indent), break_long_words=False, break_on_hyphens=False)
    further = [" " * indent + part for part in parts]
    return [first, *further] if indent < start else [first + further[0][len(first) :], *further[1:]]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        shown = cell if column.fit == "open" else cut(cell, width)
        padding = " " * (width - _cells(shown))
        parts.append(padding + shown if column.align == "right" else shown + padding)
    return "  ".join(parts).rstrip()


def print_facts(facts: Mapping[str, str]) -> None:
    """Write names and values, one pair a line, the values below each other."""
    shown = {plain(name): plain(value) for name, value in facts.items()}
    width = max(map(len, shown))
    for name, value in shown.items():
        say(f"{name:<{width}}  {value}")


def print_json(value: Any) -> None:  # noqa: ANN401  (whatever a corpus's columns hold)
    """Write one JSON object on one line, in UTF-8 whatever the terminal speaks."""
    if sys.stdout is None:
        return
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    # A live progress bar takes what is written to the terminal, and has no encoding.
    if reconfigure is not None and (sys.stdout.encoding or "utf8").lower().replace("-", "") != "utf8":
        reconfigure(encoding="utf-8")
    line = json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False)
    # json leaves these as they are; a terminal would obey some, and some readers end a line at the others.
    sys.stdout.write(
        re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"
    )


def json_safe(value: Any) -> Any:  # noqa: ANN401
    """A value of any Arrow column as JSON has it.

    Dates and times become ISO 8601, durations seconds, decimals strings, bytes base64, NaN and infinities null.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return json_safe(value.tolist())
    return str(value)


def note(message: str) -> None:
    """A hint for the person at the terminal, on standard error; not with -q."""
    if not is_quiet():
        write_to_stderr(one_line(message))


def write_to_stderr(line: str) -> None:
    """Write a line to standard error; where nobody takes it, what is to be done goes on."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def is_quiet() -> bool:
    """Whether -q was given."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 document``, ``12,288 documents``."""
    return f"{number:,} {noun}" if number != 1 else f"1 {noun.removesuffix('s')}"


def kinds_of(bad_rows: Mapping[str, int]) -> str:
    """Counts of bad rows by kind: ``3 empty, 1 not utf8``."""
    return ", ".join(f"{rows:,} {kind.replace('_', ' ')}" for kind, rows in sorted(bad_rows.items()) if rows)


def duration(seconds: float) -> str:
    """A time as people say it: ``4.2 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """Bytes in the unit that fits: ``512 B``, ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeError:
        return False
    return True


class _StderrHandler(logging.Handler):
    """Writes each record as one line; looks ``sys.stderr`` up each time, so that a live progress bar can lift it."""

    def emit(self, record: logging.LogRecord) -> None:
        name = "" if record.name.startswith("llmindex") else f"{record.name}: "
        write_to_stderr(one_line(f"{record.levelname.capitalize()}: {name}{record.getMessage()}"))


def configure(*, quiet: bool, verbose: int) -> None:
    """Set how much of the library's and of its dependencies' talk reaches standard error."""
    ours = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    others = [logging.ERROR, logging.WARNING, logging.INFO][min(verbose, 2)]
    root = logging.getLogger()
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        root.addHandler(_StderrHandler())
    root.setLevel(others)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR if quiet and not verbose else ours)
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
