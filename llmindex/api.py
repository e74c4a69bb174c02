"""The door of the library: open an index and ask it things."""

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmindex.index.planner import DEFAULT_RECALL
from llmindex.progress import ProgressCallback
from llmindex.records import Hit
from llmindex.store.files import clusterings_in
from llmindex.store.manifest import IndexRecord
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter

if TYPE_CHECKING:
    from llmindex.cluster.clustering import Clustering, ClusterOptions
    from llmindex.encode.encoder import Encoder
    from llmindex.encode.spec import EncoderSpec
    from llmindex.index.forecast import ReindexPlan
    from llmindex.index.search import Searcher
    from llmindex.store.where import Where


def open(path: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> "Index":
    """Open an index folder; the model is loaded when the first query comes.

    Args:
        path: the folder that :func:`llmindex.build` made.
        device: where queries are encoded.
        dtype: what the model computes in.
        trust_remote_code: run the Python files that came with the index's model.

    Raises:
        IndexNotFound: there is none.
        ManifestError: its manifest is damaged or of a newer version.
        CorruptStore: a file that the manifest names is missing.
    """
    return Index(VectorStore.open(path), device, dtype, trust_remote_code)


class Index:
    """An open index, as of the moment it was opened.

    Attributes:
        store: its documents and vectors.
    """

    def __init__(self, store: VectorStore, device: str, dtype: str, trust_remote_code: bool) -> None:
        self.store = store
        self._searcher: Searcher | None = None
        self._opening = threading.Lock()
        self._encoder_options: dict[str, Any] = {
            "device_name": device,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
        }

    @property
    def path(self) -> Path:
        """The index folder."""
        return self.store.path

    @property
    def searcher(self) -> "Searcher":
        """What answers the queries."""
        from llmindex.index.search import Searcher

        with self._opening:
            if self._searcher is None:
                # No method of this object: they would keep each other, model and files for the garbage collector.
                load = partial(_load_encoder, self.store.manifest.encoder.spec, self._encoder_options)
                self._searcher = Searcher(self.store, load)
            return self._searcher

    def search(
        self,
        queries: str | Iterable[str],
        k: int = 10,
        min_score: float | None = None,
        where: "Where | None" = None,
    ) -> list[list[Hit]]:
        """Nearest documents, best first: one list of hits for each query. See :meth:`Searcher.search`."""
        return self.searcher.search([queries] if isinstance(queries, str) else queries, k, min_score, where)

    def similar(
        self, document_id: str, k: int = 10, min_score: float | None = None, where: "Where | None" = None
    ) -> list[Hit]:
        """Documents nearest to a stored one. See :meth:`Searcher.similar`."""
        return self.searcher.similar(document_id, k, min_score, where)

    def cluster(
        self,
        options: "ClusterOptions | None" = None,
        *,
        on_progress: ProgressCallback | None = None,
        **fields: Any,  # noqa: ANN401 - the fields of ClusterOptions
    ) -> "Clustering":
        """Group the documents by meaning and keep the result as ``clusters/<name>`` in the index folder.

        Args:
            options: how to cluster.
            on_progress: called with the stages of the work.
            **fields: the fields of :class:`ClusterOptions` that differ from the options, or from their defaults.

        Raises:
            UsageError: an option has an impossible value.
        """
        from llmindex.cluster.clustering import ClusterOptions, cluster, save

        clustering = cluster(self.store, replace(options or ClusterOptions(), **fields), on_progress)
        save(clustering, self.store)
        return clustering

    def reindex(
        self,
        *,
        factory: str | None = None,
        recall: float = DEFAULT_RECALL,
        memory: int | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> IndexRecord:
        """Build the FAISS index anew from the stored vectors, and open it.

        Args:
            factory: a FAISS factory string; planned if left out.
            recall: recall@10 against exact search that the index is tuned to.
            memory: the most bytes that building and searching the index may take, besides the model.
            on_progress: called with the stages "train", "assign", "add", "tune".

        Raises:
            UsageError: FAISS does not take the factory string, or nothing reaches the recall in so much memory.
            IndexLocked: another process is writing to the index.
        """
        from llmindex.index import building

        with VectorWriter.open(self.path) as writer:
            record = building.rebuild(writer, factory=factory, recall=recall, memory=memory, on_progress=on_progress)
        with self._opening:
            self.store = VectorStore.open(self.path)
            self._searcher = None
        return record

    def plan_reindex(
        self, *, factory: str | None = None, recall: float = DEFAULT_RECALL, memory: int | None = None
    ) -> "ReindexPlan":
        """What :meth:`reindex` would take with the same arguments, in seconds and bytes; writes nothing.

        Args:
            factory: a FAISS factory string; planned if left out.
            recall: recall@10 against exact search that the index is to reach.
            memory: the most bytes that building and searching the index may take, besides the model.

        Raises:
            UsageError: reindex would refuse it, in the same words.
            MissingPackage: a factory string is given, and FAISS is not installed.
        """
        from llmindex.index.forecast import forecast

        # As reindex does: of what is stored now, not when this index was opened.
        return forecast(VectorStore.open(self.path), factory=factory, recall=recall, memory=memory)

    def info(self) -> dict[str, Any]:
        """What the index is: counts, encoder, corpus, FAISS index, clusterings and sizes, as JSON values."""
        from llmindex.index.faiss_index import fault_of

        manifest = self.store.manifest
        record = manifest.index
        index: dict[str, Any] | None = None
        if record is not None:
            index = {
                "factory": record.factory,
                "parameters": record.parameters,
                "recall_target": record.recall_target,
                "recall_at_10": record.recall_at_10,
                "bytes": record.bytes,
                "stale": bool(fault_of(self.store, record)),
            }
        return {
            "path": str(self.path),
            "created_at": manifest.created_at,
            "format_version": manifest.format_version,
            "documents": manifest.count,
            "complete": manifest.corpus.complete,
            "columns": {field.name: str(field.type) for field in self.store.schema},
            "dim": self.store.dim,
            "vector_dtype": manifest.vector_dtype,
            "encoder": manifest.encoder.spec.to_json()
            | {
                "fingerprint": manifest.encoder.spec.fingerprint(),
                "dtype": manifest.encoder.dtype,
                "self_check": manifest.encoder.self_check,
            },
            "corpus": {
                "identity": dict(manifest.corpus.identity),
                "source_rows": manifest.corpus.source_rows,
                "bad_rows": dict(manifest.corpus.bad_rows),
                "truncated": manifest.corpus.truncated,
                "tokens": manifest.corpus.tokens,
            },
            "index": index,
            "clusterings": sorted(file.stem for file in clusterings_in(self.path)),
            "bytes": _folder_bytes(self.path),
        }


def _load_encoder(spec: "EncoderSpec", options: Mapping[str, Any]) -> "Encoder":
    from llmindex.encode.encoder import Encoder

    return Encoder.from_spec(spec, **options)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a writer has taken it away since it was listed
                total += (Path(root) / name).stat().st_size
    return total
