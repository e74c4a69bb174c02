"""What was predicted of an index, beside what it takes: file, building, searching."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from llmindex.index.footprint import BUILDING
from llmindex.index.planner import plan
from tests.samples import make_store, make_vectors

COUNT, DIM = 40_000, 384
# What a process has besides the index differs from machine to machine.
FLOOR = 60_000_000

MEMORY = """
    import json
    import sys
    from pathlib import Path

    import faiss
    import numpy as np

    def memory(kind):
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{kind}:")[1].split()[0]) * 1024
"""
BUILD = """
    from llmindex.index.building import rebuild
    from llmindex.store.writer import VectorWriter

    with VectorWriter.open(sys.argv[1]) as writer:
        record = rebuild(writer, recall=0.9, **json.loads(sys.argv[2]))
    print(record.factory, record.bytes, memory("VmHWM"))
"""
SEARCH = """
    from llmindex.index.faiss_index import VectorIndex
    from llmindex.store.reader import VectorStore

    store = VectorStore.open(sys.argv[1])
    queries = next(store.iter_vectors())[:16]
    before = memory("VmRSS")
    VectorIndex.load(store).search(queries, store.count)  # looks at every list
    print(memory("VmRSS") - before)
"""


def run(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", dedent(MEMORY) + dedent(program), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("asked", "factory"),
    [
        ({}, "Flat"),
        ({"memory": 305_000_000}, "IVF1024,SQfp16"),
        ({"memory": 290_000_000}, "IVF256,SQ8"),
        ({"factory": "HNSW32"}, "HNSW32"),
        ({"factory": "IVF256,RaBitQ"}, "IVF256,RaBitQ"),
    ],
)
def test_predictions(tmp_path: Path, asked: dict[str, Any], factory: str) -> None:
    planned = plan(COUNT, DIM, recall=0.9, **asked)
    assert planned.factory == factory
    store = make_store(tmp_path / "index", make_vectors(COUNT, DIM, clusters=200))
    factory, size, peak = run(BUILD, store.path, json.dumps(asked))
    assert factory == planned.factory
    assert abs(int(size) / planned.footprint.file - 1) < 0.01
    assert abs(int(peak) - planned.footprint.build) < 0.15 * (planned.footprint.build - BUILDING) + FLOOR
    (grown,) = map(int, run(SEARCH, store.path))
    assert grown < 1.15 * planned.footprint.file + FLOOR
