"""``llmindex pairs``, in this process and killed as a real one."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_instruct import make_tiny_instruct

from .conftest import Llmindex, start


@pytest.fixture
def titled(tmp_path: Path) -> Path:
    """A small corpus as CSV, one row of it empty."""
    path = tmp_path / "c.csv"
    path.write_text(
        "headline,body\nWater,Water was found on a distant planet. A telescope saw it last week.\n"
        "Goals,The striker scored in the last minute. Nobody had expected that any more.\nEmpty,\n"
    )
    return path


def test_report_for_people(llmindex: Llmindex, titled: Path, tmp_path: Path) -> None:
    output = tmp_path / "my pairs.parquet"
    ended = llmindex("pairs", titled, "-o", output)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"{output}: 6 pairs of 2 documents in ")
    assert lines[2].split() == ["source", "pairs", "rejected", "why"]
    assert ["title", "2", "0"] in [line.split() for line in lines]
    assert "Some pairs:" in lines
    assert ended.err.splitlines() == [
        'Used what needs no model: title, spans, noise (titles: column "headline"); '
        "--method instruct rewords by a model.",
        "Skipped 1 row (1 empty).",
        f"Next: llmindex train '{output}' -o runs/mine",
    ]
    table = pq.read_table(output)
    assert (table.column_names, len(table)) == (["text", "text_pair", "source"], 6)
    again = llmindex("pairs", titled, "-o", output)
    assert (again.code, again.out.splitlines()[0]) == (0, f"{output}: 6 pairs of 2 documents; complete before")
    assert "--overwrite" in again.err


def test_report_as_json(llmindex: Llmindex, titled: Path, tmp_path: Path) -> None:
    ended = llmindex(
        "-q", "pairs", titled, "-o", tmp_path / "p.parquet", "--method", "spans", "--method", "noise", "--json"
    )
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert (report["methods"], report["pairs"], report["complete_before"]) == (["spans", "noise"], 4, False)
    assert report["accepted"]["spans"] == 2
    assert {"source", "reason", "text", "text_pair"} == set(report["samples"][0])


def test_rejected_texts_are_counted_and_shown(
    llmindex: Llmindex, titled: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = make_tiny_instruct(tiny_model, tmp_path / "instruct")
    output = tmp_path / "p.parquet"
    ended = llmindex(
        "pairs", titled, "-o", output, "--method", "instruct", "--method", "spans", "--generator", model,
        "--instruction", "simpler", "--instruction", "question", "--variants", "2", "--seed", "3", "--device", "cpu",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "Some that were rejected:" in ended.out
    assert "instruct:question" in ended.out
    assert "instruct:simpler" in ended.out


@pytest.mark.parametrize(
    ("options", "code", "culprit"),
    [
        (("--method", "reword"), 2, "'reword'"),
        (("--title-column", "titel"), 1, '"titel"'),
        (("--method", "noise", "--title-column", "headline"), 2, "--title-column"),
        (("-o", "pairs.csv"), 2, ".parquet"),
        (("-o", "no/folder/pairs.parquet"), 2, "no/folder"),
        (("--method", "instruct", "--generator", "./nothing"), 1, "./nothing"),
        (("--method", "instruct", "--generator", "TINY"), 1, "no chat template"),
        (("--method", "instruct", "--device", "cuda:99", "--generator", "TINY"), 2, "cuda:99"),
        (("--method", "translate"), 1, "pip install argostranslate"),
        (("--method", "translate", "--pivot", "en"), 1, "--pivot"),
        (("--limit", "0"), 2, "--limit"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    options: tuple[str, ...], code: int, culprit: str, llmindex: Llmindex, titled: Path, tiny_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "argostranslate", None)
    monkeypatch.chdir(tmp_path)
    ended = llmindex("pairs", titled, *(str(tiny_model) if option == "TINY" else option for option in options))
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1
    assert culprit in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(with_signal: int, llmindex: Llmindex, tmp_path: Path) -> None:
    corpus = tmp_path / "c.parquet"
    texts = [f"Document {number} says something. " + "Then it goes on at some length. " * 3 for number in range(24_000)]
    pq.write_table(pa.table({"text": texts}), corpus)
    arguments = ("-q", "pairs", corpus, "--method", "spans", "--method", "noise", "--variants", "3")
    parts, output = tmp_path / "pairs.parquet.parts", tmp_path / "pairs.parquet"
    running = start(*arguments, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("part-*.parquet"))) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(running.pid, with_signal)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert not output.exists()
    committed = len(list(parts.glob("part-*.parquet")))
    assert 1 <= committed < 6
    if with_signal == signal.SIGINT:
        assert running.returncode == 130
        kept = f"the pairs of {4096 * committed:,} documents are stored"
        assert err.decode() == f"Interrupted: {kept}; run the same command again to go on\n"
    resumed = json.loads(llmindex(*arguments, "-o", output, "--json").out)
    assert resumed["documents"] - resumed["added"] == 4096 * committed
    whole = tmp_path / "whole.parquet"
    assert llmindex(*arguments, "-o", whole).code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert not parts.exists()
