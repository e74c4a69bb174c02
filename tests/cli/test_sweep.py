import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.encode.encoder import Encoder
from tests.test_adapter import make_adapter

from .conftest import TEMPLATES, Llmindex


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clustering file and a file of sentence pairs."""
    folder = tmp_path_factory.mktemp("sweep")
    texts = [TEMPLATES[n % 3].format(n) for n in range(60)]
    pq.write_table(pa.table({"text": texts, "label": [n % 3 for n in range(60)]}), folder / "topics.parquet")
    pairs = {"sentence1": texts[:30], "sentence2": texts[5:35], "score": [float(n % 5) for n in range(30)]}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    return folder


def test_table_best_first_and_the_winner(llmindex: Llmindex, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "the encoder.json"
    arguments = ("sweep", data / "topics.parquet", data / "pairs.parquet", "--model", tiny_model, "--layers", "-1,1")
    ended = llmindex(*arguments, "--prompts", "none,eol", "--poolings", "last,mean", "-o", out)
    assert ended.code == 0
    head, *rows = ended.out.splitlines()
    assert head.split() == ["prompt", "pooling", "layer", "topics", "pairs", "mean"]
    assert len(rows) == 8 + 1
    means = [float(row.split()[-1]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert "the model's own settings: cluster, weighted_mean, layer -1" in ended.err
    assert ended.err.endswith(f"Wrote the best to {out}; use it with --model '{out}'\n")
    winner = Encoder.load(str(out)).spec
    assert rows[0].split()[1:3] == [winner.pooling, str(winner.layer)]
    # Every command takes it.
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert llmindex("encode", texts, "-o", tmp_path / "v.npy", "--model", out).code == 0


def test_json_and_a_template_with_a_comma(llmindex: Llmindex, data: Path, tiny_model: Path) -> None:
    template = 'In a word, "{text}" is'
    ended = llmindex(
        *("-q", "sweep", data / "pairs.parquet", "--model", tiny_model, "--json"),
        *("--prompts", "none, eol", "--prompts", template, "--poolings", "mean"),
    )
    assert (ended.code, ended.err) == (0, "")
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert {each["prompt"] for each in found if not each["unchanged"]} == {"none", "eol", template}
    assert [each["prompt"] for each in found if each["unchanged"]] == ["cluster"]
    keys = {"prompt", "pooling", "layer", "whitened", "unchanged", "score", "scores", "encoder"}
    assert set(found[0]) == keys
    assert list(found[0]["scores"]) == ["pairs"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("missing.parquet",), 1, "no such file: missing.parquet"),
        (("topics.parquet", "--poolings", "men"), 2, 'unknown pooling "men"'),
        (("topics.parquet", "--prompts", "elo"), 2, 'did you mean "eol"'),
        (("topics.parquet", "--layers", "1,x"), 2, "'1,x' is not a list of whole numbers"),
        (("topics.parquet", "--layers", ","), 2, "--layers names none"),
        (("topics.parquet", "--pooling", "last"), 2, "--poolings"),
        (("topics.parquet", "--query-prompt", "none"), 2, "--query-prompts"),
        (("topics.parquet", "-o", "encoder.toml"), 2, "does not end in .json"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    llmindex: Llmindex,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(data)
    ended = llmindex("sweep", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_failed_sweep_leaves_the_old_file(llmindex: Llmindex, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.json"
    old = json.dumps(Encoder.load(str(tiny_model)).spec.to_json())
    out.write_text(old)
    ended = llmindex("sweep", data / "pairs.parquet", "--model", tiny_model, "--layers", "9", "-o", out)
    assert ended.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.json"]
    assert out.read_text() == old
    assert llmindex("sweep", data / "pairs.parquet", "--model", tiny_model, "-o", out).code == 0
    assert out.read_text() != old


def test_a_file_of_another_making_is_not_replaced(
    llmindex: Llmindex, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    for name, content in (("package.json", '{"name": "mine"}'), ("b.json", "\0"), ("c.json", ""), ("d.json", "[1]")):
        out = tmp_path / name
        out.write_text(content)
        ended = llmindex("sweep", data / "pairs.parquet", "--model", tiny_model, "-o", out)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"Error: {out} is there and is no encoder.json; write to another file with -o\n"
        assert out.read_text() == content
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    out = adapter / "encoder.json"
    out.write_text(json.dumps(Encoder.load(str(adapter)).spec.to_json()))
    before = out.read_bytes()
    ended = llmindex("sweep", data / "pairs.parquet", "--model", tiny_model, "-o", out)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "says how the adapter beside it was trained" in ended.err
    assert out.read_bytes() == before


def test_a_place_that_takes_no_file_is_refused_at_once(llmindex: Llmindex, data: Path, tmp_path: Path) -> None:
    out = tmp_path / f"{'e' * 300}.json"
    ended = llmindex("sweep", data / "pairs.parquet", "--model", "never looked for", "-o", out)
    assert (ended.code, ended.out, ended.err) == (1, "", f"Error: cannot write {out}: File name too long\n")
    assert list(tmp_path.iterdir()) == []
