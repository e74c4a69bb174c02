import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.errors import IndexNotFound, LlmindexError, ManifestError, UsageError
from llmindex.folder import is_index, open_regular
from llmindex.store.manifest import CorpusRecord, IndexRecord, Manifest, ShardRecord
from tests.samples import make_encoder

SHA = "ab" * 32


def make_manifest() -> Manifest:
    manifest = Manifest(
        created_at="2025-01-01T00:00:00+00:00",
        encoder=make_encoder(8),
        corpus=CorpusRecord({"sources": ["a\udce9.txt", "ü"]}, 12, {"null": 1, "empty": 2}, True, 3, 40),
        shards=(
            ShardRecord("vectors/part-00000.parquet", 5, 100, SHA),
            ShardRecord("vectors/part-00001.partial-00004.parquet", 4, 90, SHA[::-1]),
        ),
    )
    index = IndexRecord("faiss/a-b.faiss", SHA, 10, "IVF4,Flat", "nprobe=2", manifest.vectors_id, 0.95, 0.97)
    return Manifest(**{name: getattr(manifest, name) for name in Manifest.__slots__} | {"index": index})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    manifest = make_manifest()
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.count == 9
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert values["encoder"]["fingerprint"] == manifest.encoder.spec.fingerprint()


def test_the_order_of_bad_rows_does_not_show(tmp_path: Path) -> None:
    texts = []
    for kinds in (["null", "empty"], ["empty", "null"]):
        corpus = CorpusRecord({}, bad_rows=dict.fromkeys(kinds, 1))
        Manifest("now", make_encoder(8), corpus).save(tmp_path)
        texts.append((tmp_path / "manifest.json").read_text())
    assert texts[0] == texts[1]


def test_vectors_id_follows_shards_and_dtype() -> None:
    shards = make_manifest().shards
    ids = {
        Manifest("now", make_encoder(8), CorpusRecord({}), dtype, chosen).vectors_id
        for dtype in ("float16", "float32")
        for chosen in (shards, shards[:1], shards[::-1], ())
    }
    assert len(ids) == 8
    assert make_manifest().vectors_id == make_manifest().vectors_id


def test_no_index_there(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound, match=r"no index at .*absent: no such folder; `llmindex build` makes one"):
        Manifest.load(tmp_path / "absent")
    with pytest.raises(IndexNotFound, match=r"no index at .*: it has no manifest\.json; "):
        Manifest.load(tmp_path)
    file = tmp_path / "corpus.parquet"
    file.touch()
    with pytest.raises(IndexNotFound, match=r"corpus\.parquet: it has no manifest\.json"):
        Manifest.load(file)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000, b"[]", b"null"])
def test_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(IndexNotFound, match=r"no index at .*: its manifest\.json is something else's"):
        Manifest.load(tmp_path)
    with_shard(tmp_path)
    with pytest.raises(ManifestError, match=r"manifest\.json.* build the index again$") as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_may_have_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "manifest.json").symlink_to("/dev/null")
    for name in ("pipe", "manifest.json"):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(ManifestError, match=r"^cannot read .*manifest\.json: it is not a regular file$"):
        Manifest.load(tmp_path)
    assert not is_index(tmp_path)


def with_shard(folder: Path) -> None:
    (folder / "vectors").mkdir()
    (folder / "vectors" / "part-00000.parquet").touch()


def edit(tmp_path: Path, where: str, value: object) -> None:
    """Save a manifest with one value changed, or taken out where it is ``...``."""
    make_manifest().save(tmp_path)
    path = tmp_path / "manifest.json"
    top = json.loads(path.read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    values: Any = top
    for part in parents:
        values = values[part]
    if value is ...:
        del values[last]
    else:
        values[last] = value
    path.write_text(json.dumps(top))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("format_version", ..., "format_version is missing"),
        ("format_version", 0, "format_version is 0, which cannot be"),
        ("format_version", True, r"format_version has the wrong type \(bool\)"),
        ("created_at", 5, r"created_at has the wrong type \(int\)"),
        ("metric", "l2", "metric is 'l2'"),
        ("vector_dtype", "float64", "vector_dtype is 'float64', not one of float16, float32"),
        ("shards", {}, r"shards has the wrong type \(dict\)"),
        ("shards.1", 7, r"shards\[1\] is not a JSON object"),
        ("shards.1.rows", -4, r"shards\[1\]\.rows is -4, which cannot be"),
        ("shards.0.rows", 10**12, r"shards\[0\]\.rows is 10{12}, more than so many bytes hold"),
        ("shards.1.rows", 10**30, r"shards\[1\]\.rows is 10{30}, which cannot be"),
        ("shards.1.rows", 4.0, r"shards\[1\]\.rows has the wrong type \(float\)"),
        ("shards.0.sha256", "AB", r"shards\[0\]\.sha256 is 'AB'"),
        ("shards.0.file", "../../etc/passwd", r"shards\[0\]\.file is '../../etc/passwd'"),
        ("shards.0.file", "/vectors/part-00000.parquet", r"shards\[0\]\.file"),
        ("shards.0.file", "vectors/part-00001.parquet", r"shards\[0\]\.file is .* out of order"),
        ("shards.0.file", "vectors/part-00000.partial-00005.parquet", r"shards\[0\]\.file is .* out of order"),
        ("corpus.identity", [], r"corpus\.identity has the wrong type"),
        ("corpus.bad_rows.null", -1, r"corpus\.bad_rows\.null is -1"),
        ("corpus.complete", 1, r"corpus\.complete has the wrong type \(int\)"),
        ("encoder.spec", None, r"encoder\.spec has the wrong type \(NoneType\)"),
        ("encoder.spec.dim", "8", r"encoder\.spec\.dim has the wrong type \(str\)"),
        ("encoder.spec.dim", 9, r"encoder\.fingerprint does not fit"),
        ("encoder.spec.pooling", "sum", r"encoder\.spec\.pooling is 'sum'"),
        ("encoder.spec.normalize", ..., r"encoder\.spec\.normalize is missing"),
        ("encoder.spec.surprise", 1, r"unknown field surprise.*upgrade llmindex"),
        ("encoder.self_check", float("nan"), r"encoder\.self_check is nan"),
        ("encoder.self_check", 10**400, r"encoder\.self_check is 10{79}, which is no cosine"),
        ("index.file", "faiss/../../x.faiss", r"index\.file is"),
        ("index.recall_at_10", 2, r"index\.recall_at_10 is 2, not between 0 and 1"),
        ("index.recall_at_10", 10**400, r"index\.recall_at_10 is 10{79}, not between 0 and 1"),
        ("index.recall_target", float("nan"), r"index\.recall_target is nan, not between 0 and 1"),
        ("index.built_from", None, r"index\.built_from has the wrong type"),
        ("tombstones", ["tombstones/a.parquet"], "upgrade llmindex"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, where: str, value: object, message: str) -> None:
    with_shard(tmp_path)
    edit(tmp_path, where, value)
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.load(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    edit(tmp_path, "format_version", 7)
    with pytest.raises(ManifestError, match=r"format version 7 .* up to 1; upgrade llmindex"):
        Manifest.load(tmp_path)


def test_what_a_later_minor_version_adds_is_let_pass(tmp_path: Path) -> None:
    edit(tmp_path, "comment", "hello")
    assert Manifest.load(tmp_path) == make_manifest()


def test_unknown_vector_dtype() -> None:
    with pytest.raises(UsageError, match='"float64" is unknown; choose from float16, float32'):
        Manifest.new(make_encoder(8), CorpusRecord({}), "float64")  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    *("created_at", "metric", "vector_dtype", "shards", "tombstones", "index", "corpus", "encoder", "format_version"),
    *("shards.0", "shards.0.file", "shards.0.rows", "corpus.bad_rows", "corpus.identity", "corpus.tokens"),
    *("encoder.spec", "encoder.spec.layer", "encoder.dtype", "index.file", "index.factory", "index.bytes"),
]


@settings(max_examples=80)
@given(where=st.sampled_from(PLACES), value=json_values)
def test_anything_else_is_an_error_or_a_manifest(
    tmp_path_factory: pytest.TempPathFactory, where: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("index")
    edit(folder, where, value)
    message = ""
    try:
        assert Manifest.load(folder).count >= 0
    except LlmindexError as error:
        message = str(error)
    assert "\n" not in message
