"""How well do short queries find the right module among docstrings?

Fourteen keyword queries, each with the modules that answer it, over 900 docstrings of the standard library. Scored as
mean reciprocal rank of the first docstring of a right module.

    python scripts/stdlib_corpus.py -o demo/stdlib.parquet --limit 2000      # as `make demo` does
    python benchmarks/keyword_search.py [model ...]                          # default, default-base and MiniLM
"""

import sys

import numpy as np
import pyarrow.parquet as pq

from encoder_quality import PEERS, embedder
from llmindex.records import Vectors

CORPUS = "demo/stdlib.parquet"

QUERIES = {
    "parse command line arguments": ("argparse", "optparse", "getopt"),
    "run code in another process": ("multiprocessing", "concurrent", "subprocess"),
    "send an email over SMTP": ("smtplib", "email", "smtpd"),
    "copy a directory tree": ("shutil", "distutils"),
    "read a CSV file": ("csv",),
    "compress data with gzip": ("gzip", "zipfile", "tarfile", "bz2", "lzma", "zlib"),
    "parse a date from a string": ("datetime", "_strptime", "calendar", "email"),
    "fetch a web page over HTTP": ("urllib", "http"),
    "connect to an ftp server": ("ftplib",),
    "wait for a lock between threads": ("threading", "multiprocessing", "asyncio"),
    "round a decimal number": ("decimal", "_pydecimal", "fractions", "statistics"),
    "create a temporary file": ("tempfile",),
    "write log messages": ("logging",),
    "compare two text files and show differences": ("difflib", "filecmp"),
}


def corpus(file: str) -> tuple[list[str], list[str]]:
    """Texts and top-level modules of 450 docstrings of the modules asked for and 450 of others, seeded."""
    rows = pq.read_table(file, columns=["module", "text"]).to_pylist()
    asked = {module for modules in QUERIES.values() for module in modules}
    right = [row for row in rows if row["module"].split(".")[0] in asked]
    wrong = [row for row in rows if row["module"].split(".")[0] not in asked]
    rng = np.random.default_rng(0)
    rng.shuffle(right)
    rng.shuffle(wrong)
    kept = right[:450] + wrong[:450]
    return [row["text"] for row in kept], [row["module"].split(".")[0] for row in kept]


def reciprocal_rank(queries: Vectors, documents: Vectors, modules: list[str]) -> float:
    """Mean over the queries of 1 / rank of the first document of a right module."""
    scores = []
    for wanted, row in zip(QUERIES.values(), queries @ documents.T, strict=True):
        right = np.array([modules[place] in wanted for place in np.argsort(-row)])
        scores.append(1 / (1 + int(right.argmax())))
    return float(np.mean(scores))


def main() -> None:
    """Print one line for each model."""
    texts, modules = corpus(CORPUS)
    for name in sys.argv[1:] or ("default", "default-base", *PEERS):
        if (encoder := embedder(name)) is None:
            continue  # words alone have no vectors for queries
        queries = encoder.encode(list(QUERIES), role="query")
        print(f"{name:20s} {reciprocal_rank(queries, encoder.encode(texts), modules):.3f}", flush=True)


if __name__ == "__main__":
    main()
