"""What does it cost to read rows by their position, and what does a search gain that scores its candidates again?

A store of 100,000 seeded vectors of 384 numbers is made once, with an index of a bit a number. Random rows are taken
from it by position and, in turn, by decoding their row groups, as is done where a file's layout is another; so are
the candidates of searches, all at once and one by one. Processor seconds of one thread, medians of five rounds.

    OMP_NUM_THREADS=1 python benchmarks/rows_by_position.py FOLDER      # → results/rows_by_position.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np

from index_scale import DIM, RECALL, make_store
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex
from llmindex.store import reader
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter
from vectors import Embeddings

RESULTS = Path(__file__).parent / "results" / "rows_by_position.json"
COUNT: Final = 100_000
FACTORY: Final = "IVF1024,RaBitQ"
ROWS: Final = (10, 100, 1_000)
ROUNDS: Final = 5
BATCHED, SINGLE = 200, 20
WAYS: Final = ("position", "decoding")


def indexed_store(folder: Path) -> VectorStore:
    """The store with its index: those that are there, or new ones."""
    store = make_store(folder, COUNT)
    if store.manifest.index is None or store.manifest.index.factory != FACTORY:
        with VectorWriter.open(store.path) as writer:
            rebuild(writer, factory=FACTORY, recall=RECALL)
    return VectorStore.open(store.path)


@contextmanager
def way(name: str) -> Iterator[None]:
    """Stores opened in here take their vectors in one way."""
    if name == "position":
        yield
    else:
        with mock.patch.object(reader, "find_pages", return_value=None):
            yield


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_rows(store: VectorStore, count: int, seed: int) -> float:
    """Milliseconds for so many random rows."""
    rows = np.random.default_rng(seed).choice(store.count, count, replace=False)
    return 1e3 * seconds(lambda: store.take_vectors(rows))


def measure_searches(index: VectorIndex, seed: int) -> dict[str, float]:
    """Queries a processor second, all at once and one by one."""
    queries = Embeddings(DIM).block(seed, BATCHED + SINGLE, queries=True)
    batched = seconds(lambda: index.search(queries[:BATCHED], 10))
    single = seconds(lambda: [index.search(query[None], 10) for query in queries[BATCHED:]])
    return {"batched": BATCHED / batched, "single": SINGLE / single}


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """All figures of both ways, by way and measure."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in WAYS}
    path = indexed_store(folder).path
    for turn in range(ROUNDS):
        for name in WAYS:
            with way(name):
                store = VectorStore.open(path)
                index = VectorIndex.load(store)
                taken = figures[name]
                # The first rows of a process, with the headers of their pages; then those after others.
                taken.setdefault("first_10_ms", []).append(measure_rows(store, 10, turn))
                store.take_vectors(np.arange(0, COUNT, 1_000))
                for count in ROWS:
                    taken.setdefault(f"{count}_ms", []).append(measure_rows(store, count, ROUNDS + turn))
                for kind, rate in measure_searches(index, turn).items():
                    taken.setdefault(f"{kind}_queries_per_cpu_s", []).append(rate)
    return {name: {what: round(statistics.median(each), 3) for what, each in figures[name].items()} for name in WAYS}


def main() -> None:
    """Measure, print a line a figure and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    figures = measure(folder)
    for what, taken in figures["position"].items():
        print(f"{what:28}{taken:12,.3f} by position{figures['decoding'][what]:12,.3f} by decoding")
    about = {
        "platform": platform.platform(),
        "OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("faiss-cpu", "numpy", "pyarrow")},
    }
    RESULTS.write_text(json.dumps({"vectors": COUNT, "dim": DIM, "machine": about, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
