"""The lines of a text file, plain or compressed, as numbered bytes."""

import io
from collections.abc import Iterator

import pyarrow as pa

from llmindex.corpus.source import MAX_DOCUMENT_BYTES, SourceFile, reading
from llmindex.errors import CorpusError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_BUFFER_BYTES = 1 << 20


def read_lines(file: SourceFile, compression: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Give each line with its number from 1 on, line end included and a byte order mark left out.

    Raises:
        CorpusError: the file changed, cannot be read, is UTF-16, or has a line too long to be a document.
    """
    file.check_unchanged()
    with (
        reading(file.label),
        file.path.open("rb") as stream,
        pa.input_stream(stream, compression=compression) as raw,
        io.BufferedReader(raw, _BUFFER_BYTES) as buffered,
    ):
        number = 0
        while line := buffered.readline(MAX_DOCUMENT_BYTES + 1):
            number += 1
            if len(line) > MAX_DOCUMENT_BYTES:
                limit = MAX_DOCUMENT_BYTES >> 20
                raise CorpusError(f"{file.label} line {number:,} is longer than {limit:,} MB; split it")
            yield number, _without_bom(line, file.label) if number == 1 else line


def _without_bom(line: bytes, label: str) -> bytes:
    if line.startswith(_UTF16_BOMS):
        raise CorpusError(f"{label} is UTF-16; save it as UTF-8")
    return line.removeprefix(_UTF8_BOM)
