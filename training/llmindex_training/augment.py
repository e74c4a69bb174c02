"""Synthetic positives from a corpus: the driver of all methods, resumable like a build.

The documents, thinned to the limit, are taken in parts of a fixed size. A part holds every candidate that the methods
made of its documents, rejected ones with their reason, and is committed whole to a working folder beside the output,
under a record of the corpus and of all settings. What a part holds depends on that record alone, so a run that was
killed goes on with the next part and ends with the pairs of an uninterrupted one. At the end the accepted pairs become
the output, in one move, with the report inside it; then the working folder goes.
"""

import itertools
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmindex.corpus import Corpus, CorpusOptions, Sources, listed
from llmindex.errors import CorpusError, Interrupted, UsageError
from llmindex.folder import LOCK_NAME
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.files import check_name, is_temporary, lock, make_folder, replacing
from llmindex_training.methods import Document, PairsOptions, Plan
from llmindex_training.pairs_report import PairsReport, Sample, Tally

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "text_pair", "source")])
"""Columns of a file of pairs."""

_PART_SCHEMA = SCHEMA.append(pa.field("reason", pa.string()))
_MANIFEST = "manifest.json"
_PARTS = "part-*.parquet"
_REPORT_KEY = b"llmindex.pairs"
_WINDOW_ROWS = 4096

_CORPUS_DEFAULTS = CorpusOptions()
_DEFAULTS = PairsOptions()


def make_pairs(
    sources: Sources,
    output: str | Path,
    options: PairsOptions = _DEFAULTS,
    *,
    corpus: CorpusOptions = _CORPUS_DEFAULTS,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> PairsReport:
    """Make positive pairs of the documents of a corpus; goes on where an earlier run stopped.

    Args:
        sources: files, folders or globs, ``"-"`` for standard input, or a table with the documents.
        output: the Parquet file of pairs, columns ``text, text_pair, source``.
        options: methods, and what they need.
        corpus: which columns to read and what to do with bad rows.
        overwrite: start afresh where there are pairs already, finished or not.
        on_progress: called with the stages "scan" and "pairs", the latter in candidates.

    Raises:
        Interrupted: Ctrl-C; committed parts stay, and the same call goes on from there.
        UsageError: the options cannot work, or are not those that the file was made with.
        CorpusError: the corpus cannot be read, is not the one that the file was made of, or gives no pair at all.
        ModelError, MissingPackage: what a method needs is not there.
        StorageError: the disk refused a write.
    """
    started = time.perf_counter()
    output = Path(output)
    check_name(output)
    named = listed(sources)
    if not isinstance(named, pa.Table):
        _check_apart(output, named)
    with Corpus.open(named, corpus, on_progress) as opened:
        plan = Plan.of(options, opened.schema)
        record = plan.record() | {"corpus": opened.record}
        made = _made_here(output) if output.exists() else None
        if made is not None and not overwrite and not _parts_of(output).exists():
            return _complete(made, output, record, time.perf_counter() - started)
        with _working_folder(output) as folder:
            if overwrite:
                _clear(folder)
            part_rows = _agreed(folder, output, record, plan)
            run = _Run(opened, plan, plan.limit, folder, on_progress)
            run.go(part_rows)
            return _assemble(output, record, run, started)


def _check_apart(output: Path, sources: Sequence[str | Path]) -> None:
    """Refuse to write over the corpus, or into its folder, where the next run would read the pairs as documents."""
    for source in map(Path, sources):
        if source.is_dir() and output.absolute().resolve().is_relative_to(source.resolve()):
            raise UsageError(f"{output} lies in the folder of the corpus, {source}; write to another folder with -o")
        if source.is_file() and output.exists() and source.samefile(output):
            raise UsageError(f"{output} is the corpus itself; write to another file with -o")


@contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """The folder of the parts, for this process alone; it stays only while it holds parts of an unfinished run."""
    folder = _parts_of(output)
    make_folder(folder)
    if strangers := [path.name for path in folder.iterdir() if not _is_ours(path)]:
        raise UsageError(
            f"{folder}, where parts of the pairs are kept, holds {strangers[0]}, which was not made here; "
            "move it away, or name another file with -o"
        )
    with lock(folder):
        done = False
        try:
            yield folder
            done = True
        finally:
            if done or not any(folder.glob(_PARTS)):
                shutil.rmtree(folder)


def _parts_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _is_ours(path: Path) -> bool:
    return path.name in (LOCK_NAME, _MANIFEST) or is_temporary(path) or (path.is_file() and path.match(_PARTS))


class _Run:
    """One run over the documents of a corpus.

    Attributes:
        corpus, plan, folder: what is read, how pairs are made, where parts are.
        bad_rows: rows of the corpus that are no documents, by kind.
        documents: those that were taken.
        added: those of the parts that this run made.
    """

    def __init__(
        self, corpus: Corpus, plan: Plan, limit: int | None, folder: Path, on_progress: ProgressCallback | None
    ) -> None:
        self.corpus = corpus
        self.plan = plan
        self.folder = folder
        self.bad_rows: Mapping[str, int] = {}
        self.documents = self.added = 0
        self._limit = limit
        self._on_progress = on_progress
        self._done = self._fresh = self._tokens = 0

    def go(self, part_rows: int) -> None:
        """Make the parts that are not there yet, and those that were damaged since.

        Raises:
            Interrupted: Ctrl-C came; finished parts stay.
        """
        for path in sorted(self.folder.glob(_PARTS)):
            if not _is_whole(path):
                logger.warning("%s is damaged; its pairs are made again", path)
                path.unlink()
        try:
            for number, documents in enumerate(_in_parts(self._documents(), part_rows)):
                self.documents += len(documents)
                path = self.folder / f"part-{number:05}.parquet"
                if path.exists():
                    self._done += len(documents) * self.plan.per_document
                else:
                    self._make(path, documents)
                    self.added += len(documents)
        except KeyboardInterrupt as error:
            # Counted, not kept track of: Ctrl-C may have come right after a part took its place.
            parts = len(list(self.folder.glob(_PARTS)))
            raise Interrupted(
                f"the pairs of {min(parts * part_rows, self.documents):,} documents are stored"
            ) from error

    def _documents(self) -> Iterator[Document]:
        """The corpus's documents; with a limit below their number, some of them, evenly spread."""
        rows = self.corpus.rows
        if self._limit is not None and self._limit < rows:  # bad rows are not among those that are spread over
            rows = sum(len(window.table) for window in self.corpus.windows(_WINDOW_ROWS))
        limit = min(self._limit or rows, rows)
        title = self.plan.title_column
        row = 0
        for window in self.corpus.windows(_WINDOW_ROWS):
            texts = window.table["text"].to_pylist()
            titles = window.table[title].to_pylist() if title else [None] * len(texts)
            self.bad_rows = window.position.bad_rows
            for text, of_text in zip(texts, titles, strict=True):
                if (row + 1) * limit // rows > row * limit // rows:
                    yield Document(row, text, of_text)
                row += 1

    def _make(self, path: Path, documents: Sequence[Document]) -> None:
        candidates = self.plan.candidates(documents, self._report)
        table = pa.Table.from_pylist([asdict(candidate) for candidate in candidates], schema=_PART_SCHEMA)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def _report(self, candidates: int, tokens: int) -> None:
        self._done += candidates
        self._fresh += candidates
        self._tokens += tokens
        if self._on_progress is not None:
            rows = self.corpus.rows - sum(self.bad_rows.values())
            total = min(self._limit or rows, rows) * self.plan.per_document
            self._on_progress(
                Progress("pairs", self._done, max(total, self._done), "candidates", self._tokens, self._fresh)
            )


def _is_whole(part: Path) -> bool:
    try:
        table = pq.read_table(part)
        table.validate(full=True)
    except (OSError, pa.ArrowException):
        return False
    return bool(table.schema.equals(_PART_SCHEMA))


def _in_parts(documents: Iterator[Document], part_rows: int) -> Iterator[list[Document]]:
    while part := list(itertools.islice(documents, part_rows)):
        yield part


def _agreed(folder: Path, output: Path, record: Mapping[str, Any], plan: Plan) -> int:
    """Documents a part, as the run that began has them; a fresh run begins by writing its record down."""
    path = folder / _MANIFEST
    begun = _read_json(path) if path.exists() else None
    if begun is not None:
        _check_same(begun["record"], record, f"the unfinished {output}")
    part_rows = plan.prepare()
    if begun is not None:
        return int(begun["part_rows"])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"record": record, "part_rows": part_rows}), encoding="utf-8")
    return part_rows


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], what: str) -> None:
    remedy = "add --overwrite to start afresh, or -o another file"
    # As JSON has them: a tuple that was written comes back as a list.
    ours = json.loads(json.dumps(ours))
    changed = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
    if changed == ["corpus"]:
        raise CorpusError(f"{what} was made from another corpus, or its files have changed since; {remedy}")
    if changed:
        listed = ", ".join(_change(key, theirs.get(key), ours.get(key)) for key in changed)
        raise UsageError(f"{what} was made with other settings ({listed}); {remedy}")


def _change(key: str, old: Any, new: Any) -> str:  # noqa: ANN401
    if key in ("corpus", "generator"):
        return f"another {key}"
    shown = [", ".join(value) if isinstance(value, list) else value for value in (old, new)]
    return f"{key} {shown[0]}, now {shown[1]}"


def _made_here(output: Path) -> dict[str, Any]:
    """What a finished file says of itself; anything else is never written over."""
    try:
        known: dict[str, Any] = json.loads((pq.read_metadata(output).metadata or {})[_REPORT_KEY])
        known["record"].keys(), known["report"]["samples"]
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{output} is there and not a file of pairs made here; name another file with -o") from error
    return known


def _complete(known: dict[str, Any], output: Path, record: Mapping[str, Any], seconds: float) -> PairsReport:
    """The report of a finished file, if it is of these settings and this corpus."""
    _check_same(known["record"], record, str(output))
    samples = [Sample(**sample) for sample in known["report"].pop("samples")]
    return PairsReport(**known["report"], path=output, samples=samples, added=0, complete_before=True, seconds=seconds)


def _assemble(output: Path, record: Mapping[str, Any], run: _Run, started: float) -> PairsReport:
    """Make the file of the parts' accepted pairs, with the report in its metadata."""
    tally = Tally()
    parts = sorted(run.folder.glob(_PARTS))
    with replacing(output) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for part in parts:
            table = pq.read_table(part)
            tally.add(table)
            writer.write_table(table.filter(pc.is_null(table["reason"])).select(SCHEMA.names))
        report: dict[str, Any] = {
            "documents": run.documents,
            "pairs": tally.accepted.total(),
            "bad_rows": dict(run.bad_rows),
            "methods": list(run.plan.methods),
            "title_column": run.plan.title_column,
            "accepted": dict(sorted(tally.accepted.items())),
            "rejected": {source: dict(counts.most_common()) for source, counts in sorted(tally.rejected.items())},
        }
        if not report["pairs"]:
            _clear(run.folder)
            raise _no_pairs(run.documents, tally)
        kept = {"record": record, "report": report | {"samples": [asdict(sample) for sample in tally.samples]}}
        writer.add_key_value_metadata({_REPORT_KEY: json.dumps(kept).encode()})
    seconds = time.perf_counter() - started
    return PairsReport(
        **report, path=output, samples=tally.samples, added=run.added, complete_before=False, seconds=seconds
    )


def _no_pairs(documents: int, tally: Tally) -> CorpusError:
    reasons = Counter[str]()
    for counts in tally.rejected.values():
        reasons.update(counts)
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.most_common(3))
    return CorpusError(f"none of the {documents:,} documents gave a pair ({why}); try another --method")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK_NAME:
            path.unlink()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        value["record"], value["part_rows"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is damaged; add --overwrite to start afresh") from error
    return value
