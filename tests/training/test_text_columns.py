"""Columns of text: any of Arrow's layouts is read, and what is not readable is named by its place."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.errors import CorpusError, UsageError
from llmindex_training import pairs, text_columns
from llmindex_training.evaluation_data import read_clustering

BAD = b"caf\xe9"


def raw(values: list[bytes]) -> pa.Array:
    """Strings that need not be UTF-8, as a careless writer makes them."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    "layout", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_layouts(layout: pa.DataType) -> None:
    values = ["a", None, "ü"]
    column = pa.chunked_array([pa.array(values).cast(layout)])
    assert text_columns.strings(Path("p"), "text", column) == pa.chunked_array([pa.array(values)])


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    good, bad = raw([b"x"] * 3), raw([b"x", BAD, b"y"])
    pq.write_table(pa.table({"text": good, "text_pair": bad, "label": bad}), file)
    with pytest.raises(CorpusError) as caught:
        pairs.read([file])
    assert str(caught.value) == f'{file}, row 1: "text_pair" is not UTF-8; remove or mend such rows first'
    with pytest.raises(CorpusError, match='row 1: "label" is not UTF-8'):
        read_clustering(file)
    chunks = pa.chunked_array([good, bad])
    with pytest.raises(CorpusError, match="row 1,004: "):
        text_columns.strings(file, "text", chunks, row=1000)


def test_a_file_whose_name_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "\udcff.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"\\udcff\.parquet is not UTF-8; name another one$"):
        text_columns.read(file)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "text_pair", "text"]), file)
    for read in (lambda: pairs.read([file]), lambda: read_clustering(file)):
        with pytest.raises(CorpusError, match='has the column "text" more than once; keep one of them'):
            read()
