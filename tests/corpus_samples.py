"""What the tests of corpora share: rows to write, and documents to read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmindex.corpus import Corpus

Row = Mapping[str, Any]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def documents(corpus: Corpus, max_rows: int = 1000) -> list[dict[str, Any]]:
    return [row for window in corpus.windows(max_rows) for row in window.table.to_pylist()]
