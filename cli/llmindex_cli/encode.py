"""``llmindex encode``: the vectors alone, for use elsewhere."""

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from llmindex.errors import UsageError
from llmindex.progress import Progress, ProgressCallback
from llmindex_cli.console import count, kinds_of, note, plain, print_json, say
from llmindex_cli.encoder_options import encoder_options
from llmindex_cli.options import SOURCE, Command, corpus_options, json_option, output_option, role_option
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

    from llmindex.corpus import Corpus
    from llmindex.encode.encoder import Encoder, Role
    from llmindex.records import Vectors

SUFFIXES = (".parquet", ".npy")
# Texts are sorted by length within a window; memory holds one window.
WINDOW = 2048


@click.command(
    "encode",
    cls=Command,
    examples=(
        ("Ids and vectors as Parquet", "llmindex encode corpus.jsonl -o vectors.parquet"),
        ("A NumPy matrix of queries, one JSON object a line", "llmindex encode - --role query -o q.npy < q.jsonl"),
    ),
)
@click.argument("file", default="-", type=SOURCE, metavar="[FILE|-]")
@output_option(
    "-o",
    "--output",
    suffixes=SUFFIXES,
    required=True,
    help="vectors.parquet (columns id, vector) or vectors.npy (float32, a row a document).",
)
@role_option
@json_option("one object")
@corpus_options
@encoder_options
def command(
    file: str,
    output: Path,
    role: "Role",
    as_json: bool,
    encoder: dict[str, Any],
    text_columns: tuple[str, ...],
    id_column: str | None,
    on_bad_row: str,
) -> None:
    """Write the vectors of the texts in FILE, any source that build takes, to a file."""
    if file == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Name a FILE, or give the texts on standard input.", click.get_current_context())
    from llmindex.corpus import Corpus, CorpusOptions
    from llmindex.store.files import replacing

    options = CorpusOptions(text_columns, id_column, on_bad_row)  # type: ignore[arg-type]
    with progress() as on_progress, closing(Corpus.open([file], options, on_progress)) as corpus:
        _check_apart(output, corpus)
        # Not before the corpus has proved readable: torch takes seconds to load.
        from llmindex.encode.encoder import Encoder
        from llmindex.encode.settings import EncoderOptions

        loaded = Encoder.from_options(EncoderOptions(**encoder))
        sink_type: type[ParquetSink | NpySink] = ParquetSink if output.suffix == ".parquet" else NpySink
        with replacing(output) as temporary, closing(sink_type(temporary, loaded.spec.dim)) as sink:
            copied = _copy(corpus, loaded, role, sink, on_progress)
    result = {"file": str(output), "dim": loaded.spec.dim, **asdict(copied)}
    if as_json:
        print_json(result)
    else:
        say(f"{plain(str(output))}: {count(copied.documents, 'vectors')} of {loaded.spec.dim} values")
    if copied.bad_rows:
        note(f"Skipped {count(sum(copied.bad_rows.values()), 'rows')} ({kinds_of(copied.bad_rows)}).")
    if copied.truncated:
        note(f"Cut {count(copied.truncated, 'texts')} to {loaded.spec.max_tokens:,} tokens.")


def _check_apart(output: Path, corpus: "Corpus") -> None:
    """Refuse to write over the corpus."""
    sources = [Path(source["path"]) for source in corpus.record["sources"] if "path" in source]
    if any(source.exists() and output.exists() and source.samefile(output) for source in sources):
        raise UsageError(f"{output} is a file of the corpus itself; write to another file with -o")


@dataclass(slots=True)
class Copied:
    """What has been encoded so far."""

    documents: int = 0
    tokens: int = 0
    truncated: int = 0
    bad_rows: Mapping[str, int] = field(default_factory=dict)


def _copy(
    corpus: "Corpus",
    encoder: "Encoder",
    role: "Role",
    sink: "ParquetSink | NpySink",
    on_progress: ProgressCallback | None,
) -> Copied:
    so_far = Copied()

    def report(texts: int, tokens: int) -> None:
        so_far.documents += texts
        so_far.tokens += tokens
        if on_progress is not None:
            total = corpus.rows - sum(so_far.bad_rows.values())
            on_progress(Progress("encode", so_far.documents, total, tokens=so_far.tokens))

    for window in corpus.windows(WINDOW):
        tokens = encoder.tokenize(window.table["text"].to_pylist(), role=role)
        sink.append(window.table["id"], encoder.forward(tokens, on_tokens=report))
        so_far.truncated += int(tokens.truncated.sum())
        so_far.bad_rows = window.position.bad_rows
    return so_far


class ParquetSink:
    """Columns ``id`` (string) and ``vector`` (fixed-size list of float32)."""

    def __init__(self, path: Path, dim: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
        self._schema = pa.schema(
            [pa.field("id", pa.string(), nullable=False), pa.field("vector", vector, nullable=False)]
        )
        # As in the store: neither dictionary nor compression gains anything on vectors, and both cost time.
        self._writer = parquet.ParquetWriter(path, self._schema, use_dictionary=False, compression="none")

    def append(self, ids: "pa.ChunkedArray", vectors: "Vectors") -> None:
        """Write ``(m, dim)`` vectors and their ids."""
        import pyarrow as pa

        kind = self._schema.field("vector").type
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
        self._writer.write_table(pa.table([ids, column], schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class NpySink:
    """A NumPy array file; its header is written again at the end, when the number of rows is known."""

    def __init__(self, path: Path, dim: int) -> None:
        self._rows = 0
        self._dim = dim
        self._file: BinaryIO = path.open("w+b")
        self._header()

    def _header(self) -> None:
        from numpy.lib import format as npy

        self._file.seek(0)
        # NumPy pads the header so that it keeps its length when the first axis grows.
        npy.write_array_header_1_0(
            self._file, {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        )

    def append(self, ids: "pa.ChunkedArray", vectors: "Vectors") -> None:
        """Write ``(m, dim)`` vectors; there is no room for their ids."""
        self._file.write(vectors.astype("<f4", copy=False).tobytes())
        self._rows += len(vectors)

    def close(self) -> None:
        """Correct the header."""
        self._header()
        self._file.close()
