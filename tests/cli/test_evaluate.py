import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import TEMPLATES, Llmindex

COUNT = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clustering file, a retrieval folder and a file of sentence pairs."""
    folder = tmp_path_factory.mktemp("evaluation")
    texts = [TEMPLATES[n % 3].format(n) for n in range(COUNT)]
    ids, queries = [f"d{n}" for n in range(COUNT)], [f"q{n}" for n in range(12)]
    (folder / "set").mkdir()
    files = {
        "topics": {"text": texts, "label": [("sport", "politics", "science")[n % 3] for n in range(COUNT)]},
        "more": {"text": texts[:45], "label": [n % 3 for n in range(45)]},
        "one": {"text": texts[:5], "label": ["x"] * 5},
        "pairs": {"sentence1": texts[:40], "sentence2": texts[5:45], "score": [float(n % 5) for n in range(40)]},
        "set/corpus": {"id": ids, "text": texts},
        "set/queries": {"id": queries, "text": [text[:25] for text in texts[:12]]},
        "set/qrels": {"query_id": queries, "doc_id": ids[:12], "score": [1] * 12},
    }
    for name, columns in files.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_clustering_table_and_json(llmindex: Llmindex, data: Path, tiny_model: Path) -> None:
    arguments = ("evaluate", "clustering", data / "topics.parquet", data / "more.parquet", "--model", tiny_model)
    ended = llmindex("-q", *arguments, "--seeds", "2")
    assert (ended.code, ended.err) == (0, "")
    head, *rows = ended.out.splitlines()
    assert head.split() == ["task", "V-measure", "AMI", "HDBSCAN", "AMI", "noise", "of"]
    assert [row.split()[0] for row in rows] == ["topics", "more", "mean"]
    assert rows[0].endswith(" 90")
    assert "±" in rows[0]
    printed = lines(llmindex("-q", *arguments, "--seeds", "2", "--json").out)
    assert len(printed) == 12
    first = printed[0]
    assert (first["task"], first["metric"], first["units"]) == ("topics", "v_measure", 90)
    assert f"{100 * float(str(first['score'])):.1f}" in rows[0]
    assert {"std", "encoder"} < set(first)
    assert not {"baseline", "interval"} & set(first)


def test_comparison_with_a_baseline(llmindex: Llmindex, data: Path, tiny_model: Path) -> None:
    arguments = ("evaluate", "sts", data / "pairs.parquet", "--model", tiny_model, "--baseline", tiny_model)
    ended = llmindex("-q", *arguments, "--pooling", "last")
    assert ended.out.splitlines()[0].split() == "task metric score baseline difference 95 % interval of".split()
    (score,) = lines(llmindex("-q", *arguments, "--pooling", "last", "--json").out)
    assert set(score) == {
        *("task", "metric", "score", "units", "baseline", "difference", "interval", "encoder", "baseline_encoder")
    }
    assert score["encoder"] != score["baseline_encoder"]
    interval = score["interval"]
    assert isinstance(interval, dict)
    assert interval["low"] < score["difference"] < interval["high"]


def test_retrieval_and_its_index(llmindex: Llmindex, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    ended = llmindex("-q", "evaluate", "retrieval", data / "set", "--model", tiny_model, "-k", "5", "--json")
    exact = {score["metric"]: score["score"] for score in lines(ended.out)}
    assert list(exact) == ["ndcg@10", "recall@5", "mrr"]
    index = tmp_path / "set.llmindex"
    assert llmindex("-q", "build", data / "set" / "corpus.parquet", "-o", index, "--model", tiny_model).code == 0
    scores = lines(llmindex("-q", "evaluate", "retrieval", data / "set", "-i", index, "-k", "5", "--json").out)
    assert [(score["stage"], score["metric"]) for score in scores] == [
        (stage, metric) for stage in ("model", "stored", "index") for metric in exact
    ]
    table = llmindex("evaluate", "retrieval", data / "set", "-i", index)
    assert [row.split()[:2] for row in table.out.splitlines()] == [
        *(["stage", "nDCG@10"], ["float32,", "exact"], ["as", "stored,"], ["the", "index"])
    ]
    assert "Queries: 12. Documents: 90." in table.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("clustering", "topics.parquet", "--label-column", "topic"), 1, 'has no column "topic"'),
        (("clustering", "one.parquet"), 1, "has one class only"),
        (("clustering", "missing.parquet"), 1, "no such file: missing.parquet"),
        (("clustering", "set"), 1, "set is a folder; name a Parquet file"),
        (("retrieval", "topics.parquet"), 1, "there is no folder topics.parquet; name one that holds corpus.parquet"),
        (("sts", "topics.parquet"), 1, 'has no column "sentence1"'),
        (("retrieval", "set", "-i", "nowhere.llmindex"), 1, "nowhere.llmindex"),
        (("retrieval", "set", "-i", "x.llmindex", "--pooling", "last"), 2, "leave out --pooling"),
        (("retrieval", "set", "-i", "x.llmindex", "--baseline", "default"), 2, "leave out --baseline"),
        (("retrieval", "set", "set", "-i", "x.llmindex"), 2, "on one FOLDER"),
        (("clustering",), 2, "Missing argument 'FILE...'"),
        (("nothing",), 2, "No such command 'nothing'"),
        (("mteb", "NoSuchTaskAtAll"), 2, 'MTEB has no task or benchmark "NoSuchTaskAtAll"'),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of mteb
def test_bad_input_is_answered_in_one_line(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    llmindex: Llmindex,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if arguments[0] == "mteb":
        pytest.importorskip("mteb")
    monkeypatch.chdir(data)
    ended = llmindex("evaluate", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_qrels_that_name_unknown_documents(llmindex: Llmindex, data: Path, tmp_path: Path) -> None:
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.parquet").write_bytes((data / "set" / f"{name}.parquet").read_bytes())
    qrels = {"query_id": ["q0", "q1"], "doc_id": ["d0", "d777"], "score": [1, 1]}
    pq.write_table(pa.table(qrels), tmp_path / "qrels.parquet")
    ended = llmindex("evaluate", "retrieval", tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f'Error: {tmp_path}/qrels.parquet names the document "d777", which corpus.parquet beside it does not have\n'
    )


@pytest.mark.filterwarnings("ignore")  # of mteb
def test_mteb_tasks_by_name(
    llmindex: Llmindex, data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the package's own, whose data set is put in place of the hub's."""
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    rows = pq.read_table(data / "pairs.parquet").to_pydict()

    def load_data(self: object, *arguments: object, **options: object) -> None:
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)})  # type: ignore[attr-defined]
        self.data_loaded = True  # type: ignore[attr-defined]

    monkeypatch.setattr(type(mteb.get_task("STSBenchmark")), "load_data", load_data)
    arguments = ("evaluate", "mteb", "STSBenchmark", "--model", tiny_model, "-o", tmp_path / "results")
    (score,) = lines(llmindex("-q", *arguments, "--json").out)
    assert (score["task"], score["type"], score["metric"]) == ("STSBenchmark", "STS", "cosine_spearman")
    table = llmindex("-q", *arguments).out.splitlines()
    assert table[0].split() == ["task", "type", "metric", "score"]
    assert f"{100 * float(str(score['score'])):.1f}" in table[1]
    assert list((tmp_path / "results").rglob("STSBenchmark.json"))

    def fail(self: object, *arguments: object, **options: object) -> None:
        raise OSError("no such data set")

    monkeypatch.setattr(type(mteb.get_task("STS12")), "load_data", fail)
    ended = llmindex("-q", *arguments, "STS12")
    assert (ended.code, ended.out.splitlines()) == (1, table)
    assert 'MTEB task "STS12" could not be run' in ended.err


def test_help_names_the_subcommands(llmindex: Llmindex) -> None:
    ended = llmindex("evaluate", "--help")
    assert ended.code == 0
    for name in ("clustering", "retrieval", "sts", "mteb"):
        assert f"\n  {name} " in ended.out
        told = llmindex("evaluate", name, "--help").out
        assert "Encoder options:" in told
        assert "--json" in told
