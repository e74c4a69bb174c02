"""What do the kinds of index cost, and find, at a million vectors?

A store of seeded, clustered, anisotropic vectors is made once. Then for each kind, one after the other and each in a
process of its own: the index is built from the store (wall and CPU seconds, peak memory), and searched as a user's
process would (memory resident after 4,096 queries, recall@10 of fresh queries against exact search, queries a second
one by one and all at once). Memory is the whole process's, without a model. usearch is a peer where it is installed:
vectors as float16, its own parameters else, searched in its mapped file with as much effort as the recall needs.
Linux, as it reads /proc.

    python benchmarks/index_scale.py FOLDER [--count 1000000] [--kind IVF4096,SQfp16 ...]   # → results/index_scale.json

FOLDER keeps the store, so that kinds can be measured on different days; figures of the same count are kept, too.
With --memory BYTES the planner's choice in so much memory is measured. Figures taken in a control group that limits
memory, page cache included, are kept under a name of their own, with the limit; the hashes of the file and of the hits
say whether it made a difference. A page counts in the group that read it first: make the store without a limit, then
empty the cache.

    python benchmarks/index_scale.py FOLDER --count 3000000 --memory 2e9
    sync; echo 1 > /proc/sys/vm/drop_caches
    group=/sys/fs/cgroup/memory/index; mkdir $group; echo 2000000000 > $group/memory.limit_in_bytes
    (sh -c 'echo $PPID' > $group/cgroup.procs; python benchmarks/index_scale.py FOLDER --count 3000000 --memory 2e9)
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
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


class AnonymousPeak:
    """The most memory that this process had to itself, looked up ten times a second: none of it is a file's."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._stopped = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> "AnonymousPeak":
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            self.mb = max(self.mb, memory_mb("RssAnon"))


def limit_mb() -> float | None:
    """The memory in MB, page cache included, that this process's control group may take; None without a limit."""
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        kinds = {"": f".{group}/memory.max", "memory": f"./memory{group}/memory.limit_in_bytes"}
        file = root / kinds.get(controllers, "none")
        limit = file.read_text().strip() if file.exists() else "max"
        if limit != "max" and int(limit) < 2**60:
            return int(limit) / 1e6
    return None


def measure_build(store: VectorStore, kind: str, memory: int | None) -> dict[str, Any]:
    """Build an index of a kind in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    tuning: list[float] = []

    def note_tuning(report: Progress) -> None:
        if report.stage == "tune":
            tuning.append(time.process_time())

    with AnonymousPeak() as anonymous:
        if kind == USEARCH:
            facts = build_usearch(store)
        else:
            # A kind that is asked for by name is trained on more vectors than the planner's choice.
            chosen, factory = plan(store.count, DIM, memory=memory), None
            if kind != chosen.factory:
                chosen, factory, memory = plan(store.count, DIM, kind), kind, None
            with VectorWriter.open(store.path) as writer:
                record = rebuild(writer, factory=factory, recall=RECALL, memory=memory, on_progress=note_tuning)
            facts = {
                "file_mb": record.bytes / 1e6,
                "parameters": record.parameters,
                "sha256": record.sha256[:16],
                "predicted_build_mb": chosen.footprint.build / 1e6,
                "predicted_search_mb": chosen.footprint.search / 1e6,
            }
    facts["build_s"] = time.perf_counter() - start
    facts["build_cpu_s"] = time.process_time() - cpu
    # Finding out the effort and the recall costs every kind about the same, and usearch does not do it.
    facts["fill_cpu_s"] = (tuning[0] if tuning else time.process_time()) - cpu
    facts["build_peak_mb"] = memory_mb("VmHWM")
    facts["build_anonymous_mb"] = anonymous.mb
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
        "hits_sha256": hashlib.sha256(found.tobytes()).hexdigest()[:16],
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


def in_a_process(step: str, folder: Path, count: int, kind: str, memory: int | None) -> dict[str, Any]:
    """The figures of one step, taken in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--count", str(count), "--kind", kind, "--step", step]
    command += [] if memory is None else ["--memory", str(memory)]
    facts: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return facts


def default_kinds(count: int) -> list[str]:
    """The kinds that are compared, the planner's choice first."""
    lists, _, _ = plan(max(50_000, count), DIM).factory.partition(",")
    kinds = [plan(count, DIM).factory, "Flat", f"{lists},SQ8", "HNSW32"]
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
    limit = limit_mb()
    if limit is not None:
        facts["limit_mb"] = limit
        kind = f"{kind} in {limit:.0f} MB"
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
    parser.add_argument("--memory", type=lambda text: int(float(text)), help="bytes that the planner may take")
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    store = make_store(asked.folder, asked.count)
    if asked.step:
        (kind,) = asked.kind
        build = asked.step == "build"
        print(json.dumps(measure_build(store, kind, asked.memory) if build else measure_search(store, kind)))
        return
    make_truth(store)
    print(f"{'':16}" + "".join(f"{column:>14}" for column in COLUMNS))
    kinds = [plan(asked.count, DIM, memory=asked.memory).factory] if asked.memory else default_kinds(asked.count)
    for kind in asked.kind or kinds:
        facts: dict[str, Any] = {}
        for step in ("build", "search"):
            facts |= in_a_process(step, asked.folder, asked.count, kind, asked.memory)
        print(f"{kind:16}" + "".join(f"{facts[column]:14,.3f}" for column in COLUMNS), flush=True)
        keep(asked.count, kind, facts)


if __name__ == "__main__":
    main()
