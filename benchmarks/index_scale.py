"""What do the kinds of index cost, and find, at a million vectors?

A store of seeded, clustered, anisotropic vectors is made once. Then for each kind, one after the other and each in a
process of its own: the index is built from the store (wall and CPU seconds, peak memory), and searched as a user's
process would (memory resident after 4,096 queries, recall@10 of fresh queries against exact search, queries a second
one by one and all at once). Memory is the whole process's, without a model. usearch is a peer where it is installed:
vectors as float16, its own parameters else, searched in its mapped file with as much effort as the recall needs.
Linux, as it reads /proc.

    python benchmarks/index_scale.py FOLDER [--count 1000000] [--kind IVF4096,SQfp16 ...]   # → results/index_scale.json

FOLDER keeps the store, so that kinds can be measured on different days; figures of the same count are kept, too.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmindex.encode.spec import EncoderSpec
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.planner import plan, require_faiss
from llmindex.progress import Progress
from llmindex.records import Rows, Vectors
from llmindex.store.manifest import CorpusRecord, EncoderRecord
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter
from vectors import Embeddings

RESULTS = Path(__file__).parent / "results" / "index_scale.json"
DIM: Final = 384
QUERIES: Final = 1_000
SINGLE: Final = 300
RECALL: Final = 0.95
USEARCH: Final = "usearch"
COSTS = ("build_s", "build_cpu_s", "fill_cpu_s", "build_peak_mb", "file_mb", "resident_mb")
COLUMNS = (*COSTS, "recall", "single_qps", "batched_qps")


def make_store(folder: Path, count: int) -> VectorStore:
    """The store of so many vectors: the one that is there, or a new one."""
    path = folder / f"{count}.llmindex"
    if not path.exists():
        spec = EncoderSpec("default", None, "0" * 64, "{text}", "{text}", "mean", -1, "causal", 100, DIM)
        made_by = EncoderRecord(spec, "float32")
        with VectorWriter.create(path, made_by, CorpusRecord({"sources": []})) as writer:
            for block in Embeddings(DIM).blocks(count):
                start, stop = writer.count, writer.count + len(block)
                texts = [f"document number {number}" for number in range(start, stop)]
                table = pa.table({"id": [str(number) for number in range(start, stop)], "text": texts})
                writer.append(table, block, source_rows=stop, bad_rows={}, truncated=0, tokens=0)
            writer.finish()
    return VectorStore.open(path)


def make_truth(store: VectorStore) -> None:
    """Keep the ten true neighbours of each query beside the store."""
    if truth_of(store).exists():
        return
    faiss = require_faiss()
    queries = Embeddings(DIM).block(0, QUERIES, queries=True)
    best = faiss.ResultHeap(QUERIES, 10, keep_max=True)
    start = 0
    for block in store.iter_vectors(65_536):
        scores, rows = faiss.knn(queries, block, 10, metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, rows + start)
        start += len(block)
    best.finalize()
    np.save(truth_of(store), best.I)


def truth_of(store: VectorStore) -> Path:
    """Where the true neighbours are kept."""
    return store.path.with_suffix(".truth.npy")


def memory_mb(kind: str) -> float:
    """Memory of this process in MB, of a kind that /proc/self/status has."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_build(store: VectorStore, kind: str) -> dict[str, Any]:
    """Build an index of a kind in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    tuning: list[float] = []

    def note_tuning(report: Progress) -> None:
        if report.stage == "tune":
            tuning.append(time.process_time())

    if kind == USEARCH:
        facts = build_usearch(store)
    else:
        # A kind that is asked for by name is trained on more vectors than the planner's choice.
        factory = None if kind == plan(store.count, DIM).factory else kind
        with VectorWriter.open(store.path) as writer:
            record = rebuild(writer, factory=factory, recall=RECALL, on_progress=note_tuning)
        facts = {"file_mb": record.bytes / 1e6, "parameters": record.parameters}
    facts["build_s"] = time.perf_counter() - start
    facts["build_cpu_s"] = time.process_time() - cpu
    # Finding out the effort and the recall costs every kind about the same, and usearch does not do it.
    facts["fill_cpu_s"] = (tuning[0] if tuning else time.process_time()) - cpu
    facts["build_peak_mb"] = memory_mb("VmHWM")
    return facts


def measure_search(store: VectorStore, kind: str) -> dict[str, Any]:
    """Search an index that this process has just opened."""
    queries = Embeddings(DIM).block(0, queries=True)
    truth: Rows = np.load(truth_of(store))
    empty = memory_mb("VmRSS")
    search = open_usearch(store, queries[:QUERIES], truth) if kind == USEARCH else open_ours(store)
    found, seconds = timed(lambda: search(queries[:QUERIES]))
    _, one_by_one = timed(lambda: np.vstack([search(query[None]) for query in queries[:SINGLE]]))
    search(queries[:4_096])
    return {
        "recall": recall_of(found, truth),
        "batched_qps": QUERIES / seconds,
        "single_qps": SINGLE / one_by_one,
        "resident_mb": memory_mb("VmRSS"),
        "resident_before_mb": empty,
    }


def open_ours(store: VectorStore) -> Callable[[Vectors], Rows]:
    """The search of an index of ours, as ``llmindex search`` opens it."""
    index = VectorIndex.load(store)
    return lambda queries: index.search(queries, 10).rows


def build_usearch(store: VectorStore) -> dict[str, Any]:
    """An index of usearch beside the store."""
    from usearch.index import Index

    index = Index(ndim=DIM, metric="ip", dtype="f16")
    start = 0
    for block in store.iter_vectors(16_384):
        index.add(np.arange(start, start + len(block)), block)
        start += len(block)
    path = store.path.with_suffix(".usearch")
    index.save(str(path))
    return {"file_mb": path.stat().st_size / 1e6, "parameters": ""}


def open_usearch(store: VectorStore, queries: Vectors, truth: Rows) -> Callable[[Vectors], Rows]:
    """The search of usearch's mapped file, its effort doubled until the recall is reached."""
    from usearch.index import Index

    index = Index.restore(str(store.path.with_suffix(".usearch")), view=True)

    def search(asked: Vectors) -> Rows:
        found: Rows = index.search(asked, 10).keys.reshape(len(asked), 10).astype(np.int64)
        return found

    while recall_of(search(queries), truth) < RECALL and index.expansion_search < 4_096:
        index.expansion_search *= 2
    return search


def timed(work: Callable[[], Rows]) -> tuple[Rows, float]:
    """What some work gives, and the seconds of its faster run of two."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def recall_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found."""
    return float((found[:, :, None] == truth[:, None, :]).any(axis=1).mean())


def in_a_process(step: str, folder: Path, count: int, kind: str) -> dict[str, Any]:
    """The figures of one step, taken in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--count", str(count), "--kind", kind, "--step", step]
    facts: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return facts


def default_kinds(count: int) -> list[str]:
    """The kinds that are compared, the planner's choice first."""
    nlist = plan(max(50_000, count), DIM).nlist
    kinds = [plan(count, DIM).factory, "Flat", f"IVF{nlist},SQ8", "HNSW32"]
    try:
        version(USEARCH)
    except PackageNotFoundError:
        return kinds
    return [*kinds, USEARCH]


def keep(count: int, kind: str, facts: dict[str, Any]) -> None:
    """Put the figures of a kind among those that are kept."""
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sizes": {}}
    versions = {}
    for name in ("faiss-cpu", "numpy", "pyarrow", USEARCH):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine = {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS"),
    }
    facts["load"] = round(os.getloadavg()[0], 1)
    figures |= {"machine": machine, "versions": {"python": platform.python_version(), **versions}, "dim": DIM}
    figures["sizes"].setdefault(str(count), {})[kind] = {
        name: round(value, 3) if isinstance(value, float) else value for name, value in facts.items()
    }
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Measure each kind, print its line and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kind", nargs="*", help="FAISS factory strings, and usearch")
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    store = make_store(asked.folder, asked.count)
    if asked.step:
        facts = (measure_build if asked.step == "build" else measure_search)(store, *asked.kind)
        print(json.dumps(facts))
        return
    make_truth(store)
    print(f"{'':16}" + "".join(f"{column:>14}" for column in COLUMNS))
    for kind in asked.kind or default_kinds(asked.count):
        facts = {}
        for step in ("build", "search"):
            facts |= in_a_process(step, asked.folder, asked.count, kind)
        print(f"{kind:16}" + "".join(f"{facts[column]:14,.3f}" for column in COLUMNS), flush=True)
        keep(asked.count, kind, facts)


if __name__ == "__main__":
    main()
