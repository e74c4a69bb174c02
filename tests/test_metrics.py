import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_mutual_info_score, ndcg_score, v_measure_score

from llmindex import metrics

labelled = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(labelled)
def test_v_measure_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, found = np.array(pairs, np.int64).T
    assert metrics.v_measure(truth, found) == pytest.approx(v_measure_score(truth, found), abs=1e-9)


@given(labelled)
def test_v_measure_does_not_mind_the_labels_names(pairs: list[tuple[int, int]]) -> None:
    truth, found = np.array(pairs, np.int64).T
    renamed = np.array([3, 0, 4, 1, 2])[found]
    assert metrics.v_measure(truth, renamed) == pytest.approx(metrics.v_measure(truth, found), abs=1e-9)


def test_ami_counts_noise_as_one_cluster() -> None:
    truth, found = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, -1, -1, -1, 1])
    assert metrics.ami(truth, found) == pytest.approx(adjusted_mutual_info_score(truth, np.array([0, 0, 2, 2, 2, 1])))
    assert metrics.noise_share(found) == 0.5
    assert metrics.noise_share(np.empty(0, np.int64)) == 0


def test_retrieval_scores_by_hand() -> None:
    gains = np.array([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    ideal = np.array([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    best = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(metrics.ndcg(gains, ideal, 10), [(2 / np.log2(3) + 1 / np.log2(5)) / best, 0, 1])
    np.testing.assert_allclose(metrics.ndcg(gains, ideal, 2), [2 / np.log2(3) / (2 + 1 / np.log2(3)), 0, 1])
    np.testing.assert_allclose(metrics.recall(gains, np.array([3, 1, 1]), 2), [1 / 3, 0, 1])
    np.testing.assert_allclose(metrics.recall(gains, np.array([3, 1, 1]), 4), [2 / 3, 0, 1])
    np.testing.assert_allclose(metrics.reciprocal_rank(gains), [1 / 2, 0, 1])
    assert metrics.reciprocal_rank(np.empty((2, 0))).tolist() == [0, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_ndcg_is_scikit_learns(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    grades = random.integers(0, 4, (5, 12)).astype(float)
    grades[:, 0] += 1
    similarity = random.permuted(np.tile(np.arange(12.0), (5, 1)), axis=1)
    gains = np.take_along_axis(grades, np.argsort(-similarity, axis=1), 1)
    ideal = -np.sort(-grades, axis=1)
    assert metrics.ndcg(gains, ideal, k).mean() == pytest.approx(ndcg_score(grades, similarity, k=k))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, float).T
    constant = len(set(first)) == 1 or len(set(second)) == 1
    expected = 0.0 if constant else spearmanr(first, second).statistic
    assert metrics.spearman(first, second) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = metrics.bootstrap(lambda random: float(values[random.integers(400, size=400)].mean()))
    error = values.std() / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    again = metrics.bootstrap(lambda random: float(values[random.integers(400, size=400)].mean()))
    assert again == interval


def test_bootstrap_covers_a_wider_share_with_more_confidence() -> None:
    values = np.random.default_rng(1).normal(size=100)

    def mean(random: np.random.Generator) -> float:
        return float(values[random.integers(100, size=100)].mean())

    narrow, wide = (metrics.bootstrap(mean, resamples=200, confidence=share) for share in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
