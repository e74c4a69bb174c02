import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from .conftest import TEMPLATES, Llmindex

GOAL = TEMPLATES[0].format(30)


def test_table(llmindex: Llmindex, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    ended = llmindex("search", GOAL, "-i", built, "-k", "3")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["rank", "score", "id", "text"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert all(cell_len(line) <= 60 and line.endswith("…") for line in lines[1:])


def test_json(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("search", GOAL, "zwölf Tore", "-i", built, "-k", "2", "--json")
    assert (ended.code, ended.err) == (0, "")
    hits = [json.loads(line) for line in ended.out.splitlines()]
    assert [(hit["query"], hit["rank"]) for hit in hits] == [
        (query, rank) for query in (GOAL, "zwölf Tore") for rank in (1, 2)
    ]
    assert "zwölf" in ended.out
    assert list(hits[0]) == ["query", "rank", "id", "score", "text", "metadata"]
    assert hits[0]["score"] >= hits[1]["score"]
    year = hits[0]["metadata"].pop("year")
    assert hits[0]["id"] == f"doc-{year}"
    assert hits[0]["metadata"] == {
        "ratio": None,
        "price": "1.50",
        "when": "2024-02-29T12:00:00+00:00",
        "blob": "AP8=",
        "tags": ["a", None],
    }


def test_several_queries_have_titles(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("search", "a \x1b[31mgoal", "water", "-i", built, "-k", "1")
    lines = ended.out.splitlines()
    assert (lines[0], lines[3], lines[4]) == ("a goal", "", "water")
    assert "\x1b" not in ended.out


def test_queries_from_standard_input(process: Llmindex, built: Path) -> None:
    ended = process("search", "-", "-i", built, "-k", "1", "--json", stdin="\ufeffgoal\n\n  \nwäter\r\n".encode())
    assert (ended.code, ended.err) == (0, "")
    assert [json.loads(line)["query"] for line in ended.out.splitlines()] == ["goal", "wäter"]


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "Error: no queries on standard input: expected one a line\n"),
        (b"\n \n", "Error: no queries on standard input: expected one a line\n"),
        (b"good\n\xff\xfe\n", "Error: standard input, line 2: not valid UTF-8\n"),
    ],
)
def test_standard_input_without_queries(stdin: bytes, said: str, process: Llmindex, built: Path) -> None:
    ended = process("search", "-", "-i", built, stdin=stdin)
    assert (ended.code, ended.out, ended.err) == (2, "", said)


def test_query_without_text_or_not_utf8(llmindex: Llmindex, built: Path) -> None:
    empty = llmindex("search", "good", "  ", "-i", built)
    assert (empty.code, empty.err) == (2, "Error: query 2 is empty\n")
    broken = llmindex("search", "a\udcff", "-i", built)
    assert (broken.code, broken.err) == (2, "Error: query 1 ('a\\udcff') is not valid UTF-8\n")


def test_k_larger_than_the_index(llmindex: Llmindex, built: Path) -> None:
    assert llmindex("search", "goal", "-i", built, "-k", "1000000000", "--json").out.count("\n") == 120
    assert llmindex("similar", "doc-0", "-i", built, "-k", "1000000000", "--json").out.count("\n") == 119


def test_no_hits_are_no_error(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("search", "goal", "-i", built, "--min-score", "1")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == 'No hits for "goal" with a score of 1 or more.\n'
    assert llmindex("-q", "search", "goal", "-i", built, "--min-score", "1", "--json").err == ""


def test_similar(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("similar", "doc-30", "-i", built, "-k", "3", "--json")
    hits = [json.loads(line) for line in ended.out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert {hit["query"] for hit in hits} == {"doc-30"}
    assert all(hit["id"] != "doc-30" and "striker" in hit["text"] for hit in hits)
    assert "striker" in llmindex("similar", "doc-30", "-i", built).out


def test_similar_loads_no_model(built: Path) -> None:
    code = (
        f"import sys; from llmindex_cli.main import main; main(['similar', 'doc-30', '-i', {str(built)!r}])\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "striker" in ended.stdout
    assert "heavy: []" in ended.stdout


def test_similar_to_an_unknown_document(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("similar", "doc-3O", "-i", built)
    assert (ended.code, ended.out) == (2, "")
    assert 'doc-3O"' in ended.err
    assert ended.err.count("\n") == 1


def ids(out: str) -> list[str]:
    return [json.loads(line)["id"] for line in out.splitlines()]


@pytest.mark.parametrize("arguments", [("search", GOAL), ("similar", "doc-30")], ids=["search", "similar"])
def test_among_some_documents(arguments: tuple[str, str], llmindex: Llmindex, built: Path) -> None:
    everything = ids(llmindex(*arguments, "-i", built, "-k", "120", "--json").out)
    ended = llmindex(*arguments, "-i", built, "-k", "10", "--json", "--where", "year BETWEEN 20 AND 50")
    assert (ended.code, ended.err) == (0, "")
    assert ids(ended.out) == [each for each in everything if 20 <= int(each[4:]) <= 50][:10]


@pytest.mark.parametrize(("where", "lines"), [("year > 20", 0), ("yeer > 20", 1)])
def test_a_process_says_nothing_else_about_a_condition(where: str, lines: int, process: Llmindex, built: Path) -> None:
    ended = process("similar", "doc-3", "-i", built, "--where", where)
    assert ended.code == (2 if lines else 0)
    assert len(ended.err.splitlines()) == lines


def test_no_document_qualifies(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("search", "goal", "-i", built, "--where", "year > 1000")
    assert (ended.code, ended.out, ended.err) == (0, "", 'No hits for "goal" where year > 1000.\n')
    ended = llmindex("similar", "doc-3", "-i", built, "--where", "id = 'doc-3'", "--min-score", "0.5")
    assert ended.err == "No hits for document \"doc-3\" where id = 'doc-3' with a score of 0.5 or more.\n"
    assert (ended.code, ended.out) == (0, "")


CONDITIONS = {
    "an unknown column": ("yeer > 3", '"yeer"'),
    "a syntax error": ("year > AND", "syntax error"),
    "another type": ("year = 'soon'", "'soon'"),
    "no condition": ("id", "BOOL"),
    "nothing": (" ", "it is empty"),
    "not UTF-8": ("year = '\udcff'", "UTF-8"),
    "a second statement": ("1 = 1; DROP TABLE documents", "single expression"),
    "a second query": ("true UNION SELECT true", "single expression"),
    "a way out of the brackets": ("true) OR (true", "syntax error"),
    "a sub-select of a file": ("EXISTS (FROM read_csv('/etc/passwd'))", "single expression"),
    "a file": ("read_text('/etc/passwd') IS NOT NULL", "read_text"),
    "a sample": ("true USING SAMPLE 3", "single expression"),
    "all columns": ("COLUMNS(*) IS NOT NULL", "single expression"),
    "a count": ("count(*) > 1", "aggregates"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_a_condition_that_cannot_be(case: str, llmindex: Llmindex, built: Path) -> None:
    where, culprit = CONDITIONS[case]
    for arguments in (("search", GOAL), ("similar", "doc-30")):
        ended = llmindex(*arguments, "-i", built, "--where", where)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert ended.err.startswith("Error: --where: ")
        assert culprit in ended.err
        assert ended.err.endswith("; the columns are id, text, year, ratio, price, when, blob, tags\n")


def test_duckdb_is_missing(llmindex: Llmindex, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ended = llmindex("similar", "doc-30", "-i", built, "--where", "true")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "Error: --where needs duckdb: pip install duckdb\n"
