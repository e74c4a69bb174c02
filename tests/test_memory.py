"""Peak memory of a build does not grow with the corpus."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

BUILD = """
import resource, sys
import llmindex
llmindex.build(sys.argv[1], sys.argv[2], encoder=llmindex.Encoder.load(sys.argv[3], device="cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_times_the_rows_take_the_same_memory(tiny_model: Path, tmp_path: Path) -> None:
    peaks = {}
    for rows in (2_000, 20_000):
        texts = [f"document {row} about topic {row % 17} and word {row % 101} " * 4 for row in range(rows)]
        corpus = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({"id": [f"d{row}" for row in range(rows)], "text": texts}), corpus)
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(corpus), str(tmp_path / f"{rows}.llmindex"), str(tiny_model)],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        peaks[rows] = int(done.stdout)
    assert peaks[20_000] < 1.1 * peaks[2_000], peaks
