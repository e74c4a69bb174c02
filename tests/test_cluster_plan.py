"""What a clustering will take, and what happens where that is too much."""

import logging
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmindex.cluster.plan as plan_module
import llmindex.cluster.spanning_tree as spanning_tree_module
from llmindex.cluster.clustering import ClusterOptions, assign, cluster, load, save
from llmindex.cluster.plan import available_memory, memory, plan
from llmindex.cluster.sampling import every
from llmindex.cluster.spanning_tree import spanning_tree
from llmindex.errors import UsageError
from tests.samples import make_store, make_vectors
from tests.topics import topics


@given(count=st.integers(1_000, 3_000_000), dim=st.sampled_from([64, 384, 1024]), allowed=st.floats(0.5, 8))
def test_what_is_planned_fits(count: int, dim: int, allowed: float) -> None:
    options = ClusterOptions(memory=int(allowed * 1e9)).resolve(count)
    if memory(count, dim, options, max(1, count // 1000)) > allowed * 1e9:
        return  # not even a small sample
    planned = plan(count, dim, options)
    assert planned.memory <= allowed * 1e9
    assert planned.documents == len(range(0, count, planned.step))
    assert planned.seconds > 0
    if planned.step > 1:
        assert memory(count, dim, options, planned.step - 1) > allowed * 1e9


def test_a_million_documents_fit_into_six_gigabytes() -> None:
    options = ClusterOptions(memory=6_000_000_000).resolve(1_000_000)
    planned = plan(1_000_000, 384, options)
    assert planned.step == 1
    assert planned.seconds < 300


@pytest.mark.parametrize("count", [10_000, 60_000])
def test_many_neighbours_take_their_time(count: int) -> None:
    options = (ClusterOptions(min_samples=each, memory=8_000_000_000).resolve(count) for each in (32, 500))
    few, many = (plan(count, 64, each).seconds for each in options)
    assert 2 * few < many < 8 * few  # 2.5 to 4.5 times were measured


def test_too_little_for_anything() -> None:
    with pytest.raises(UsageError, match=r"10,000 vectors of length 64 cannot be clustered in so little memory"):
        plan(10_000, 64, ClusterOptions(memory=1_000_000).resolve(10_000))


@pytest.mark.parametrize("exact_limit", [50_000, 0])
def test_many_neighbours_take_no_more_than_planned(monkeypatch: pytest.MonkeyPatch, exact_limit: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for module in (plan_module, spanning_tree_module):
        monkeypatch.setattr(module, "EXACT_LIMIT", exact_limit)
    vectors = make_vectors(2000, 16, clusters=6)
    planned = memory(2000, 16, ClusterOptions(min_samples=600).resolve(2000))
    tracemalloc.start()
    spanning_tree(vectors, 600)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    packages = 200_000_000  # and the interpreter, which are not traced
    assert packages + used < planned


def test_of_vectors_with_many_neighbours_fewer_fit() -> None:
    options = ClusterOptions(memory=1_500_000_000)
    steps = [plan(100_000, 64, replace(options, min_samples=samples).resolve(100_000)).step for samples in (5, 32, 500)]
    assert steps[0] == steps[1] == 1
    assert steps[2] > 1


def test_a_machine_says_how_much_it_has() -> None:
    available = available_memory()
    assert available is None or available > 0


@pytest.mark.parametrize(
    ("limit", "used", "stat", "prefix", "unlimited"),
    [
        ("memory.max", "memory.current", "memory.stat", "", "max"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_", str(1 << 62)),
    ],
)
def test_files_in_the_cache_are_no_memory_that_a_container_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, stat: str, prefix: str, unlimited: str
) -> None:
    """By either version of Linux's control groups; one that has groups within it counts theirs in totals."""
    monkeypatch.setattr(plan_module, "_GROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    totals = f"{prefix}active_file 1000000\n{prefix}inactive_file 3000000\n"
    said = {limit: "5000000\n", used: "4900000\n", stat: f"anon 900000\nactive_file 0\ninactive_file 0\n{totals}"}
    for name, value in said.items():
        (tmp_path / name).write_text(value)
    assert available_memory() == 4_100_000
    (tmp_path / limit).write_text(f"{unlimited}\n")
    assert (available_memory() or 0) > 5_000_000


@given(sizes=st.lists(st.integers(0, 9), max_size=9), step=st.integers(1, 12))
def test_every_takes_the_same_rows_however_they_come(sizes: list[int], step: int) -> None:
    rows = np.arange(sum(sizes), dtype=np.float32)[:, None]
    taken = list(every(step, np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []))
    assert np.concatenate([*taken, rows[:0]]).ravel().tolist() == list(range(0, sum(sizes), step))


@pytest.mark.parametrize("reduction", ["none", "pca"])
def test_where_all_do_not_fit_a_sample_is_clustered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reduction: str
) -> None:
    monkeypatch.setattr("llmindex.cluster.plan._LEAST", 100)
    store = make_store(tmp_path / "topics.llmindex", topics(1600), "float32")
    options = ClusterOptions(reduce=reduction, min_cluster_size=30)  # type: ignore[arg-type]
    resolved = options.resolve(1600)
    enough = memory(1600, store.dim, resolved, 2)
    with caplog.at_level(logging.WARNING):
        found = cluster(store, ClusterOptions(reduce=reduction, min_cluster_size=30, memory=enough))  # type: ignore[arg-type]
    assert found.placement.step == 2
    assert "every 2. is clustered, the others are assigned" in caplog.text
    assert found.options.min_cluster_size == 30
    assert len(found.labels) == len(found.probabilities) == 1600
    topic = np.arange(1600) * 10 // 1600
    inside = found.labels >= 0
    assert inside[1::2].mean() == pytest.approx(inside[::2].mean(), abs=0.15)
    whole = cluster(store, options)
    assert len(found.clusters) == len(whole.clusters) == 10
    same = {label: np.bincount(topic[found.labels == label]).argmax() for label in range(10)}
    assert np.mean([same[label] for label in found.labels[inside]] == topic[inside]) > 0.85
    assert sum(each.size for each in found.clusters) == inside.sum()
    save(found, store)
    new = topics(200, seed=5)
    placed, again = assign(found, store, new), assign(load(store), store, new)
    assert (placed.labels == again.labels).all()
    assert (placed.labels >= 0).mean() > 0.5
