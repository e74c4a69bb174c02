"""Clusterings on disk: ``clusters/<name>.parquet``, ``<name>.tree.npz`` and ``<name>.json``.

The Parquet file is for whoever wants the labels (id, row, label, probability), the tree for placing new documents. The
JSON file describes the clustering and is written last; it holds the hashes of the other two, so that files of two runs
are never read as one, and of what it says itself. All of it is derived from the stored vectors, and refused once those
have changed.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmindex.cluster.groups import Placement
from llmindex.cluster.hdbscan_tree import CONDENSED, DensityTree
from llmindex.cluster.options import ClusterOptions, check_name
from llmindex.cluster.reduce import Projection
from llmindex.cluster.result import Clustering, ClusterSummary
from llmindex.errors import CorruptStore, StaleIndex, UsageError
from llmindex.folder import CLUSTERS
from llmindex.store.files import clusterings_in, hash_file, hash_values, is_temporary, lock, make_own_folder, replacing
from llmindex.store.reader import VectorStore

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)


def names(store: VectorStore) -> list[str]:
    """Return the names of the saved clusterings, sorted."""
    return sorted(path.stem for path in clusterings_in(store.path))


def save(clustering: Clustering, store: VectorStore) -> Path:
    """Write a clustering into its index, under the name in its options; one of that name is replaced.

    Returns:
        the Parquet file of the labels.

    Raises:
        StaleIndex: it was made from other vectors than those in the store.
        IndexLocked: another process is writing a clustering.
        StorageError: the disk refused; a clustering of that name is as it was.
    """
    _check_fresh(clustering.built_from, store, clustering.options.name)
    make_own_folder(store.path / CLUSTERS)
    labels, tree, summary = _paths(store, clustering.options.name)
    with lock(labels.parent):  # of two runs under one name, one keeps all its files
        for path in labels.parent.iterdir():
            if is_temporary(path) and not path.is_dir():  # of a run that was killed, perhaps under another name
                with suppress(OSError):  # another user's in a sticky folder; only one of this name is in the way
                    path.unlink()
        # All three are written before the first takes its place: a disk that is full leaves the clustering before.
        with replacing(summary) as described, replacing(labels) as labelled:
            _write_labels(labelled, clustering, store)
            with replacing(tree) as placed:
                with placed.open("wb") as file:
                    np.savez(file, allow_pickle=False, **_arrays(clustering.placement))
                values = _summary(clustering)
                files = {labels.name: hash_file(labelled), tree.name: hash_file(placed)}
                values |= {"sha256": files | {summary.name: hash_values(values)}}
                described.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return labels


def load(store: VectorStore, name: str = "default") -> Clustering:
    """Read a saved clustering of the store's vectors.

    Raises:
        UsageError: there is none of that name.
        StaleIndex: the vectors have changed since.
        CorruptStore: its files are damaged, or of two runs.
    """
    check_name(name)
    labels, tree, summary = _paths(store, name)
    if not summary.is_file():
        existing = ", ".join(names(store)) or "none yet"
        raise UsageError(f'{store.path} has no clustering "{name}" (it has: {existing}); run `llmindex cluster`')
    try:
        values = json.loads(summary.read_text(encoding="utf-8"))
        _check_fresh(values["built_from"], store, name)
        for path in (labels, tree):
            if hash_file(path) != values["sha256"][path.name]:
                raise ValueError(f"{path.name} does not belong to it")
        if hash_values(values) != values["sha256"].get(summary.name, hash_values(values)):
            raise ValueError("it has changed since it was written")
        return _clustering(values, pq.read_table(labels), _placement(tree))
    except (StaleIndex, MemoryError):
        raise
    except Exception as error:  # what was never a clustering fails in many ways
        raise CorruptStore(f"{summary} is damaged or incomplete; run {_command(name)} again") from error


def _paths(store: VectorStore, name: str) -> tuple[Path, Path, Path]:
    folder = store.path / CLUSTERS
    return folder / f"{name}.parquet", folder / f"{name}.tree.npz", folder / f"{name}.json"


def _command(name: str) -> str:
    return "`llmindex cluster`" if name == "default" else f"`llmindex cluster --name {name}`"


def _check_fresh(built_from: str, store: VectorStore, name: str) -> None:
    if built_from != store.vectors_id:
        what = f'the clustering "{name}" of {store.path} was made from other vectors than those stored now'
        raise StaleIndex(f"{what}; run {_command(name)} again")


def _write_labels(path: Path, clustering: Clustering, store: VectorStore) -> None:
    start = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for batch in store.iter_columns(["id"]):
            part = slice(start, start + len(batch))
            rows = np.arange(start, start + len(batch))
            columns = [batch.column(0), rows, clustering.labels[part], clustering.probabilities[part]]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
            start += len(batch)


def _summary(clustering: Clustering) -> dict[str, Any]:
    return {
        "name": clustering.options.name,
        "options": asdict(clustering.options),
        "documents": len(clustering.labels),
        "noise_share": clustering.noise_share,
        "assigned_share": clustering.assigned_share,
        "seconds": clustering.seconds,
        "built_from": clustering.built_from,
        "clusters": [asdict(summary) for summary in clustering.clusters],
    }


def _clustering(values: Mapping[str, Any], table: pa.Table, placement: Placement) -> Clustering:
    return Clustering(
        table["label"].to_numpy(),
        table["probability"].to_numpy(),
        ClusterOptions(**values["options"]),
        tuple(_cluster_summary(cluster) for cluster in values["clusters"]),
        noise_share=float(values["noise_share"]),
        assigned_share=float(values["assigned_share"]),
        built_from=values["built_from"],
        seconds=float(values["seconds"]),
        placement=placement,
    )


def _cluster_summary(values: Mapping[str, Any]) -> ClusterSummary:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return ClusterSummary(**fields)


def _arrays(placement: Placement) -> dict[str, Any]:
    """Return the placement as arrays of numbers: nothing in the file needs to be unpickled."""
    arrays: dict[str, Any] = {f"condensed_{field}": placement.tree.condensed[field] for field in CONDENSED.names or ()}
    arrays |= {"selected": placement.tree.selected, "persistence": placement.tree.persistence}
    arrays |= {"core": placement.core, "densest": placement.densest, "min_samples": placement.min_samples}
    arrays["step"] = placement.step
    if placement.limit is not None:
        arrays["limit"] = placement.limit
    if placement.projection is not None:
        arrays |= {"mean": placement.projection.mean, "components": placement.projection.components}
    if placement.coordinates is not None:
        arrays["coordinates"] = placement.coordinates
    return arrays


def _placement(path: Path) -> Placement:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        condensed = np.empty(len(arrays["condensed_parent"]), CONDENSED)
        for field in CONDENSED.names or ():
            condensed[field] = arrays[f"condensed_{field}"]
        return Placement(
            DensityTree(condensed, arrays["selected"], arrays["persistence"]),
            arrays["core"],
            arrays["densest"],
            int(arrays["min_samples"]),
            limit=float(arrays["limit"]) if "limit" in arrays else None,
            projection=Projection(arrays["mean"], arrays["components"]) if "mean" in arrays else None,
            coordinates=arrays.get("coordinates"),
            step=int(arrays["step"]) if "step" in arrays else 1,
        )
