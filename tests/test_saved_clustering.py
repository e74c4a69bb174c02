"""Clusterings on disk: what is saved is loaded, and what is stale, damaged or of two runs is refused."""

import errno
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmindex.cluster import saved
from llmindex.cluster.clustering import ClusterOptions, assign, cluster, load, save
from llmindex.cluster.saved import names
from llmindex.errors import CorruptStore, IndexLocked, StaleIndex, StorageError, UsageError
from llmindex.store.files import hash_file, lock
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.full_disk import files_up_to
from tests.samples import append, make_documents, make_store, make_vectors
from tests.topics import DIM, topics


@pytest.fixture
def own(tmp_path: Path) -> VectorStore:
    """A store that the test may change."""
    return make_store(tmp_path / "own.llmindex", topics(300), "float32")


def refuse(*_: object) -> None:
    """What a disk says that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFiles:
    def test_what_is_saved_is_loaded(self, own: VectorStore) -> None:
        found = cluster(own, ClusterOptions(name="v1.2", min_cluster_size=6))
        path = save(found, own)
        assert path == own.path / "clusters" / "v1.2.parquet"
        assert names(own) == ["v1.2"]
        loaded = load(own, "v1.2")
        assert (loaded.labels == found.labels).all()
        assert (loaded.probabilities == found.probabilities).all()
        for field in ("options", "clusters", "noise_share", "assigned_share", "built_from", "seconds"):
            assert getattr(loaded, field) == getattr(found, field)
        new = topics(50, seed=4)
        assert (assign(loaded, own, new).labels == assign(found, own, new).labels).all()

    def test_the_files_are_as_documented(self, own: VectorStore) -> None:
        found = cluster(own)
        table = pq.read_table(save(found, own))
        assert [(field.name, str(field.type)) for field in table.schema] == [
            ("id", "string"),
            ("row", "int64"),
            ("label", "int32"),
            ("probability", "float"),
        ]
        assert table["id"].to_pylist() == [f"d{row}" for row in range(300)]
        assert table["row"].to_pylist() == list(range(300))
        summary = json.loads((own.path / "clusters" / "default.json").read_text(encoding="utf-8"))
        assert summary["built_from"] == own.vectors_id
        assert summary["documents"] == 300
        assert summary["options"]["min_cluster_size"] == found.options.min_cluster_size
        assert [each["size"] for each in summary["clusters"]] == [each.size for each in found.clusters]
        assert set(summary["clusters"][0]) >= {"label", "size", "keywords", "central_rows", "central_ids"}
        assert not [path for path in (own.path / "clusters").iterdir() if path.name.startswith(".")]

    def test_another_word_in_the_description_is_damage(self, own: VectorStore) -> None:
        save(cluster(own), own)
        summary = own.path / "clusters" / "default.json"
        assert not verify(own.path).problems
        said = json.loads(summary.read_text(encoding="utf-8"))
        said["clusters"][0]["size"] += 1
        summary.write_text(json.dumps(said), encoding="utf-8")
        with pytest.raises(CorruptStore, match=r"default\.json is damaged or incomplete"):
            load(own)
        (problem,) = verify(own.path).problems
        assert problem.startswith(f"{summary}: has changed since it was written (its sha256 differs); run `llmindex ")
        del said["sha256"]["default.json"]  # as an earlier version wrote it
        summary.write_text(json.dumps(said), encoding="utf-8")
        assert not verify(own.path).problems
        assert load(own).clusters[0].size == said["clusters"][0]["size"]

    def test_saving_again_replaces(self, own: VectorStore) -> None:
        save(cluster(own), own)
        other = cluster(own, ClusterOptions(min_cluster_size=20))
        folder = own.path / "clusters"
        (folder / ".gone.tree.npz.tmp").write_text("of a run that was killed")
        save(other, own)
        assert (load(own).labels == other.labels).all()
        assert names(own) == ["default"]
        files = ["default.json", "default.parquet", "default.tree.npz", "lock"]
        assert sorted(path.name for path in folder.iterdir()) == files

    def test_what_another_user_left_is_passed_over(self, own: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a sticky folder nobody else may remove it, and under another name it is in nobody's way."""
        made = cluster(own)
        save(made, own)
        theirs = own.path / "clusters" / ".theirs.json.tmp"
        theirs.touch()
        unlink = Path.unlink

        def refuse(path: Path, **options: bool) -> None:
            if path == theirs:
                raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
            unlink(path, **options)

        monkeypatch.setattr(Path, "unlink", refuse)
        save(made, own)
        assert (load(own).labels == made.labels).all()

    def test_one_process_saves_at_a_time(self, own: VectorStore) -> None:
        before = cluster(own)
        save(before, own)
        after = cluster(own, ClusterOptions(min_cluster_size=20))
        with lock(own.path / "clusters"):
            with pytest.raises(IndexLocked, match="is being written by process"):
                save(after, own)
            assert load(own).options == before.options
            assert (load(own).labels == before.labels).all()
        save(after, own)
        assert load(own).options == after.options

    def test_a_disk_that_refuses_leaves_the_clustering_before(
        self, own: VectorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = cluster(own)
        save(before, own)
        folder = own.path / "clusters"
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert sizes["default.parquet"] < 20_000 < sizes["default.tree.npz"]
        with files_up_to(20_000), pytest.raises(StorageError, match=r"default\.tree\.npz: File too large"):
            save(cluster(own, ClusterOptions(min_cluster_size=20)), own)
        monkeypatch.setattr(saved, "hash_values", refuse)
        with pytest.raises(StorageError, match=r"cannot write .*clusters/default.*: No space left on device"):
            save(cluster(own, ClusterOptions(min_cluster_size=20)), own)
        monkeypatch.undo()
        assert load(own).options == before.options
        assert verify(own.path).problems == ()
        assert {path.name for path in folder.iterdir()} == sizes.keys()

    def test_nothing_is_written_outside_of_the_index(self, own: VectorStore, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (own.path / "clusters").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StorageError, match="clusters is a link; an index is changed only in its own folder"):
            save(cluster(own), own)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_other_vectors_make_it_stale(self, own: VectorStore) -> None:
        found = cluster(own)
        save(found, own)
        with VectorWriter.open(own.path) as writer:
            append(writer, make_documents(300, 310), make_vectors(10, DIM))
            writer.finish()
        grown = VectorStore.open(own.path)
        for use in (lambda: load(grown), lambda: save(found, grown), lambda: assign(found, grown, topics(5))):
            with pytest.raises(StaleIndex, match="llmindex cluster"):
                use()

    def test_a_name_that_is_not_there(self, own: VectorStore) -> None:
        with pytest.raises(UsageError, match=r'no clustering "other" \(it has: none yet\)'):
            load(own, "other")
        save(cluster(own), own)
        with pytest.raises(UsageError, match=r"it has: default"):
            load(own, "other")
        with pytest.raises(UsageError, match="cannot name a clustering"):
            load(own, "../manifest")

    @pytest.mark.parametrize("suffix", [".json", ".parquet", ".tree.npz"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other run"])
    def test_damaged_files(self, own: VectorStore, suffix: str, damage: str) -> None:
        save(cluster(own, ClusterOptions(name="other", min_cluster_size=20)), own)
        save(cluster(own), own)
        path = own.path / "clusters" / f"default{suffix}"
        if damage == "missing":
            path.unlink()
        elif damage == "other run":
            path.write_bytes(path.with_name(f"other{suffix}").read_bytes())
        else:
            path.write_bytes(path.read_bytes()[: 100 if damage == "cut" else 0])
        expected = UsageError if (suffix, damage) == (".json", "missing") else CorruptStore
        with pytest.raises(expected, match="llmindex cluster") as error:
            load(own)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
    def test_a_tree_that_was_never_one(self, own: VectorStore, content: bytes) -> None:
        """As one of a stranger's, who could write the hash to fit."""
        save(cluster(own), own)
        tree, summary = (own.path / "clusters" / f"default{suffix}" for suffix in (".tree.npz", ".json"))
        tree.write_bytes(content)
        said = json.loads(summary.read_text(encoding="utf-8"))
        said["sha256"] |= {tree.name: hash_file(tree)}
        summary.write_text(json.dumps(said), encoding="utf-8")
        with pytest.raises(CorruptStore, match=r"default\.json is damaged or incomplete; run `llmindex cluster` again"):
            load(own)

    @pytest.mark.parametrize("text", ["[]", "null", "{}", '{"built_from": 3}', '{"sha256": []}', "[" * 100_000])
    def test_json_that_is_no_clustering(self, own: VectorStore, text: str) -> None:
        save(cluster(own), own)
        (own.path / "clusters" / "default.json").write_text(text, encoding="utf-8")
        with pytest.raises((CorruptStore, StaleIndex), match="llmindex cluster"):
            load(own)
