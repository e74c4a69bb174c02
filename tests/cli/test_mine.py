import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import TEMPLATES, Llmindex


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.parquet"
    rows = [(TEMPLATES[n % 3].format(n), TEMPLATES[n % 3].format(n + 3)) for n in range(9)]
    pq.write_table(pa.table({"text": [row[0] for row in rows], "text_pair": [row[1] for row in rows]}), path)
    return path


def test_for_people_and_programs(llmindex: Llmindex, built: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    ended = llmindex("-q", "mine", pairs, "-i", built, "-o", out, "--json", "-k", 120, "--margin", 0.01)
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    table = pq.read_table(out)
    assert table.column_names == ["text", "text_pair", "negative"]
    assert report["file"] == str(out)
    assert (report["pairs"], report["rows"], report["without"]) == (9, len(table), table["negative"].null_count)
    assert report["negative_score"] < report["positive_score"]
    ended = llmindex("mine", pairs, "-i", built, "-o", out, "-k", "3", "--margin", "2")
    assert ended.code == 0
    assert "9, 0 with a negative, 9 without" in ended.out
    assert ended.err == "9 pairs without a negative: raise -k, lower --margin, or index more documents.\n"


def test_bad_input(llmindex: Llmindex, built: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.parquet"
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"question": ["a"]}), wrong)
    ended = llmindex("mine", wrong, "-i", built, "-o", out)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert 'has no column "text" (columns: question)' in ended.err
    assert llmindex("mine", pairs, "-i", built, "-o", tmp_path / "mined.csv").code == 2
    assert llmindex("mine", pairs, "-i", built, "-o", out, "--margin", "nan").code == 2
    assert llmindex("mine", "-i", built, "-o", out).code == 2
    assert llmindex("mine", pairs, "-i", tmp_path / "none", "-o", out).code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.parquet", "wrong.parquet"]
