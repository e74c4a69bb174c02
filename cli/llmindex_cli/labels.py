"""Copies of a stored clustering's labels in the format that a file's name asks for."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet", ".csv", ".jsonl")


def write_labels(stored: Path, output: Path) -> None:
    """Write id, row, label and probability of each document.

    Args:
        stored: the clustering's Parquet file in the index.
        output: a .parquet, .csv or .jsonl file; replaced whole or not at all.

    Raises:
        StorageError: the disk refused.
    """
    from pyarrow import csv, parquet

    from llmindex.store.files import replacing

    with replacing(output) as temporary:
        if output.suffix == ".parquet":
            shutil.copyfile(stored, temporary)
        elif output.suffix == ".csv":
            csv.write_csv(parquet.read_table(stored), temporary)
        else:
            _write_jsonl(parquet.read_table(stored), temporary)


def _write_jsonl(table: "pa.Table", path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in table.to_batches():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
