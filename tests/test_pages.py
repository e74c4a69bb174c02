"""Vectors read by their position are those that decoding gives; what is not laid out as expected is decoded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmindex.errors import CorruptStore
from llmindex.records import Rows, Vectors
from llmindex.store import reader, writer
from llmindex.store.manifest import Manifest, VectorDtype
from llmindex.store.reader import VectorStore
from tests.samples import DTYPES, as_stored, make_store, make_vectors

PART = "vectors/part-00000.parquet"


def by_position(index: Path, rows: Rows) -> Vectors:
    """What a store gives while no row group can be decoded."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a row group was decoded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", refuse)
        return VectorStore.open(index).take_vectors(rows)


def by_decoding(index: Path, rows: Rows) -> Vectors:
    """What a store gives while no pages are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "find_pages", lambda *_: None)
        return VectorStore.open(index).take_vectors(rows)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 300),
    dim=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    row_group=st.integers(1, 200),
    page_bytes=st.sampled_from([1, 64, 1_000, 2**20]),
    data=st.data(),
)
def test_rows_by_position_are_the_decoded_rows(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    dim: int,
    dtype: VectorDtype,
    row_group: int,
    page_bytes: int,
    data: st.DataObject,
) -> None:
    index = tmp_path_factory.mktemp("index")
    vectors = make_vectors(count, dim)
    write = pq.write_table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_ROWS", 100)
        patch.setattr("llmindex.store.shard.ROW_GROUP", row_group)
        # Pages as small as Arrow makes them: rows are cut, and long ones lie in several pages.
        patch.setattr(pq, "write_table", lambda *a, **k: write(*a, **k, data_page_size=page_bytes, write_batch_size=13))
        make_store(index, vectors, dtype, window=70)
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=30)) if count else [], dtype=np.int64)
    taken = by_position(index, rows)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, as_stored(vectors, dtype)[rows])
    np.testing.assert_array_equal(taken, by_decoding(index, rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_a_page_of_the_usual_size_cuts(tmp_path: Path, dtype: VectorDtype) -> None:
    vectors = make_vectors(5_000, 384)
    make_store(tmp_path / "index", vectors, dtype)
    every = np.arange(5_000)[::-1]
    np.testing.assert_array_equal(by_position(tmp_path / "index", every), as_stored(vectors, dtype)[every])


def rewrite(index: Path, table: pa.Table, **options: Any) -> None:  # noqa: ANN401
    """Write the only shard of an index in another layout, and record its size."""
    pq.write_table(table, index / PART, **options)
    manifest = Manifest.load(index)
    (shard,) = manifest.shards
    replace(manifest, shards=(replace(shard, bytes=(index / PART).stat().st_size),)).save(index)


@pytest.mark.parametrize(
    "layout",
    [
        {"use_dictionary": False},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "use_byte_stream_split": ["vector.list.element"]},
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
        {"compression": "none", "use_dictionary": False, "write_statistics": True},
    ],
    ids=lambda layout: ",".join(layout),
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_layout_is_decoded(tmp_path: Path, dtype: VectorDtype, layout: dict[str, Any]) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(700, 24)
    make_store(index, vectors, dtype)
    rewrite(index, pq.read_table(index / PART), **layout)
    rows = np.array([699, 0, 350])
    np.testing.assert_array_equal(VectorStore.open(index).take_vectors(rows), as_stored(vectors, dtype)[rows])
    with pytest.raises(AssertionError, match="a row group was decoded"):
        by_position(index, rows)


def test_pages_that_begin_with_a_row_and_vectors_that_might_be_null(tmp_path: Path) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(5_000, 384)
    make_store(index, vectors)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    rows = np.array([4_999, 0, 1_366, 1_367])
    rewrite(index, pq.read_table(index / PART), write_page_index=True, **plain)
    np.testing.assert_array_equal(by_position(index, rows), as_stored(vectors, "float16")[rows])
    table = pq.read_table(index / PART)
    nullable = table.set_column(
        table.num_columns - 1, "vector", table.column("vector").cast(pa.list_(pa.float16(), 384))
    )
    rewrite(index, nullable, **plain)
    np.testing.assert_array_equal(VectorStore.open(index).take_vectors(rows), as_stored(vectors, "float16")[rows])


def vector_chunk(path: Path) -> tuple[int, int]:
    """Where the vectors of a shard's first row group begin and end."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = group.column(group.num_columns - 1)
    return chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size


@settings(max_examples=100, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    header=st.booleans(),
    byte=st.integers(0, 255),
    dim=st.sampled_from([3, 40]),
)
@example(place=0, header=True, byte=0, dim=3)
def test_a_damaged_page_is_never_read_as_other_vectors_than_decoding_gives(
    tmp_path_factory: pytest.TempPathFactory, place: float, header: bool, byte: int, dim: int
) -> None:
    index = tmp_path_factory.mktemp("index")
    vectors = make_vectors(90, dim)
    make_store(index, vectors, "float32")
    start, end = vector_chunk(index / PART)
    damaged = bytearray((index / PART).read_bytes())
    damaged[start + int(place * (40 if header else end - start))] = byte
    (index / PART).write_bytes(damaged)
    rows = np.arange(90)
    decoded, taken = result(by_decoding, index, rows), result(store_gives, index, rows)
    if isinstance(decoded, str) and not isinstance(taken, str):
        # Damage to the levels alone, which say nothing that the positions need, is no harm.
        decoded = vectors
    np.testing.assert_array_equal(taken, decoded)


def store_gives(index: Path, rows: Rows) -> Vectors:
    """What a store gives in whichever way it finds."""
    return VectorStore.open(index).take_vectors(rows)


def result(way: Callable[[Path, Rows], Vectors], index: Path, rows: Rows) -> Vectors | str:
    """The vectors, or what is said of the damage."""
    try:
        return way(index, rows)
    except CorruptStore as error:
        return str(error)


def test_a_damaged_header_is_answered_as_before(tmp_path: Path) -> None:
    index = tmp_path / "index"
    make_store(index, make_vectors(90, 8))
    start, _ = vector_chunk(index / PART)
    damaged = bytearray((index / PART).read_bytes())
    damaged[start : start + 8] = b"\xff" * 8
    (index / PART).write_bytes(damaged)
    with pytest.raises(CorruptStore, match=r"part-00000\.parquet is damaged; `llmindex verify`"):
        VectorStore.open(index).take_vectors(np.array([3]))
