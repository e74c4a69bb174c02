"""Re-read everything in an index folder against what the manifest recorded. Changes nothing, stops at nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmindex.errors import reindex_command
from llmindex.folder import open_regular
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.files import clusterings_in, hash_file, hash_values
from llmindex.store.manifest import IndexRecord, Manifest, ShardRecord
from llmindex.store.shard import VECTOR, stored_vectors

# float16 keeps a unit vector's length to some 1e-3.
_UNIT_TOLERANCE = 1e-2
_CHANGED = "has changed since it was written (its sha256 differs)"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        files: files that were looked at, the manifest included.
        rows: documents in the store, as the manifest says.
        problems: one line each: the file at fault, what is wrong, what helps; none if all is well.
        outdated: one line for each clustering of vectors that have changed since: as it was written, but of no use.
    """

    files: int
    rows: int
    problems: tuple[str, ...]
    outdated: tuple[str, ...] = ()


def verify(path: str | Path, on_progress: ProgressCallback | None = None) -> VerifyReport:
    """Check every file of an index: hashes, row counts, vectors, the FAISS index, the clusterings.

    Raises:
        IndexNotFound: there is no index.
        ManifestError: its manifest is damaged or of a newer format.
    """
    folder = Path(path)
    manifest = Manifest.load(folder)
    while True:
        report = _verify(folder, manifest, on_progress)
        manifest, before = Manifest.load(folder), manifest
        # A writer at work takes files away that the manifest no longer names: that is no fault.
        if not report.problems or manifest == before:
            return report


def _verify(folder: Path, manifest: Manifest, on_progress: ProgressCallback | None) -> VerifyReport:
    problems: list[str] = []
    clusterings = clusterings_in(folder)
    total = 1 + len(manifest.shards) + (manifest.index is not None) + len(clusterings)
    done = 1

    def advance(found: Iterator[str]) -> None:
        nonlocal done
        problems.extend(found)
        done += 1
        if on_progress:
            on_progress(Progress("verify", done, total, "files"))

    for shard in manifest.shards:
        advance(_check_shard(folder, shard, manifest))
    if manifest.index is not None:
        advance(_check_index(folder, manifest.index, manifest.vectors_id))
    for file in clusterings:
        advance(_check_clustering(file))
    return VerifyReport(total, manifest.count, tuple(problems), tuple(outdated_clusterings(folder, manifest)))


def outdated_clusterings(folder: Path, manifest: Manifest) -> list[str]:
    """One line for each clustering that was made from other vectors than those of the manifest."""
    return [
        f'the clustering "{file.stem}" was made from other vectors than those stored; run {_again(file)}'
        for file in clusterings_in(folder)
        if _built_from(file) not in (None, manifest.vectors_id)
    ]


def _built_from(clustering: Path) -> str | None:
    """Of which vectors a clustering is; None where its file does not say."""
    try:
        with open_regular(clustering) as file:
            return str(json.load(file)["built_from"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def _again(clustering: Path) -> str:
    return f"`llmindex cluster -i {clustering.parent.parent} --name {clustering.stem}` again"


def _check_shard(folder: Path, shard: ShardRecord, manifest: Manifest) -> Iterator[str]:
    path = folder / shard.file
    remedy = "restore it, or build the index again"
    if fault := _changed(path, shard.bytes, shard.sha256):
        yield f"{path}: {fault}; {remedy}"
        return
    try:
        for fault in _content_faults(path, shard, manifest):
            yield f"{path}: {fault}; {remedy}"
    except Exception as error:  # what was never a shard makes Arrow and NumPy fail in many ways
        yield f"{path}: cannot be read ({_first_line(error)}); {remedy}"


def _changed(path: Path, size: int | None, sha256: str) -> str | None:
    """What differs from the record, if anything; the record may be without a size."""
    try:
        actual = path.stat().st_size
        if size is not None and actual != size:
            return f"has {actual:,} bytes instead of {size:,}"
        return None if hash_file(path) == sha256 else _CHANGED
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _content_faults(path: Path, shard: ShardRecord, manifest: Manifest) -> Iterator[str]:
    spec = manifest.encoder.spec
    file = pq.ParquetFile(path)
    if file.metadata.num_rows != shard.rows:
        yield f"has {file.metadata.num_rows:,} rows instead of {shard.rows:,}"
    start = 0
    for batch in file.iter_batches():
        batch.validate(full=True)  # as texts that are not UTF-8
        if batch.column(VECTOR).null_count:
            yield "has a document without a vector"
            return
        vectors = stored_vectors(batch.column(VECTOR)).astype(np.float32)
        if vectors.shape != (len(batch), spec.dim):
            yield f"has vectors of {vectors.shape[1]} numbers instead of {spec.dim}"
            return
        for name in ("id", "text"):
            if batch.column(name).type != pa.string() or batch.column(name).null_count:
                yield f'has a column "{name}" that is not text throughout'
                return
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        good = np.isfinite(lengths) if not spec.normalize else np.abs(lengths - 1) <= _UNIT_TOLERANCE
        if not good.all():
            row = int(np.argmin(good))
            yield f"row {start + row:,} has a vector of length {lengths[row]:.4g}"
            return
        start += len(batch)


def _check_index(folder: Path, record: IndexRecord, vectors_id: str) -> Iterator[str]:
    path = folder / record.file
    remedy = f"run {reindex_command(folder)}"
    if fault := _changed(path, record.bytes, record.sha256):
        yield f"{path}: {fault}; {remedy}"
    if record.built_from != vectors_id:
        yield f"{path}: was built from other vectors than those stored; {remedy}"


def _check_clustering(path: Path) -> Iterator[str]:
    remedy = f"run {_again(path)}"
    try:
        with open_regular(path) as opened:
            values: Any = json.load(opened)
        hashes = {str(name): str(sha256) for name, sha256 in values["sha256"].items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        yield f"{path}: is damaged; {remedy}"
        return
    for name, sha256 in sorted(hashes.items()):
        file = path.with_name(Path(name).name)
        if file == path:
            fault = None if hash_values(values) == sha256 else _CHANGED
        else:
            fault = _changed(file, None, sha256)
        if fault:
            yield f"{file}: {fault}; {remedy}"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
