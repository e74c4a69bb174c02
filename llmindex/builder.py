"""Build an index: a corpus in, a store of vectors and a FAISS index out; the same call resumes and completes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llmindex import resuming
from llmindex.corpus import Corpus, CorpusOptions, Position, Sources, listed
from llmindex.corpus.discovery import STDIN
from llmindex.encode.settings import EncoderOptions
from llmindex.errors import BuildInterrupted, MissingPackage, UsageError, reindex_command
from llmindex.folder import is_index
from llmindex.index import building, faiss_index, forecast, planner
from llmindex.index.planner import DEFAULT_RECALL
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.manifest import IndexRecord, Manifest, VectorDtype
from llmindex.store.reader import VectorStore
from llmindex.store.writer import SHARD_ROWS, VectorWriter

if TYPE_CHECKING:
    from llmindex.encode.encoder import Encoder
    from llmindex.encode.helpers import Helpers

_PLAN_SAMPLE = 64
_PLAN_WINDOW = 2048


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        path: the index folder.
        documents: how many it holds.
        added: how many of them this run encoded.
        complete_before: whether there was nothing left to encode.
        text_columns: the columns that the texts come from; none where whole files are texts.
        bad_rows: rows left out, by kind, over all runs.
        truncated: documents whose text was cut to the encoder's max_tokens, over all runs.
        tokens: model tokens over all runs.
        seconds: busy seconds of this run's stages "read", "encode", "write" (side by side) and "index", and "total".
        index: the FAISS index and its measured recall.
    """

    path: Path
    documents: int
    added: int
    complete_before: bool
    text_columns: tuple[str, ...]
    bad_rows: Mapping[str, int]
    truncated: int
    tokens: int
    seconds: Mapping[str, float]
    index: IndexRecord

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build would take.

    Attributes:
        path: the index folder.
        documents: rows with usable text.
        text_columns: the columns that the texts come from; none where whole files are texts.
        bad_rows: rows that would be left out, by kind.
        tokens: model tokens, prompts included.
        truncated: documents whose text would be cut.
        seconds: estimate of encoding, from the speed of a sample on this machine.
        index_seconds: estimate of indexing, from the speed of a matrix product.
        disk_bytes: estimate of the finished index folder.
        memory_bytes: estimate of the peak, model and FAISS index included.
        index_memory_bytes: estimate of the peak of building the FAISS index, without a model.
        search_memory_bytes: estimate of what a search has in memory, without a model.
        factory: FAISS factory string.
        model: name of the backbone.
        adapter: name of its adapter, or None.
        device: where it would run.
        dtype: what it would compute in.
    """

    path: Path
    documents: int
    text_columns: tuple[str, ...]
    bad_rows: Mapping[str, int]
    tokens: int
    truncated: int
    seconds: float
    index_seconds: float
    disk_bytes: int
    memory_bytes: int
    index_memory_bytes: int
    search_memory_bytes: int
    factory: str
    model: str
    adapter: str | None
    device: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self) | {"path": str(self.path)}


def build(
    sources: Sources,
    index: str | Path | None = None,
    *,
    encoder: "Encoder | EncoderOptions | None" = None,
    corpus: CorpusOptions | None = None,
    vector_dtype: VectorDtype = "float16",
    factory: str | None = None,
    recall: float = DEFAULT_RECALL,
    memory: int | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> BuildReport:
    """Encode a corpus, store the vectors and index them; goes on where an earlier run stopped.

    Args:
        sources: files, folders or globs, ``"-"`` for standard input, or a table with the documents.
        index: the index folder; by default ``<name>.llmindex`` in the working directory, by the name of the first
            source, or of the folder of a glob.
        encoder: a loaded encoder, or how to load one; the embedded default if left out.
        corpus: which columns to read and what to do with bad rows.
        vector_dtype: how vectors are stored.
        factory: a FAISS factory string; planned from the number of vectors if left out.
        recall: recall@10 against exact search that the FAISS index is tuned to.
        memory: the most bytes that building and searching the FAISS index may take, besides the model.
        overwrite: start afresh where there is an index already, unless this very build has begun it and not finished:
            that is what an interrupted one leaves, which the same call then goes on with, if it is undamaged.
        on_progress: called with the stages "scan", "verify", "count", "encode", "train", "assign", "add", and "tune" or
            "measure".

    Raises:
        BuildInterrupted: Ctrl-C; what was encoded is committed, and the same call goes on from there.
        LlmindexError: anything else that a user can act on; an index that was there is untouched or smaller, but valid.
    """
    started = time.perf_counter()
    named = listed(sources)
    _check_options(named, factory, recall, memory)
    with Corpus.open(named, corpus or CorpusOptions(), on_progress) as opened:
        path = _place(index, opened)
        resuming.check_place(path, overwrite)
        from llmindex.encode import helpers  # not before what needs no model is refused: torch takes seconds to load

        model = helpers.load(encoder)
        if overwrite and resuming.is_begun(path, opened, model, vector_dtype, on_progress):
            overwrite = False
        if not _is_complete(path, overwrite):
            _check_index(opened, model.spec.dim, factory, recall, memory, on_progress)
        next(opened.windows(1))  # a corpus without any usable row must not leave an empty index, nor replace one
        with resuming.writer(path, opened, model, vector_dtype, overwrite) as writer:
            complete = writer.manifest.corpus.complete
            seconds: dict[str, float] = {}
            added = 0
            try:
                if not complete:
                    with helpers.beside(encoder, model) as helping:
                        added = _encode(opened, model, helping, writer, seconds, on_progress)
                del model  # its memory is the index's now, unless the caller keeps it
                indexing = time.perf_counter()
                record = _index(path, writer, factory, recall, memory, on_progress)
            except KeyboardInterrupt as interrupt:
                raise BuildInterrupted(writer.manifest.count) from interrupt
            seconds |= {"index": time.perf_counter() - indexing, "total": time.perf_counter() - started}
            stored = writer.manifest.corpus
            return BuildReport(
                path=path,
                documents=writer.manifest.count,
                added=added,
                complete_before=complete,
                text_columns=opened.text_columns,
                bad_rows=stored.bad_rows,
                truncated=stored.truncated,
                tokens=stored.tokens,
                seconds=seconds,
                index=record,
            )


def plan(
    sources: Sources,
    index: str | Path | None = None,
    *,
    encoder: "Encoder | EncoderOptions | None" = None,
    corpus: CorpusOptions | None = None,
    vector_dtype: VectorDtype = "float16",
    factory: str | None = None,
    recall: float = DEFAULT_RECALL,
    memory: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> BuildPlan:
    """Count what :func:`build` would do with the same arguments, and write nothing.

    Every text is tokenised; the speed is measured on a sample. The stages are "scan", "measure" and "count".
    """
    named = listed(sources)
    _check_options(named, factory, recall, memory)
    with Corpus.open(named, corpus or CorpusOptions(), on_progress) as opened:
        from llmindex.encode import helpers

        model = helpers.load(encoder)
        dim = model.spec.dim
        if factory is not None:
            planner.check_factory(factory, dim)
        documents = tokens = truncated = content = 0
        bad_rows: Mapping[str, int] = {}
        speed = 0.0
        for window in opened.windows(_PLAN_WINDOW):
            texts = window.table.column("text").to_pylist()
            made = model.tokenize(texts)
            speed = speed or _tokens_per_second(model, texts[:_PLAN_SAMPLE], on_progress)
            documents += len(made)
            tokens += int(made.offsets[-1])
            truncated += int(made.truncated.sum())
            content += window.table.nbytes
            bad_rows = window.position.bad_rows
            if on_progress is not None:
                on_progress(Progress("count", documents, opened.rows, tokens=tokens))
        planned = planner.plan(documents, dim, factory, recall=recall, memory=memory)
        processes = len(helpers.devices(encoder))
        shared = processes if model.placement.device.type == "cpu" else 1  # who shares processors is no faster
        footprint = planned.footprint
        stored = documents * dim * (2 if vector_dtype == "float16" else 4)
        return BuildPlan(
            path=_place(index, opened),
            documents=documents,
            text_columns=opened.text_columns,
            bad_rows=bad_rows,
            tokens=tokens,
            truncated=truncated,
            seconds=tokens / speed * shared / processes,
            index_seconds=forecast.seconds_of(planned),
            disk_bytes=stored + footprint.file + content // 2,  # zstd halves text, or better
            memory_bytes=model.memory_bytes * processes
            + max(footprint.build, stored // max(1, documents) * SHARD_ROWS),
            index_memory_bytes=footprint.build,
            search_memory_bytes=footprint.search,
            factory=planned.factory,
            model=model.spec.backbone,
            adapter=model.spec.adapter,
            device=str(model.placement.device),
            dtype=model.dtype,
        )


def _place(index: str | Path | None, corpus: Corpus) -> Path:
    return Path(index) if index is not None else Path(f"{corpus.name}.llmindex")


def _check_index(
    corpus: Corpus,
    dim: int,
    factory: str | None,
    recall: float,
    memory: int | None,
    on_progress: ProgressCallback | None,
) -> None:
    """Refuse, before anything is encoded, an index that could not be made of the documents afterwards.

    They are counted for that, in one more pass over the corpus, of which even standard input has been kept: rows
    are no measure, since some may become no document, and fewer documents may need more memory, where they are too
    few for inverted lists. The planner's own choice is never refused, and so needs no count.
    """
    if factory is None and memory is None:
        return
    if factory is not None:
        planner.check_factory(factory, dim)
    documents = 0
    for window in corpus.windows(_PLAN_WINDOW):
        documents += len(window.table)
        if on_progress is not None:
            on_progress(Progress("count", documents, corpus.rows))
    planner.plan(documents, dim, factory, recall=recall, memory=memory)


def _encode(
    corpus: Corpus,
    encoder: "Encoder",
    helping: "Helpers | None",
    writer: VectorWriter,
    seconds: dict[str, float],
    on_progress: ProgressCallback | None,
) -> int:
    from llmindex.pipeline import Pipeline

    stored = writer.manifest.corpus
    pipeline = Pipeline(corpus, encoder, writer, on_progress, helping)
    try:
        pipeline.run(Position(stored.source_rows, stored.bad_rows), _stored_ids(writer.path))
    finally:
        seconds |= pipeline.seconds
    return pipeline.added


def _index(
    path: Path,
    writer: VectorWriter,
    factory: str | None,
    recall: float,
    memory: int | None,
    on_progress: ProgressCallback | None,
) -> IndexRecord:
    """The FAISS index of the store: the one that is there, unless it is stale or another was asked for."""
    record = writer.manifest.index
    sound = None if faiss_index.fault_of(VectorStore.open(path), record) else record
    try:
        if sound is not None and _is_as_asked(sound, writer.manifest, factory, recall, memory):
            return sound
        return building.rebuild(writer, factory=factory, recall=recall, memory=memory, on_progress=on_progress)
    except (UsageError, MissingPackage) as error:
        if sound is not None:
            raise  # and the index can be searched as before
        # Without what was refused; the planner can always reach a recall.
        again = reindex_command(path, *(() if recall == DEFAULT_RECALL else ("--recall", f"{recall}")))
        stored = f"the vectors of all {writer.manifest.count:,} documents are stored and safe"
        raise type(error)(f"{error}; {stored}: {again} indexes them as the planner chooses") from error


def _is_as_asked(
    record: IndexRecord, manifest: Manifest, factory: str | None, recall: float, memory: int | None
) -> bool:
    asked = factory
    if memory is not None:
        asked = planner.plan(manifest.count, manifest.encoder.spec.dim, recall=recall, memory=memory).factory
    return asked in (None, record.factory) and recall in (DEFAULT_RECALL, record.recall_target)


def _is_complete(path: Path, overwrite: bool) -> bool:
    """Whether every vector is stored already and is to be kept."""
    return not overwrite and is_index(path) and Manifest.load(path).corpus.complete


def _stored_ids(path: Path) -> Iterator[str]:
    for batch in VectorStore.open(path).iter_columns(["id"]):
        yield from batch.column(0).to_pylist()


def _tokens_per_second(encoder: "Encoder", texts: list[str], on_progress: ProgressCallback | None) -> float:
    done = [0, 0]

    def report(more: int, more_tokens: int) -> None:
        done[:] = done[0] + more, done[1] + more_tokens
        if on_progress is not None:
            on_progress(Progress("measure", done[0], len(texts), tokens=done[1]))

    tokens = encoder.tokenize(texts)
    report(0, 0)  # the model takes seconds to begin
    encoder.forward(encoder.tokenize(texts[:1]))  # the first call of a process is slower
    started = time.perf_counter()
    encoder.forward(tokens, on_tokens=report)
    return float(tokens.offsets[-1]) / (time.perf_counter() - started)


def _check_options(
    sources: Sequence[str | Path] | pa.Table, factory: str | None, recall: float, memory: int | None
) -> None:
    """Refuse what needs no document to be refused."""
    planner.check_recall(recall)
    planner.check_together(factory, memory)
    if not isinstance(sources, pa.Table) and STDIN in map(str, sources):
        planner.check_least(memory)  # the documents may be hours in coming; of files, the refusal can wait and say more
