"""What does a condition cost a search, and what does it find, as fewer documents qualify?

The store and the default index of index_scale.py, searched by vectors: without a condition, with conditions that a
share of the documents satisfies, spread evenly, and with one that the tenth of them satisfies that lies farthest from
each query, which no list near the query holds. Beside each, FAISS's own selector with the effort of the unfiltered
search. Recall is that of the ten nearest against comparing with every document that qualifies. The condition, in SQL
over a stored column, is computed at the first search and kept; that is a column of its own.

    python benchmarks/filtered_search.py FOLDER [--count 1000000] [--rounds 5]     # → results/filtered_search.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_scale import DIM, RECALL, make_store, recall_of
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.filtered import FilteredIndex
from llmindex.index.neighbors import compare
from llmindex.index.planner import require_faiss
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore
from llmindex.store.where import qualifying
from llmindex.store.writer import VectorWriter
from vectors import Embeddings

RESULTS = Path(__file__).parent / "results" / "filtered_search.json"
QUERIES: Final = 200
FAR_QUERIES: Final = 20
K: Final = 10
SHARES: Final = (0.5, 0.1, 0.01, 0.001)


def open_index(folder: Path, count: int) -> tuple[VectorStore, VectorIndex]:
    """The store and its default index, built where there is none."""
    store = make_store(folder, count)
    if store.manifest.index is None:
        with VectorWriter.open(store.path) as writer:
            rebuild(writer, recall=RECALL)
        store = VectorStore.open(store.path)
    return store, VectorIndex.load(store)


def exact(store: VectorStore, queries: Vectors, mask: NDArray[np.bool_]) -> Rows:
    """The true neighbours among what qualifies."""
    rows = np.flatnonzero(mask)
    start, blocks = 0, []
    for block in store.iter_vectors(65_536):
        inside = rows[(rows >= start) & (rows < start + len(block))]
        if len(inside):
            blocks.append((inside, np.ascontiguousarray(block[inside - start])))
        start += len(block)
    return compare(queries, blocks, K).rows


def own_selector(index: VectorIndex, queries: Vectors, mask: NDArray[np.bool_]) -> Rows:
    """What FAISS finds when it is told what to skip, and nothing else."""
    faiss = require_faiss()
    inner = index._index
    selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    if not hasattr(inner, "nprobe"):
        parameters = faiss.SearchParameters(sel=selector)
    else:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=inner.nprobe)
    found: Rows = inner.search(queries, K, params=parameters)[1]
    return found


def milliseconds(index: VectorIndex | FilteredIndex, queries: Vectors) -> float:
    """Of one query, asked alone: CPU time, mean over the queries."""
    start = time.process_time()
    for query in queries:
        index.search(query[None], K)
    return 1000 * (time.process_time() - start) / len(queries)


def measure(store: VectorStore, index: VectorIndex, rounds: int) -> list[dict[str, Any]]:
    """A row for each condition; times are medians of rounds in which each is timed in turn."""
    queries = Embeddings(DIM).block(0, QUERIES, queries=True)
    everything = np.ones(store.count, np.bool_)
    unfiltered = recall_of(index.search(queries, K).rows, exact(store, queries, everything))
    table: list[dict[str, Any]] = [{"condition": "none", "recall": unfiltered}]
    searched: list[VectorIndex | FilteredIndex] = [index]
    for share in SHARES:
        condition = f"CAST(id AS BIGINT) % 1000 < {round(1000 * share)}"
        start = time.process_time()
        mask = qualifying(store, condition).mask
        seconds = time.process_time() - start
        filtered = index.filters().of(condition)
        true = exact(store, queries, mask)
        table.append(
            {
                "condition": f"{share:.1%} of the documents",
                "condition_s": seconds,
                "recall": recall_of(filtered.search(queries, K).rows, true),
                "own_selector_recall": recall_of(own_selector(index, queries, mask), true),
            }
        )
        searched.append(filtered)
    times = [[milliseconds(each, queries) for each in searched] for _ in range(rounds)]
    for row, each in zip(table, zip(*times, strict=True), strict=True):
        row["cpu_ms"] = statistics.median(each)
        row["times_unfiltered"] = statistics.median(this / base for this, (base, *_) in zip(each, times, strict=True))
    return [*table, far(store, index, queries[:FAR_QUERIES])]


def far(store: VectorStore, index: VectorIndex, queries: Vectors) -> dict[str, Any]:
    """The tenth that lies farthest from each query, as conditions that depend on the meaning do."""
    ours, own = [], []
    for query in queries:
        scores = np.concatenate([block @ query for block in store.iter_vectors(65_536)])
        mask = scores < np.quantile(scores, 0.1)
        true = exact(store, query[None], mask)
        ours.append(recall_of(FilteredIndex(index._index, store, mask).search(query[None], K).rows, true))
        own.append(recall_of(own_selector(index, query[None], mask), true))
    recalls = {"recall": float(np.mean(ours)), "own_selector_recall": float(np.mean(own))}
    return {"condition": "the farthest 10 %", **recalls}


def main() -> None:
    """Measure, print a table and keep it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    store, index = open_index(asked.folder, asked.count)
    table = measure(store, index, asked.rounds)
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in table
    ]
    kind = {} if store.manifest.index is None else {"kind": store.manifest.index.factory}
    figures[str(asked.count)] = {"machine": machine, **kind, "rounds": asked.rounds, "conditions": rows}
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
