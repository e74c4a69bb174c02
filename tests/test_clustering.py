"""Clustering an index: options, noise, summaries, new documents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.cluster.assign import Space
from llmindex.cluster.central import central_rows
from llmindex.cluster.clustering import Clustering, ClusterOptions, assign, cluster, load, save
from llmindex.cluster.hdbscan_tree import density_tree
from llmindex.cluster.neighbors import NeighborGraph, neighbor_graph
from llmindex.cluster.noise import default_limit, spread, strength, vote
from llmindex.cluster.options import Reduce
from llmindex.cluster.spanning_tree import spanning_tree
from llmindex.errors import UsageError
from llmindex.progress import Progress
from llmindex.store.manifest import VectorDtype
from llmindex.store.reader import VectorStore
from tests.samples import DTYPES, make_store, make_vectors
from tests.topics import DIM, topics


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return make_store(tmp_path_factory.mktemp("clustering") / "topics.llmindex", topics(800), "float32")


@pytest.fixture(scope="module")
def clustering(store: VectorStore) -> Clustering:
    return cluster(store)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"min_cluster_size": 1}, "min_cluster_size must be a whole number of 2 or more, not 1"),
            ({"min_samples": 0}, "min_samples must be a whole number of 1 or more, not 0"),
            ({"min_samples": 2.5}, "min_samples must be a whole number"),
            ({"min_cluster_size": True}, "min_cluster_size must be a whole number"),
            ({"selection": "best"}, 'selection "best" is unknown; choose from eom, leaf'),
            ({"reduce": "tsne"}, 'reduce "tsne" is unknown; choose from none, pca, umap'),
            ({"assign_distance": -0.1}, "assign_distance must be a finite number of 0 or more, not -0.1"),
            ({"assign_distance": float("nan")}, "assign_distance must be a finite number"),
            ({"name": "../evil"}, 'name "../evil" cannot name a clustering'),
            ({"name": ""}, "cannot name a clustering"),
            ({"name": ".hidden"}, "cannot name a clustering"),
            ({"name": "a/b"}, "cannot name a clustering"),
            ({"name": "x" * 65}, "cannot name a clustering"),
        ],
    )
    def test_a_bad_value_is_named(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError) as error:
            ClusterOptions(**options)
        assert words in str(error.value)
        assert "\n" not in str(error.value)

    def test_given_values_stand_and_others_are_filled_in(self) -> None:
        resolved = ClusterOptions(min_cluster_size=7, name="v1.2").resolve(100)
        assert (resolved.min_cluster_size, resolved.name) == (7, "v1.2")
        assert resolved.min_samples is not None
        assert resolved.resolve(9) == resolved

    def test_numbers_of_numpy_are_taken_and_saved(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "x.llmindex", make_vectors(40, 8, clusters=2))
        numbers: dict[str, Any] = {
            "min_cluster_size": np.int64(5),
            "min_samples": np.int8(2),
            "memory": np.uint64(2**32),
        }
        options = ClusterOptions(**numbers, assign_distance=np.float32(0.5))  # type: ignore[arg-type]
        save(cluster(store, options), store)
        assert load(store).options == ClusterOptions(5, 2, memory=2**32, assign_distance=0.5)

    def test_the_default_size_grows_with_the_corpus(self) -> None:
        sizes = [ClusterOptions().resolve(count) for count in (0, 20, 1_000, 10_000, 100_000)]
        assert [options.min_cluster_size for options in sizes] == [3, 3, 8, 25, 79]
        assert [options.min_samples for options in sizes] == [2, 2, 5, 5, 5]
        assert ClusterOptions(min_cluster_size=2).resolve(100).min_samples == 1


class TestNoise:
    GRAPH = NeighborGraph(
        # A chain 0 - 1 - 2 - 3, each 1 from the next; 4 is far from all.
        np.array([[1, 2], [0, 2], [1, 3], [2, 1], [3, 2]]),
        np.array([[1, 4], [1, 1], [1, 1], [1, 4], [100, 121]], np.float32),
    )

    def test_labels_spread_step_by_step_up_to_the_limit(self) -> None:
        labels = np.array([7, -1, -1, -1, -1], np.int32)
        assert spread(labels, self.GRAPH, 1).tolist() == [7, 7, 7, 7, -1]
        assert spread(labels, self.GRAPH, 0.9).tolist() == labels.tolist()
        assert spread(labels, self.GRAPH, 20).tolist() == [7] * 5

    def test_the_vote_goes_to_the_nearer_and_the_more(self) -> None:
        labels = np.array([0, 1, 1, -1], np.int32)
        rows = np.array([[0, 1, 2], [0, 1, 2], [3, -1, 0], [3, -1, -1]])
        squared = np.array([[1, 9, 9], [1, 1.5, 1.5], [1, np.inf, 2], [1, np.inf, np.inf]], np.float32)
        assert vote(labels, rows, squared, 5).tolist() == [0, 1, 0, -1]

    def test_nine_in_ten_have_a_neighbour_within_the_limit(self) -> None:
        vectors = make_vectors(200, 6)
        graph = neighbor_graph(vectors, 3, exact=True)
        assert (graph.squared[:, 0] <= default_limit(graph) ** 2).sum() in (179, 180, 181)
        copies = spanning_tree(vectors[np.arange(800) % 200], 2).graph
        assert default_limit(copies) == pytest.approx(default_limit(graph))
        assert default_limit(spanning_tree(vectors[[0, 0, 0]], 2).graph) == 0

    def test_nothing_to_follow(self) -> None:
        labels = np.full(5, -1, np.int32)
        assert spread(labels, self.GRAPH, 10).tolist() == labels.tolist()

    def test_strength_falls_with_distance(self) -> None:
        squared = np.array([0, 0.25, 1, 100, 1], np.float32)
        densest = np.array([2, 2, 2, 2, np.inf])
        assert strength(squared, densest).tolist() == pytest.approx([1, 1, 0.5, 0.05, 0])

    @settings(max_examples=30)
    @given(seed=st.integers(0, 999), limit=st.floats(0, 3))
    def test_only_noise_changes_and_more_of_it_the_higher_the_limit(self, seed: int, limit: float) -> None:
        random = np.random.default_rng(seed)
        graph = neighbor_graph(random.normal(size=(60, 3)).astype(np.float32), 12, exact=True)
        labels = random.integers(-1, 3, 60).astype(np.int32)
        labels[random.random(60) < 0.7] = -1
        spreaded = spread(labels, graph, limit)
        assert (spreaded[labels >= 0] == labels[labels >= 0]).all()
        further = spread(labels, graph, limit + 0.5)
        assert (further[spreaded >= 0] >= 0).all()


class TestCluster:
    def test_topics_are_found(self, clustering: Clustering) -> None:
        truth = np.arange(800) * 10 // 800
        assert len(clustering.clusters) == 10
        inside = clustering.labels >= 0
        pairs = set(zip(truth[inside].tolist(), clustering.labels[inside].tolist(), strict=True))
        assert inside.mean() > 0.85
        assert len(pairs) <= 10 + 800 * 0.1
        assert (clustering.probabilities[~inside] == 0).all()
        assert (clustering.probabilities[inside] > 0).all()
        assert clustering.noise_share == pytest.approx(1 - inside.mean())

    def test_clusters_are_numbered_by_size_and_described(self, clustering: Clustering) -> None:
        sizes = np.bincount(clustering.labels[clustering.labels >= 0])
        assert [summary.size for summary in clustering.clusters] == sizes.tolist() == sorted(sizes, reverse=True)
        assert [summary.label for summary in clustering.clusters] == list(range(10))
        for summary in clustering.clusters:
            assert len(summary.central_rows) == 3
            assert (clustering.labels[list(summary.central_rows)] == summary.label).all()
            assert summary.central_ids == tuple(f"d{row}" for row in summary.central_rows)
            assert 0 < summary.persistence <= 1
            assert isinstance(summary.keywords, tuple)

    def test_the_same_again(self, store: VectorStore, clustering: Clustering) -> None:
        again = cluster(store)
        assert (again.labels == clustering.labels).all()
        assert (again.probabilities == clustering.probabilities).all()
        assert again.clusters == clustering.clusters

    def test_without_reduction_and_assignment_it_is_hdbscan(self, store: VectorStore) -> None:
        options = ClusterOptions(min_cluster_size=12, min_samples=4, reduce="none", assign_noise=False)
        ours = cluster(store, options)
        _, labels, probabilities = density_tree(spanning_tree(store.vectors(), 4), 12, "eom")
        assert ours.assigned_share == 0
        pairs = set(zip(ours.labels.tolist(), labels.tolist(), strict=True))
        assert len(pairs) == len(set(labels.tolist()))
        assert (ours.probabilities == probabilities).all()

    def test_assignment_takes_noise_alone(self, store: VectorStore) -> None:
        without = cluster(store, ClusterOptions(assign_noise=False))
        limits = [0.0, 0.5, 2.0]
        shares = [cluster(store, ClusterOptions(assign_distance=limit)).noise_share for limit in limits]
        assert shares[0] == without.noise_share
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] == 0
        everything = cluster(store, ClusterOptions(assign_distance=2.0))
        assert everything.assigned_share == pytest.approx(without.noise_share)

    @pytest.mark.parametrize("count", [0, 1, 2, 4])
    def test_too_few_documents_are_noise(self, tmp_path: Path, count: int) -> None:
        few = make_store(tmp_path / "few.llmindex", make_vectors(count, 8))
        found = cluster(few)
        assert found.labels.tolist() == [-1] * count
        assert found.clusters == ()
        assert found.noise_share == (1 if count else 0)
        save(found, few)
        assert load(few).labels.tolist() == [-1] * count
        assert assign(found, few, make_vectors(3, 8, seed=1)).labels.tolist() == [-1] * 3

    @pytest.mark.parametrize("selection", ["eom", "leaf"])
    @pytest.mark.parametrize("reduction", ["none", "pca"])
    def test_copies_of_one_document_are_one_cluster(self, tmp_path: Path, selection: Any, reduction: Any) -> None:  # noqa: ANN401
        same = make_store(tmp_path / "same.llmindex", make_vectors(1, 8).repeat(60, axis=0))
        found = cluster(same, ClusterOptions(selection=selection, reduce=reduction))
        assert found.labels.tolist() == [0] * 60
        assert found.clusters[0].central_rows == (0, 1, 2)

    @pytest.mark.parametrize("selection", ["eom", "leaf"])
    @pytest.mark.parametrize("reduction", ["none", "pca"])
    def test_copies_stay_together(self, tmp_path: Path, selection: Any, reduction: Any) -> None:  # noqa: ANN401
        copies = make_store(tmp_path / "copies.llmindex", make_vectors(20, 16)[np.arange(400) % 20])
        found = cluster(copies, ClusterOptions(selection=selection, reduce=reduction))
        assert len(found.clusters) == 20
        assert (found.labels == found.labels[np.arange(400) % 20]).all()
        assert found.noise_share == 0

    def test_progress_names_the_stages(self, store: VectorStore) -> None:
        seen: list[Progress] = []
        cluster(store, on_progress=seen.append)
        stages = ["reduce", "neighbors", "spanning tree", "tree", "keywords"]
        assert list(dict.fromkeys(report.stage for report in seen)) == stages
        last = {report.stage: report for report in seen}
        assert all(report.done == report.total for report in last.values())

    @pytest.mark.slow
    def test_umap(self, store: VectorStore) -> None:
        found = cluster(store, ClusterOptions(reduce="umap", name="umap"))
        assert len(found.clusters) >= 8
        assert (cluster(store, ClusterOptions(reduce="umap")).labels == found.labels).all()
        save(found, store)
        placed = assign(load(store, "umap"), store, topics(200, seed=5))
        assert (placed.labels >= 0).mean() > 0.6


class TestCentral:
    def test_the_highest_inner_products_with_the_mean(self) -> None:
        vectors = make_vectors(200, 12)
        labels = np.random.default_rng(0).integers(-1, 4, 200).astype(np.int32)
        rows = central_rows(lambda: [vectors[:90], vectors[90:]], labels, np.arange(200))
        for label in range(4):
            members = np.flatnonzero(labels == label)
            scores = vectors[members] @ vectors[members].mean(axis=0)
            assert rows[label] == tuple(members[np.argsort(-scores)[:3]].tolist())

    def test_copies_count_once_unless_nothing_else_is_there(self) -> None:
        vectors = make_vectors(1, 8).repeat(6, axis=0)
        vectors[4:] = make_vectors(2, 8, seed=1) * 0.1 + vectors[4:]
        first = np.array([0, 0, 0, 0, 4, 5])
        labels = np.zeros(6, np.int32)
        assert set(central_rows(lambda: [vectors], labels, first)[0]) == {0, 4, 5}
        labels[4:] = -1
        assert central_rows(lambda: [vectors], labels, first) == [(0, 1, 2)]

    def test_no_clusters(self) -> None:
        assert central_rows(lambda: [make_vectors(5, 4)], np.full(5, -1, np.int32), np.arange(5)) == []


class TestAssign:
    @pytest.mark.parametrize("reduction", ["none", "pca"])
    @pytest.mark.parametrize("assign_noise", [False, True])
    def test_new_documents_find_their_topic(self, store: VectorStore, reduction: Any, assign_noise: bool) -> None:  # noqa: ANN401
        found = cluster(store, ClusterOptions(reduce=reduction, assign_noise=assign_noise, min_cluster_size=10))
        new = topics(300, seed=7)
        placed = assign(found, store, new)
        topic_of = [np.bincount(found.labels[part][found.labels[part] >= 0]).argmax() for part in parts(800)]
        expected = np.repeat(topic_of, 30)
        inside = placed.labels >= 0
        assert inside.mean() > (0.8 if assign_noise else 0.3)
        assert (placed.labels == expected)[inside].mean() > 0.9  # one in ten belongs nowhere
        assert (placed.probabilities[~inside] == 0).all()
        assert (placed.probabilities[inside] > 0).all()

    def test_stored_documents_find_their_own_cluster(self, store: VectorStore, clustering: Clustering) -> None:
        placed = assign(clustering, store, store.vectors())
        assert (placed.labels == clustering.labels).mean() > 0.98

    @pytest.mark.parametrize("times", [np.full(300, 8), np.where(np.arange(300) % 30, 1, 40)])
    def test_copies_are_no_neighbours_of_their_own(self, tmp_path: Path, times: NDArray[np.int64]) -> None:
        """Whether each document has copies or one in thirty has many: stored ones go where they are."""
        copies = make_store(tmp_path / "copies.llmindex", topics(300).repeat(times, axis=0), "float32")
        found = cluster(copies)
        assert found.placement.coordinates is not None
        places = Space(found.placement, copies).project(copies.vectors())
        assert np.abs(places - found.placement.coordinates).max() < 1e-5
        assert (assign(found, copies, copies.vectors()).labels == found.labels).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("reduction", ["none", "pca"])
    @pytest.mark.parametrize("assign_noise", [False, True])
    def test_a_copy_of_the_only_document(
        self, tmp_path: Path, dtype: VectorDtype, reduction: Reduce, assign_noise: bool
    ) -> None:
        vectors = make_vectors(2, 24)
        same = make_store(tmp_path / "same.llmindex", vectors[:1].repeat(60, axis=0), dtype)
        found = cluster(same, ClusterOptions(reduce=reduction, assign_noise=assign_noise))
        save(found, same)
        for known in (found, load(same)):
            placed = assign(known, same, np.concatenate([vectors, same.vectors()[:1]]))
            assert placed.labels.tolist() == [0, -1, 0]
            assert placed.probabilities.tolist() == [1, 0, 1] == [found.probabilities[0], 0, found.probabilities[0]]

    def test_a_block_at_a_time_is_the_same(
        self, store: VectorStore, clustering: Clustering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = topics(100, seed=8)
        whole = assign(clustering, store, new)
        blocks = store.iter_vectors
        monkeypatch.setattr(VectorStore, "iter_vectors", lambda _self: blocks(block_rows=70))
        pieces = assign(clustering, store, new)
        assert (pieces.labels == whole.labels).all()
        assert np.allclose(pieces.probabilities, whole.probabilities, atol=1e-5)

    def test_nothing_new(self, store: VectorStore, clustering: Clustering) -> None:
        placed = assign(clustering, store, np.empty((0, DIM), np.float32))
        assert (len(placed.labels), len(placed.probabilities)) == (0, 0)

    @pytest.mark.parametrize("shape", [(DIM,), (3, DIM + 1)])
    def test_vectors_of_another_shape(self, store: VectorStore, clustering: Clustering, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match=r"vectors must be \(m, 24\)"):
            assign(clustering, store, np.zeros(shape, np.float32))


def parts(count: int) -> list[slice]:
    """The rows of each topic."""
    return [slice(count * each // 10, count * (each + 1) // 10) for each in range(10)]


def test_a_notebook_shows_what_is_read_and_no_arrays(clustering: Clustering) -> None:
    shown = repr(clustering)
    assert "ClusterSummary(label=0, " in shown
    assert "array" not in shown
