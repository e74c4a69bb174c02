"""Corpus: documents from files, folders or a table in memory, a window at a time.

Two invariants carry the rest of the product. Memory does not grow with the corpus: sources are read in chunks, and
ids are remembered on disk. And windows are a pure function of the documents: reading on from the position where any
window ended gives exactly the windows and positions that reading on without a break would have given.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import pyarrow as pa

from llmindex.corpus.arrow_tables import TableSource
from llmindex.corpus.checks import BAD_ROW_KINDS, CheckedRows, IsNew, check_rows, seen_ids
from llmindex.corpus.columns import ColumnPlan, plan_columns
from llmindex.corpus.discovery import STDIN, absolute, find_files, folder_of, spooled_stdin, without_repeats
from llmindex.corpus.formats import open_sources, stem
from llmindex.corpus.source import Chunk, Source, SourceFile, changed, counted, readable, reading
from llmindex.corpus.window import GrowingWindow, Position, Window
from llmindex.errors import CorpusError, UsageError
from llmindex.progress import Progress, ProgressCallback

Sources: TypeAlias = str | Path | Iterable[str | Path] | pa.Table
"""Of a corpus: files, folders, globs, "-" for standard input; or a table in memory."""

_LISTED_FILES = 100


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """How the rows of the sources become documents.

    Attributes:
        text_columns: joined with line ends to the text; empty for the column that is found by its name. One may be
            given as it is.
        id_column: None for a column named "id", else the row number.
        on_bad_row: whether a row that cannot become a document is left out and counted, or is an error.
    """

    text_columns: tuple[str, ...] = ()
    id_column: str | None = None
    on_bad_row: Literal["skip", "fail"] = "skip"

    def __post_init__(self) -> None:
        """Check what may be misspelt; a name is iterable, too, letter by letter.

        Raises:
            UsageError: there is no such thing to do about a bad row.
        """
        if isinstance(self.text_columns, str):
            object.__setattr__(self, "text_columns", (self.text_columns,))
        if self.on_bad_row not in ("skip", "fail"):
            raise UsageError(f'unknown on_bad_row "{self.on_bad_row}"; one of skip, fail')


_START = Position()
_DEFAULTS = CorpusOptions()


class Corpus:
    """Documents to be read in windows; made by :meth:`open`.

    Attributes:
        schema: id and text (strings, never null), then the other columns in their Arrow types.
        rows: rows in all sources, bad ones included.
        text_columns: whose values are the texts; none where whole files are texts.
        name: of the first source, without its ending; of a pattern's folder; "stdin" or "table" where it has none.
        record: what sources are read and how, as JSON values; equal records give equal windows.
    """

    def __init__(self, sources: Sequence[Source], options: CorpusOptions, name: str) -> None:
        self.rows = sum(source.rows for source in sources)
        if not self.rows:
            raise CorpusError(f"{_label(sources)} is empty: there are no documents in it")
        columns = plan_columns(sources, options.text_columns, options.id_column)
        self.schema: pa.Schema = columns.schema
        self.text_columns = tuple(columns.text)
        self.name = name
        self.record: dict[str, Any] = {
            "sources": _identities(sources),
            "text_columns": list(columns.text),
            "id_column": columns.id,
            "on_bad_row": options.on_bad_row,
        }
        self._sources = sources
        self._plans = columns.plans
        self._options = options
        self._resources = ExitStack()

    @classmethod
    def open(
        cls,
        sources: Sources,
        options: CorpusOptions = _DEFAULTS,
        on_progress: ProgressCallback | None = None,
    ) -> Self:
        """Find the sources, scan those whose row count and types no header tells, and choose the columns.

        Args:
            sources: files, folders, globs, "-" for standard input; or a table in memory.
            options: which columns to take and what to do about bad rows.
            on_progress: told of the scan, in rows.

        Raises:
            CorpusError: a source is missing, unreadable, broken or empty, or has not the columns that are needed.
            UsageError: as :func:`listed`, or there is no source.
        """
        if isinstance(sources, pa.Table):
            table = TableSource(sources)
            return cls([table], options, table.label)
        names = [str(source) for source in listed(sources)]
        if not names:
            raise UsageError("no corpus named; name files, folders, or - for standard input")
        with ExitStack() as resources:
            files = _all_files(names, resources)
            opened = _open_all(files, _common_folder(names), on_progress)
            corpus = cls(opened, options, _name_of(names[0]))
            corpus._resources = resources.pop_all()
        return corpus

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was kept of standard input, which cannot be read afterwards."""
        self._resources.close()

    def windows(self, max_rows: int, start: Position = _START, known_ids: Iterable[str] = ()) -> Iterator[Window]:
        """The documents from a position on.

        Args:
            max_rows: documents a window; fewer where texts are large (``WINDOW_TEXT_BYTES``), and in the last.
            start: where an earlier window ended.
            known_ids: ids of the documents up to there, so that repeated ones are found.

        Raises:
            CorpusError: no row is usable, a row is bad and must not be, or a source is broken or has changed.
        """
        if max_rows < 1:
            raise UsageError(f"a window needs at least one row, not {max_rows:,}")
        window = GrowingWindow(max_rows, self.schema)
        bad = Counter(start.bad_rows)
        for checked in self._checked(start.source_rows, known_ids):
            taken = 0
            while taken < checked.good.num_rows:
                if window.is_full:
                    yield window.finished(_position_before(checked, taken, bad))
                    window = GrowingWindow(max_rows, self.schema)
                taken += window.add(checked.good.slice(taken))
            bad.update(checked.bad_kinds.tolist())
        if window.rows:
            yield window.finished(Position(self.rows, dict(bad)))
        elif bad.total() == self.rows:
            raise self._nothing_usable(bad)

    def _checked(self, skip: int, known_ids: Iterable[str]) -> Iterator[CheckedRows]:
        with seen_ids(known_ids) if self._ids_may_repeat() else nullcontext() as is_new:
            first = 0
            for source, plan in zip(self._sources, self._plans, strict=True):
                if skip < first + source.rows:
                    yield from self._checked_source(source, plan, first, max(skip - first, 0), is_new)
                first += source.rows

    def _checked_source(
        self, source: Source, plan: ColumnPlan, first: int, skip: int, is_new: IsNew | None
    ) -> Iterator[CheckedRows]:
        row = skip
        for chunk in _guarded_chunks(source, skip, plan.wanted):
            checked = check_rows(chunk, first + row, plan, self.schema, is_new)
            if self._options.on_bad_row == "fail" and len(checked.bad_rows):
                raise _bad_row(source, checked, first)
            yield checked
            row += len(chunk.unreadable)
        if row != source.rows:
            raise changed(source.label)

    def _ids_may_repeat(self) -> bool:
        """Row numbers are unique, and so are the paths of text files, but not the two together."""
        if any(source.tabular and plan.id for source, plan in zip(self._sources, self._plans, strict=True)):
            return True
        return len({plan.id for plan in self._plans}) > 1

    def _nothing_usable(self, bad: Counter[str]) -> CorpusError:
        kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in sorted(bad.items()))
        remedy = "; convert it to UTF-8, as `iconv -f cp1252 -t utf-8` does" if bad["not_utf8"] else ""
        return CorpusError(
            f"{_label(self._sources)} has no usable text: {counted(self.rows, 'row')}, all bad ({kinds}){remedy}"
        )


def listed(sources: Sources) -> Sequence[str | Path] | pa.Table:
    """Sources as they can be gone through twice, wherever they come from.

    Raises:
        UsageError: they are neither files nor a table.
    """
    if isinstance(sources, pa.Table):
        return sources
    # What is made of columns, such as a frame of pandas, would be taken for a list of files by their names.
    found = [sources] if isinstance(sources, str | Path) or hasattr(sources, "columns") else list(sources)
    for source in found:
        if not isinstance(source, str | Path):
            kind = type(source).__name__
            raise UsageError(
                f"a corpus is files or a pyarrow.Table, not {kind}; pyarrow.table(frame) makes one of a data frame"
            )
    return found


def _guarded_chunks(source: Source, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
    with reading(source.label):
        yield from source.chunks(skip, wanted)


def _position_before(checked: CheckedRows, taken: int, bad_before: Counter[str]) -> Position:
    """The position of the document that comes after ``taken`` others of these rows."""
    row = int(checked.good_rows[taken])
    passed = Counter(checked.bad_kinds[checked.bad_rows < row].tolist())
    return Position(row, dict(bad_before + passed))


def _bad_row(source: Source, checked: CheckedRows, first: int) -> CorpusError:
    row, kind, id_ = int(checked.bad_rows[0]), str(checked.bad_kinds[0]), checked.bad_ids[0]
    named = f' (id "{readable(id_)}")' if id_ and source.tabular else ""
    remedy = "mend it, or leave such rows out with --on-bad-row skip"
    return CorpusError(f"{source.where(row - first)}{named}: {BAD_ROW_KINDS[kind]}; {remedy}")


def _label(sources: Sequence[Source]) -> str:
    more = f" (and {len(sources) - 1:,} more)" if len(sources) > 1 else ""
    return f"{sources[0].label}{more}"


def _all_files(names: Sequence[str], resources: ExitStack) -> list[SourceFile]:
    files: list[SourceFile] = []
    for name in dict.fromkeys(names):
        files += [resources.enter_context(spooled_stdin())] if name == STDIN else find_files(name)
    return without_repeats(files)


def _common_folder(names: Sequence[str]) -> Path:
    """The deepest folder that holds every source: paths below it name text files, wherever the command is run."""
    folders = [folder_of(name) for name in names if name != STDIN]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _name_of(name: str) -> str:
    if name == STDIN:
        return "stdin"
    # A pattern's is its folder's, as if that were named: the first match may be another when the build is run again.
    path = Path(name) if Path(name).exists() else folder_of(name)
    return stem(absolute(path).name) or "corpus"


def _identities(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Each file's identity; of very many, one for all."""
    identities = [identity for source in sources for identity in source.identities()]
    if len(identities) <= _LISTED_FILES:
        return identities
    listing = json.dumps(identities, sort_keys=True)
    return [{"files": len(identities), "sha256": hashlib.sha256(listing.encode()).hexdigest()}]


def _open_all(files: Sequence[SourceFile], root: Path, on_progress: ProgressCallback | None) -> list[Source]:
    opened: list[Source] = []

    def report(rows: int) -> None:
        if on_progress is not None:
            before = sum(source.rows for source in opened)
            on_progress(Progress(stage="scan", done=before + rows, unit="rows"))

    for source in open_sources(files, root, report):
        opened.append(source)
    return opened
