"""MTEB's own task classes, over Parquet files of this machine instead of the hub's data sets."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from llmindex.encode.encoder import Encoder
from llmindex.errors import CorpusError, MissingPackage, UsageError
from llmindex.progress import Progress
from llmindex.records import Vectors
from llmindex_training.evaluate import Role
from llmindex_training.evaluate_retrieval import evaluate_retrieval
from llmindex_training.evaluation_data import read_retrieval
from llmindex_training.mteb_model import MtebModel, Task, evaluate_mteb, find_tasks

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [f"{'A story of cats' if n % 2 else 'The price of oil'} in {n * 37} words" for n in range(60)]


@pytest.fixture
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.load(str(tiny_model), prompt="cluster", query_prompt="query", device="cpu", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files in the layouts that our own evaluations read."""
    ids, queries = [f"d{n}" for n in range(60)], [f"q{n}" for n in range(15)]
    files: dict[str, dict[str, Any]] = {
        "topics": {"text": TEXTS, "label": [str(n % 2) for n in range(60)]},
        "pairs": {"sentence1": TEXTS[:30], "sentence2": TEXTS[7:37], "score": [float(n % 6) for n in range(30)]},
        "corpus": {"id": ids, "title": [text[:7] for text in TEXTS], "text": TEXTS},
        "queries": {"id": queries, "text": [text[:20] for text in TEXTS[:15]]},
        "qrels": {"query_id": queries, "doc_id": ids[:15], "score": [1] * 15},
    }
    for name, columns in files.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    return tmp_path


def task_of(kind: str, base: str, main_score: str, load: Callable[[], object], **attributes: object) -> Task:
    """A task of one of MTEB's classes, with a way of its own to get the data.

    Made without a class statement: the package is optional, also to those who check types.
    """
    name = f"Local{kind}"
    metadata = importlib.import_module("mteb.abstasks.task_metadata").TaskMetadata(
        name=name,
        type=kind,
        main_score=main_score,
        description="A task over files of this machine.",
        reference="https://example.org",
        dataset={"path": "local", "revision": "1"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2020-01-01", "2020-01-01"),
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        dialect=[],
        modalities=["text"],
        sample_creation="found",
        bibtex_citation="",
    )

    def load_data(self: Task, num_proc: int | None = None, **options: object) -> None:
        self.dataset = load()
        self.data_loaded = True

    task_class = getattr(importlib.import_module(f"mteb.abstasks.{kind.lower()}"), base)
    return type(name, (task_class,), {"metadata": metadata, "load_data": load_data, **attributes})()


def dataset(columns: dict[str, list[object]]) -> Task:
    return importlib.import_module("datasets").Dataset.from_dict(columns)


def clustering_task(data: Path) -> Task:
    def load() -> object:
        columns = pq.read_table(data / "topics.parquet").to_pydict()
        return {"test": dataset({"sentences": columns["text"], "labels": columns["label"]})}

    sizes = {"max_document_to_embed": 60, "max_fraction_of_documents_to_embed": None}
    return task_of("Clustering", "AbsTaskClustering", "v_measure", load, **sizes)


def sts_task(data: Path) -> Task:
    def load() -> object:
        return {"test": dataset(pq.read_table(data / "pairs.parquet").to_pydict())}

    return task_of("STS", "AbsTaskSTS", "cosine_spearman", load, min_score=0, max_score=5)


def retrieval_task(data: Path) -> Task:
    def load() -> object:
        judged: dict[str, dict[str, int]] = {}
        for row in pq.read_table(data / "qrels.parquet").to_pylist():
            judged.setdefault(row["query_id"], {})[row["doc_id"]] = row["score"]
        corpus, queries = (
            dataset(pq.read_table(data / f"{name}.parquet").to_pydict()) for name in ("corpus", "queries")
        )
        split = {"corpus": corpus, "queries": queries, "relevant_docs": judged, "top_ranked": None}
        return {"default": {"test": split}}

    return task_of("Retrieval", "AbsTaskRetrieval", "ndcg_at_10", load)


def test_sts_is_that_of_our_own_cosines(encoder: Encoder, data: Path) -> None:
    (score,) = evaluate_mteb(encoder, [sts_task(data)])
    pairs = pq.read_table(data / "pairs.parquet").to_pydict()
    cosines = (encoder.encode(pairs["sentence1"]) * encoder.encode(pairs["sentence2"])).sum(axis=1)
    assert score.score == pytest.approx(spearmanr(cosines, pairs["score"]).statistic, abs=1e-5)
    assert (score.task, score.type, score.metric) == ("LocalSTS", "STS", "cosine_spearman")


def test_retrieval_is_that_of_our_own_with_both_prompts(
    encoder: Encoder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {"document": [], "query": []}
    encode = Encoder.encode

    def noted(self: Encoder, texts: list[str], *, role: Role = "document", on_progress: object = None) -> Vectors:
        asked[role] += texts
        return encode(self, texts, role=role)

    monkeypatch.setattr(Encoder, "encode", noted)
    (score,) = evaluate_mteb(encoder, [retrieval_task(data)])
    assert set(asked["query"]) == {text[:20] for text in TEXTS[:15]}
    assert sorted(asked["document"]) == sorted(f"{text[:7]} {text}" for text in TEXTS)
    ours = evaluate_retrieval(encoder, [read_retrieval(data)])
    # MTEB joins a title and its text by a space, we by a line break.
    assert score.score == pytest.approx(ours[0].score, abs=0.1)
    assert score.metric == "ndcg_at_10"


def test_any_list_of_tasks_with_progress(encoder: Encoder, data: Path) -> None:
    records: list[Progress] = []
    scores = list(evaluate_mteb(encoder, [clustering_task(data), sts_task(data)], on_progress=records.append))
    assert [score.metric for score in scores] == ["v_measure", "cosine_spearman"]
    assert all(np.isfinite(score.score) for score in scores)
    assert [(record.done, record.total) for record in records] == [(0, 2), (1, 2), (1, 2), (2, 2)]


def test_results_are_kept_and_belong_to_one_encoder(encoder: Encoder, tiny_model: Path, data: Path) -> None:
    folder = data / "results"
    (score,) = evaluate_mteb(encoder, [sts_task(data)], results=folder)
    (file,) = folder.rglob("LocalSTS.json")
    assert encoder.spec.fingerprint() in str(file)
    assert json.loads(file.read_text())["scores"]["test"][0]["main_score"] == pytest.approx(score.score, abs=1e-4)
    (data / "pairs.parquet").unlink()
    assert next(evaluate_mteb(encoder, [sts_task(data)], results=folder)).score == pytest.approx(score.score, abs=1e-4)
    other = Encoder.load(str(tiny_model), prompt="eol")
    with pytest.raises(CorpusError, match='MTEB task "LocalSTS" could not be run: FileNotFoundError'):
        next(evaluate_mteb(other, [sts_task(data)], results=folder))


def test_nothing_is_written_to_the_terminal(encoder: Encoder, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(evaluate_mteb(encoder, [retrieval_task(data)]))
    assert capfd.readouterr() == ("", "")


def test_the_model_answers_mtebs_protocol(encoder: Encoder) -> None:
    model = MtebModel(encoder)
    assert isinstance(model, importlib.import_module("mteb.models").EncoderProtocol)
    first, second = model.encode([{"text": TEXTS[:2]}, {"text": TEXTS[2:3]}]), encoder.encode(TEXTS[3:6])
    np.testing.assert_array_equal(first, encoder.encode(TEXTS[:3]))
    pairwise = model.similarity_pairwise(first, second)
    np.testing.assert_allclose(np.diag(model.similarity(first, second)), pairwise, rtol=1e-6)
    query = importlib.import_module("mteb.types").PromptType.query
    asked = model.encode([{"text": TEXTS[:2]}], prompt_type=query)
    np.testing.assert_array_equal(asked, encoder.encode(TEXTS[:2], role="query"))


def test_tasks_and_benchmarks_are_found_by_name() -> None:
    tasks = find_tasks(["STSBenchmark", "MTEB(eng, v2)", "STSBenchmark"])
    names = [task.metadata.name for task in tasks]
    assert len(names) == len(set(names)) > 30
    assert "STSBenchmark" in names


@pytest.mark.parametrize(("name", "said"), [("STSBenchmrk", "did you mean STSBenchmark"), ("qqqq", "available-tasks")])
def test_unknown_tasks_are_answered_in_one_line(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=f'no task or benchmark "{name}".*{said}'):
        find_tasks([name])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingPackage, match=r"pip install mteb"):
        find_tasks(["STSBenchmark"])
