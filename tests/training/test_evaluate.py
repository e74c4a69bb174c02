from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score, ndcg_score, v_measure_score

import llmindex
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.errors import CorpusError
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.neighbors import Neighbors
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Vectors
from llmindex_training.evaluate import Embedder, Encoding, Role, Score
from llmindex_training.evaluate_clustering import evaluate_clustering, hdbscan, kmeans_v_measure
from llmindex_training.evaluate_retrieval import evaluate_index, evaluate_retrieval, nearest, retrieval_measures
from llmindex_training.evaluate_sts import evaluate_sts
from llmindex_training.evaluation_data import MEAN, LabelledTexts, RetrievalSet, SentencePairs, read_retrieval

DIM = 16
TEXTS = [f"{number % 3}-{number}" for number in range(300)]
TOPICS = LabelledTexts("topics", TEXTS, np.arange(300) % 3, 3)
OTHERS = LabelledTexts("others", TEXTS[:150], np.arange(150) % 3, 3)
DOCUMENTS = [f"{number % 40}-{number}" for number in range(120)]
QUESTIONS = RetrievalSet(
    "questions",
    [f"d{number}" for number in range(120)],
    DOCUMENTS,
    [f"{number}-q" for number in range(40)],
    [
        {f"d{number}": 2, f"d{number + 40}": 1, f"d{number + 80}": 1, "d39": 0} | {f"d{number}": 2}
        for number in range(40)
    ],
)
PAIRS = SentencePairs("pairs", TEXTS[:90], TEXTS[1:91], np.random.default_rng(0).random(90))


class Topical:
    """Vectors around a centre that the text's first number names, and who was asked for what."""

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.roles: list[Role] = []

    def encode(
        self, texts: Sequence[str], *, role: Role = "document", on_progress: ProgressCallback | None = None
    ) -> Vectors:
        self.roles.append(role)
        centres = np.random.default_rng(0).normal(size=(41, DIM))
        vectors = np.array(
            [
                centres[int(text.split("-")[0])]
                + self.noise * np.random.default_rng(sum(text.encode())).normal(size=DIM)
                for text in texts
            ]
        )
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        if on_progress is not None:
            on_progress(Progress("encode", len(texts), len(texts), tokens=3 * len(texts)))
        return unit


def by_metric(scores: Sequence[Score], task: str) -> dict[str, Score]:
    return {score.metric: score for score in scores if score.task == task}


def test_clustering_scores_are_those_of_scikit_learn() -> None:
    encoder = Topical(0.9)
    (scores,) = [by_metric(evaluate_clustering(encoder, [TOPICS], seeds=3), "topics")]
    vectors = encoder.encode(TEXTS)
    guesses = [
        MiniBatchKMeans(3, batch_size=512, n_init="auto", random_state=seed).fit_predict(vectors) for seed in range(3)
    ]
    v_measures = [v_measure_score(TOPICS.truth, guess) for guess in guesses]
    assert scores["v_measure"].score == pytest.approx(np.mean(v_measures))
    assert scores["v_measure"].std == pytest.approx(np.std(v_measures))
    assert scores["ami"].score == pytest.approx(
        np.mean([adjusted_mutual_info_score(TOPICS.truth, guess) for guess in guesses])
    )
    labels = hdbscan(vectors)
    assert scores["hdbscan_ami"].score == pytest.approx(adjusted_mutual_info_score(TOPICS.truth, labels))
    assert scores["hdbscan_noise"].score == (labels < 0).mean()
    assert {score.units for score in scores.values()} == {300}
    assert kmeans_v_measure(vectors, TOPICS, 3) == pytest.approx(scores["v_measure"].score)


def test_hdbscan_is_that_of_the_cluster_command(tmp_path: Path, tiny_model: Path) -> None:
    documents = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": [f"word {n % 4} " * 8 + str(n) for n in range(120)]}), documents)
    llmindex.build(
        [str(documents)], tmp_path / "d.llmindex", encoder=EncoderOptions(str(tiny_model)), vector_dtype="float32"
    )
    index = llmindex.open(tmp_path / "d.llmindex")
    np.testing.assert_array_equal(index.cluster().labels, hdbscan(index.store.vectors()))


def test_several_sets_have_a_mean() -> None:
    scores = evaluate_clustering(Topical(0.9), [TOPICS, OTHERS], seeds=2)
    one, two, mean = (by_metric(scores, task) for task in ("topics", "others", MEAN))
    for metric in mean:
        assert mean[metric].score == pytest.approx((one[metric].score + two[metric].score) / 2)
    assert (mean["ami"].units, mean["ami"].std) == (450, None)


def test_a_better_encoder_is_told_from_a_worse_one_and_from_itself() -> None:
    for noise, worse in ((0.4, 2.0), (0.4, 0.4)):
        encoder, baseline = Topical(noise), Topical(worse)
        clusters = evaluate_clustering(encoder, [TOPICS, OTHERS], baseline=baseline)
        hits = evaluate_retrieval(encoder, [QUESTIONS], baseline=baseline)
        compared = [score for score in (*clusters, *hits) if score.metric in ("v_measure", "ndcg@10")]
        assert [score.task for score in compared] == ["topics", "others", MEAN, "questions"]
        for score in compared:
            assert score.baseline is not None
            assert score.interval is not None
            assert score.difference is not None
            assert score.difference == pytest.approx(score.score - score.baseline)
            if noise < worse:
                assert 0 < score.interval.low < score.difference < score.interval.high
            else:
                assert score.interval.low <= 0 == score.difference <= score.interval.high


def test_paired_intervals_are_narrower_than_the_spread_of_either() -> None:
    (score, *_) = evaluate_retrieval(Topical(1.0), [QUESTIONS], baseline=Topical(1.02))
    assert score.interval is not None
    assert score.interval.high - score.interval.low < 0.1


def test_retrieval_scores_are_those_of_scikit_learn() -> None:
    encoder = Topical(0.8)
    scores = by_metric(evaluate_retrieval(encoder, [QUESTIONS], k=3), "questions")
    assert encoder.roles == ["query", "document"]
    similarity = encoder.encode(QUESTIONS.queries) @ encoder.encode(DOCUMENTS).T
    grades = np.array([[judged.get(f"d{n}", 0) for n in range(120)] for judged in QUESTIONS.grades])
    assert scores["ndcg@10"].score == pytest.approx(ndcg_score(grades, similarity, k=10))
    order = np.argsort(-similarity, axis=1)
    relevant = np.take_along_axis(grades, order, 1) > 0
    assert scores["recall@3"].score == pytest.approx((relevant[:, :3].sum(1) / relevant.sum(1)).mean())
    assert scores["mrr"].score == pytest.approx((1 / (1 + relevant.argmax(axis=1))).mean())


def test_a_hit_behind_the_first_hundred_has_no_rank_however_many_recall_counts() -> None:
    angles = np.linspace(0, 1, 150)
    documents = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    judged = RetrievalSet("one", [f"d{n}" for n in range(150)], ["text"] * 150, ["query"], [{"d149": 1}])
    _, recall, mrr = retrieval_measures(documents[:1], documents, judged, 200)
    assert (recall.metric, recall.score, mrr.score) == ("recall@200", 1, 0)


def test_equal_documents_stand_in_their_order() -> None:
    documents = np.tile(np.eye(2, dtype=np.float32), (5, 1))
    assert nearest(documents[:1], documents, 8).tolist() == [[0, 2, 4, 6, 8, 1, 3, 5]]
    assert nearest(documents[1:2], documents, 50).shape == (1, 10)
    # Of those that are equal at the cut, too, the first come.
    assert nearest(documents[:1], np.tile(documents, (100, 1)), 300).tolist() == [list(range(0, 600, 2))]


def test_sts_is_the_correlation_of_cosines() -> None:
    from scipy.stats import spearmanr

    encoder = Topical(0.5)
    (score,) = evaluate_sts(encoder, [PAIRS])
    first, second = encoder.encode(PAIRS.first), encoder.encode(PAIRS.second)
    assert score.score == pytest.approx(spearmanr((first * second).sum(axis=1), PAIRS.scores).statistic, abs=1e-6)
    assert (score.metric, score.units, encoder.roles[:2]) == ("spearman", 90, ["document", "document"])


def test_progress_counts_every_text_of_every_encoder_once() -> None:
    records: list[Progress] = []
    evaluate_clustering(Topical(1), [TOPICS, OTHERS], baseline=Topical(1), seeds=1, on_progress=records.append)
    assert [record.done for record in records] == sorted(record.done for record in records)
    assert {record.total for record in records} == {900}
    assert (records[-1].done, records[-1].tokens, records[-1].unit) == (900, 2700, "texts")


def test_encoders_need_not_report_progress() -> None:
    class Silent(Topical):
        def encode(
            self, texts: Sequence[str], *, role: Role = "document", on_progress: ProgressCallback | None = None
        ) -> Vectors:
            return super().encode(texts, role=role)

    records: list[Progress] = []
    Encoding(300, records.append)(Silent(1), TEXTS)
    assert [record.done for record in records] == [300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retrieval folder of 60 documents."""
    folder = tmp_path_factory.mktemp("retrieval")
    ids = [f"d{n}" for n in range(60)]
    texts = [f"article {n} tells of {'cats' if n % 2 else 'stars'} and {n * n}" for n in range(60)]
    queries = [f"q{n}" for n in range(20)]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "corpus.parquet")
    pq.write_table(pa.table({"id": queries, "text": [text[:20] for text in texts[:20]]}), folder / "queries.parquet")
    qrels = {"query_id": queries, "doc_id": ids[:20], "score": [1] * 20}
    pq.write_table(pa.table(qrels), folder / "qrels.parquet")
    return folder


def test_an_index_is_measured_stage_by_stage(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = read_retrieval(folder)
    llmindex.build(
        [str(folder / "corpus.parquet")],
        tmp_path / "i.llmindex",
        encoder=EncoderOptions(str(tiny_model)),
        factory="IVF8,SQ4",
    )
    index = llmindex.open(tmp_path / "i.llmindex")
    evaluation = evaluate_index(index, judged)
    assert (evaluation.queries, evaluation.documents, evaluation.absent) == (20, 60, 0)
    stages = {(score.stage, score.metric): score for score in evaluation.scores}
    assert list(dict.fromkeys(score.stage for score in evaluation.scores)) == ["model", "stored", "index"]
    encoder: Embedder = Encoder.load(str(tiny_model))
    for score in evaluate_retrieval(encoder, [judged]):
        assert stages["model", score.metric].score == pytest.approx(score.score, abs=1e-6)
        assert stages["model", score.metric].loss is None
        for before, after in (("model", "stored"), ("stored", "index")):
            lost = stages[before, score.metric].score - stages[after, score.metric].score
            assert stages[after, score.metric].loss == pytest.approx(lost)
    # What FAISS finds for as many hits as a score counts is what is scored: for more, it may look further.
    asked: list[int] = []
    search = VectorIndex.search

    def listened(self: VectorIndex, queries: Vectors, k: int) -> Neighbors:
        asked.append(k)
        return search(self, queries, k)

    monkeypatch.setattr(VectorIndex, "search", listened)
    evaluate_index(index, judged, k=5)
    assert sorted(asked) == [5, 10, 100]


def test_documents_that_an_index_lacks_are_not_found(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    judged = read_retrieval(folder)
    table = pq.read_table(folder / "corpus.parquet")
    pq.write_table(table.slice(10), tmp_path / "rest.parquet")
    llmindex.build(
        [str(tmp_path / "rest.parquet")], tmp_path / "rest.llmindex", encoder=EncoderOptions(str(tiny_model))
    )
    evaluation = evaluate_index(llmindex.open(tmp_path / "rest.llmindex"), judged)
    assert (evaluation.documents, evaluation.absent) == (50, 10)
    assert all(score.score <= 0.5 for score in evaluation.scores)
    pq.write_table(table.drop(["id"]), tmp_path / "other.parquet")
    llmindex.build(
        [str(tmp_path / "other.parquet")], tmp_path / "other.llmindex", encoder=EncoderOptions(str(tiny_model))
    )
    texts = [f"another matter {n}" for n in range(60)]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), tmp_path / "same.parquet")
    llmindex.build(
        [str(tmp_path / "same.parquet")], tmp_path / "same.llmindex", encoder=EncoderOptions(str(tiny_model))
    )
    with pytest.raises(CorpusError, match=r'holds another text under the id "d0" than the corpus.parquet of "retrieva'):
        evaluate_index(llmindex.open(tmp_path / "same.llmindex"), judged)
    with pytest.raises(CorpusError, match=r'holds none of the judged documents \(say, "d0"\)'):
        evaluate_index(llmindex.open(tmp_path / "other.llmindex"), judged)
