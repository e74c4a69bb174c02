"""Which reader a file gets: by the ending of its name, or for standard input by its first bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from llmindex.corpus.arrow_tables import ParquetSource
from llmindex.corpus.csv_rows import CsvSource
from llmindex.corpus.json_lines import JsonLinesSource
from llmindex.corpus.lines import COMPRESSIONS
from llmindex.corpus.plain_text import LinesSource, TextFilesSource
from llmindex.corpus.source import RowsRead, Source, SourceFile, reading
from llmindex.errors import CorpusError

Format = Literal["parquet", "jsonl", "csv", "tsv", "text", "lines"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
}
_COMPRESSIBLE = ("jsonl", "csv", "tsv")
_PARQUET_MAGIC = b"PAR1"
_UNPACKED_BY = {
    b"\x1f\x8b": "zcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\xfd7zX": "xzcat",
    b"BZh91AY&SY": "bzcat",
    b"PK\x03\x04": "`unzip -p`",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """What the ending of a file name says.

    Attributes:
        format: how the file is read.
        compression: as pyarrow names it; None for a plain file.
    """

    format: Format
    compression: str | None = None


ENDINGS: dict[str, Ending] = {ending: Ending(format_) for ending, format_ in _FORMATS.items()} | {
    ending + packed: Ending(format_, compression)
    for ending, format_ in _FORMATS.items()
    if format_ in _COMPRESSIBLE
    for packed, compression in COMPRESSIONS.items()
}
"""Every supported ending, in lower case."""


READ_ENDINGS = f"read are {', '.join(_FORMATS)} (CSV, TSV and JSON Lines also with .gz or .zst)"
"""The same for people."""


def ending_of(name: str) -> Ending | None:
    """What the name's ending says, or None where it is not supported."""
    return next((ENDINGS[ending] for ending in ENDINGS if name.lower().endswith(ending)), None)


def stem(name: str) -> str:
    """The file name without its supported ending."""
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)


def open_sources(files: Sequence[SourceFile], root: Path, on_rows: RowsRead) -> Iterator[Source]:
    """Open the files in their order; neighbouring text files become one source.

    Args:
        files: all supported.
        root: the folder that text files' ids are relative to.
        on_rows: told how many rows of the file at hand have been scanned.

    Raises:
        CorpusError: a file cannot be read, or is broken.
    """
    for ending, group in groupby(files, key=_ending):
        if ending.format == "text":
            yield TextFilesSource(list(group), root)
        else:
            yield from (_open_file(file, ending, on_rows) for file in group)


def _ending(file: SourceFile) -> Ending:
    return _sniffed(file) if file.sha256 else ending_of(file.path.name) or Ending("lines")


def _sniffed(file: SourceFile) -> Ending:
    with reading(file.label), file.path.open("rb") as stream:
        beginning = stream.read(max(map(len, _UNPACKED_BY)))
        if beginning.startswith(_PARQUET_MAGIC):
            return Ending("parquet")
        if tool := next((_UNPACKED_BY[magic] for magic in _UNPACKED_BY if beginning.startswith(magic)), None):
            raise CorpusError(f"{file.label} is compressed; unpack it on the way in, with {tool}")
        stream.seek(0)
        while block := stream.read(1 << 16):
            if start := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return Ending("jsonl" if start.startswith(b"{") else "lines")
    return Ending("lines")


def _open_file(file: SourceFile, ending: Ending, on_rows: RowsRead) -> Source:
    match ending.format:
        case "parquet":
            return ParquetSource(file)
        case "jsonl":
            return JsonLinesSource(file, ending.compression, on_rows)
        case "csv":
            return CsvSource(file, ending.compression, on_rows, ",")
        case "tsv":
            return CsvSource(file, ending.compression, on_rows, "\t")
    return LinesSource(file, on_rows)
