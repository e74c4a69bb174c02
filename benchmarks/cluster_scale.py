"""How long does clustering take, how much memory, and how near to exact HDBSCAN is it, up to a million vectors?

Every figure is taken in a process of its own: processor seconds of the clustering alone (a thousand vectors were
clustered before, so that nothing is imported or compiled any more), with --fresh those of a whole process, too, and
peak memory. The synthetic vectors are those of vectors.py, in topics; the real ones are files of vectors, put together,
with the file as the label. Packages that are not installed are left out, and the results say so.

    OMP_NUM_THREADS=1 python benchmarks/cluster_scale.py FOLDER --count 5000 20000 50000 --dim 384 768
    OMP_NUM_THREADS=1 python benchmarks/cluster_scale.py FOLDER --count 1000000 --method llmindex
    OMP_NUM_THREADS=1 python benchmarks/cluster_scale.py FOLDER --real agnews.npy hwu64.npy

FOLDER keeps vectors and labels; the figures go to benchmarks/results/cluster_scale.json, beside those that are there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster import reduce, spanning_tree
from llmindex.cluster.distinct import first_rows
from llmindex.cluster.groups import group
from llmindex.cluster.options import ClusterOptions
from llmindex.records import Vectors
from vectors import BLOCK, Embeddings

RESULTS = Path(__file__).parent / "results" / "cluster_scale.json"
PACKAGES = ("hdbscan", "fast-hdbscan", "evoc", "umap-learn", "faiss-cpu", "numpy", "scipy")

Labels = NDArray[np.int32]


def blocks(vectors: NDArray[np.float16]) -> Iterator[Vectors]:
    """Stored vectors as a store gives them."""
    for start in range(0, len(vectors), BLOCK):
        yield np.asarray(vectors[start : start + BLOCK], np.float32)


def sizes(count: int) -> tuple[int, int]:
    """The default min_cluster_size and min_samples, which all methods get."""
    options = ClusterOptions().resolve(count)
    return options.min_cluster_size or 0, options.min_samples or 0


def ours(vectors: NDArray[np.float16], **options: Any) -> Labels:  # noqa: ANN401
    """`llmindex cluster` without keywords."""
    first = first_rows(blocks(vectors))
    return group(lambda: blocks(vectors), first, ClusterOptions(**options).resolve(len(vectors))).labels


def ours_approximate(vectors: NDArray[np.float16]) -> Labels:
    """The same by the way of large corpora, whatever the number of vectors."""
    for module in (reduce, spanning_tree):
        vars(module)["EXACT_LIMIT"] = 0
    return ours(vectors)


def by_hdbscan(vectors: NDArray[np.float16] | Vectors) -> Labels:
    """The hdbscan package."""
    from hdbscan import HDBSCAN

    size, samples = sizes(len(vectors))
    model = HDBSCAN(min_cluster_size=size, min_samples=samples, core_dist_n_jobs=1)
    labels: Labels = model.fit(vectors.astype(np.float32)).labels_
    return labels


def by_umap(vectors: NDArray[np.float16]) -> Labels:
    """UMAP to five dimensions as BERTopic uses it, then the hdbscan package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        model = UMAP(n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine", random_state=0, n_jobs=1)
        return by_hdbscan(model.fit_transform(vectors.astype(np.float32)))


def by_fast_hdbscan(vectors: NDArray[np.float16]) -> Labels:
    """The fast_hdbscan package, where it is installed."""
    from fast_hdbscan import HDBSCAN

    size, samples = sizes(len(vectors))
    labels: Labels = HDBSCAN(min_cluster_size=size, min_samples=samples).fit(vectors.astype(np.float32)).labels_
    return labels


def by_evoc(vectors: NDArray[np.float16]) -> Labels:
    """The evoc package, where it is installed."""
    from evoc import EVoC

    labels: Labels = EVoC(base_min_cluster_size=sizes(len(vectors))[0]).fit_predict(vectors.astype(np.float32))
    return labels


METHODS: dict[str, Callable[[NDArray[np.float16]], Labels]] = {
    "llmindex": ours,
    "llmindex, approximate": ours_approximate,
    "llmindex, plain": partial(ours, reduce="none", assign_noise=False),
    "hdbscan": by_hdbscan,
    "UMAP + hdbscan": by_umap,
    "fast_hdbscan": by_fast_hdbscan,
    "EVoC": by_evoc,
}
REFERENCES: dict[str, tuple[str, ...]] = {"llmindex": (), "llmindex, approximate": ("llmindex",)}
"""What a method's labels are compared with, the first that was run; both are exact up to so many vectors."""
EXACT_UP_TO = spanning_tree.EXACT_LIMIT
NEEDED = {"hdbscan": "hdbscan", "UMAP + hdbscan": "umap-learn", "fast_hdbscan": "fast-hdbscan", "EVoC": "evoc"}


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def synthetic(folder: Path, count: int, dim: int) -> Path:
    """The file of so many synthetic vectors, float16 as stored, its topics beside it; made if need be."""
    path = folder / f"{count}x{dim}.npy"
    if not path.exists():
        made = Embeddings(dim)
        topics = [made.topics(number) for number in range(-(-count // BLOCK))]
        np.save(truth_of(path), np.concatenate(topics)[:count])
        stored = np.lib.format.open_memmap(path, "w+", np.float16, (count, dim))
        for number, block in enumerate(made.blocks(count)):
            stored[number * BLOCK : number * BLOCK + len(block)] = block
        stored.flush()
    return path


def real(folder: Path, files: list[Path]) -> Path:
    """The file of some files' vectors."""
    parts = [np.load(file) for file in files]
    path = folder / f"real-{sum(map(len, parts))}x{parts[0].shape[1]}.npy"
    np.save(path, np.concatenate(parts).astype(np.float16))
    np.save(truth_of(path), np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
    return path


def truth_of(path: Path) -> Path:
    """Where the true labels of a file's vectors lie."""
    return path.with_suffix(".truth.npy")


def labels_of(path: Path, method: str) -> Path:
    """Where the labels that a method gave lie."""
    return path.with_suffix(f".{method.replace(' ', '').replace(',', '-')}.labels.npy")


def measure(path: Path, method: str, *, fresh: bool) -> dict[str, Any]:
    """Cluster the vectors of a file in this process."""
    vectors = np.load(path, mmap_mode="r")
    if not fresh:
        METHODS[method](vectors[:1000])
    started = 0.0 if fresh else time.process_time()
    labels = METHODS[method](vectors)
    seconds = time.process_time() - started
    np.save(labels_of(path, method), labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"fresh_cpu_s" if fresh else "cpu_s": round(seconds, 2), "peak_mb": round(peak)}


def quality(path: Path, method: str) -> dict[str, Any]:
    """How good a method's labels are; noise counts as a label of its own."""
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    labels = np.load(labels_of(path, method))
    facts = {
        "clusters": int(labels.max(initial=-1)) + 1,
        "noise": round(float((labels < 0).mean()), 4),
        "ami": round(float(adjusted_mutual_info_score(np.load(truth_of(path)), labels)), 4),
    }
    references = REFERENCES.get(method, ("hdbscan", "llmindex, plain"))
    exact = next((each for each in references if labels_of(path, each).exists()), method)
    if exact != method and len(labels) <= EXACT_UP_TO:
        facts["ari_to_exact"] = round(float(adjusted_rand_score(np.load(labels_of(path, exact)), labels)), 4)
    return facts


def in_a_process(path: Path, method: str, *, fresh: bool) -> dict[str, Any]:
    """The figures of one run, taken in a process of its own."""
    command = [sys.executable, __file__, str(path.parent), "--step", str(path), method, "fresh" if fresh else "warm"]
    facts: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return facts


def keep(name: str, method: str, facts: dict[str, Any] | str) -> None:
    """Put the figures of a method among those that are kept."""
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sets": {}}
    figures["machine"] = {"platform": platform.platform(), "OMP_NUM_THREADS": os.getenv("OMP_NUM_THREADS")}
    figures["versions"] = {package: installed(package) or "not installed" for package in PACKAGES}
    figures["sets"].setdefault(name, {})[method] = facts
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure each method on each set, print its figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps vectors and labels")
    parser.add_argument("--count", type=int, nargs="*", default=[], help="synthetic vectors")
    parser.add_argument("--dim", type=int, nargs="*", default=[384], help="their lengths")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="files of real vectors")
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--fresh", action="store_true", help="measure a fresh process, too")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        path, method, kind = arguments.step
        print(json.dumps(measure(Path(path), method, fresh=kind == "fresh")))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    paths = [synthetic(arguments.folder, count, dim) for count in arguments.count for dim in arguments.dim]
    if arguments.real:
        paths.append(real(arguments.folder, arguments.real))
    for path in paths:
        for method in arguments.method:
            facts: dict[str, Any] | str = "not installed"
            if method not in NEEDED or installed(NEEDED[method]):
                runs = [False, True] if arguments.fresh else [False]
                facts = {
                    name: value for fresh in runs for name, value in in_a_process(path, method, fresh=fresh).items()
                }
                facts |= quality(path, method)
            keep(path.stem, method, facts)
            print(f"{path.stem}, {method}: {facts}", flush=True)


if __name__ == "__main__":
    main()
