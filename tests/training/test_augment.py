"""The driver: what it writes, that a cut-off run ends like a whole one, and what it refuses."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.corpus import CorpusOptions
from llmindex.errors import CorpusError, IndexLocked, Interrupted, MissingPackage, UsageError
from llmindex.progress import Progress
from llmindex.store.files import lock
from llmindex_training import augment, methods, pairs_report
from llmindex_training.augment import make_pairs
from llmindex_training.filters import REASONS
from llmindex_training.methods import Candidate, Document, PairsOptions, Plan
from tests.tiny_instruct import make_tiny_instruct

COUNT = 50


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Fifty documents with titles; one has none, one a single word; two rows are bad."""
    rows: list[dict[str, str | None]] = [
        {
            "id": f"d{number}",
            "title": f"Report number {number}",
            "text": f"Report number {number}: the match ended {number} to nothing. Nobody had expected such an end.",
        }
        for number in range(COUNT)
    ]
    rows[3]["title"] = None
    rows[7]["text"] = "word"
    rows += [{"id": "empty", "title": "Empty", "text": " "}, {"id": "null", "title": "Null", "text": None}]
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_PART_ROWS", 8)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def test_what_needs_no_model_is_the_default(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.parquet"
    report = make_pairs(corpus, output)
    rows = rows_of(output)
    assert list(rows[0]) == ["text", "text_pair", "source"]
    assert (report.methods, report.title_column) == (["title", "spans", "noise"], "title")
    assert (report.documents, report.added, report.bad_rows) == (COUNT, COUNT, {"empty": 1, "null": 1})
    assert report.pairs == len(rows) == sum(report.accepted.values())
    assert report.accepted == dict(sorted(Counter(row["source"] for row in rows).items()))
    assert report.rejected["title"] == {"no_title": 1, "too_short": 1}
    assert report.rejected["spans"] == {"too_short": 1}
    assert sum(sum(counts.values()) for counts in report.rejected.values()) + report.pairs == 3 * COUNT
    assert all(row["text"].strip() and row["text_pair"].strip() for row in rows)
    titled = next(row for row in rows if row["source"] == "title")
    assert titled["text"] == "Report number 0"
    assert titled["text_pair"].startswith("the match ended")
    assert {sample.reason for sample in report.samples} <= {None, *REASONS}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.parquet", "pairs.parquet"]


def test_a_finished_file_says_so_and_tells_the_same(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.parquet"
    first = make_pairs(corpus, output)
    written = output.read_bytes()
    again = make_pairs(corpus, output)
    assert output.read_bytes() == written
    assert (again.complete_before, again.added) == (True, 0)
    told, repeated = first.to_json(), again.to_json()
    for name in ("complete_before", "added", "seconds"):
        told.pop(name), repeated.pop(name)
    assert json.loads(json.dumps(repeated)) == json.loads(json.dumps(told))


def test_a_limit_takes_documents_from_all_over(corpus: Path, tmp_path: Path) -> None:
    make_pairs(corpus, tmp_path / "p.parquet", PairsOptions(methods=("noise",), limit=5))
    numbers = [int(row["text"].split()[2].rstrip(":")) for row in rows_of(tmp_path / "p.parquet")]
    assert numbers == [9, 19, 29, 39, 49]  # the two bad rows at the end do not count


def stop_after(monkeypatch: pytest.MonkeyPatch, parts: int, error: type[BaseException]) -> None:
    """Let the methods fail when some parts are done."""
    work = Plan.candidates
    done = 0

    def failing(self: Plan, documents: Sequence[Document], on_done: methods.OnDone) -> list[Candidate]:
        nonlocal done
        done += 1
        if done > parts:
            raise error
        return work(self, documents, on_done)

    monkeypatch.setattr(Plan, "candidates", failing)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("chosen", ["noise", "instruct"])
def test_a_cut_off_run_ends_like_a_whole_one(
    chosen: methods.Method, corpus: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_instruct(tiny_model, tmp_path / "tiny-instruct")
    monkeypatch.setattr(methods, "_GENERATED_ON_CPU", 8)
    monkeypatch.setattr("llmindex_training.instruct.SHORTEST_LIMIT", 8)
    monkeypatch.setattr("llmindex_training.instruct.LONGEST_LIMIT", 12)
    generator = str(model) if chosen == "instruct" else "default"
    options = PairsOptions(
        methods=(chosen, "spans"), limit=26, variants=2, generator=generator, device="cpu", dtype="float32"
    )
    whole, output = tmp_path / "whole.parquet", tmp_path / "pairs.parquet"
    make_pairs(corpus, whole, options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(Interrupted, match="16 documents"):
            make_pairs(corpus, output, options)
    assert not output.exists()
    reports: list[Progress] = []
    report = make_pairs(corpus, output, options, on_progress=reports.append)
    assert (report.documents, report.added) == (26, 10)
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "pairs.parquet.parts").exists()
    assert reports[-1].done == reports[-1].fresh + 16 * 3  # type: ignore[operator]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("damage", ["cut", "emptied", "other columns", "a flipped page"])
def test_damaged_parts_are_made_again_first(
    damage: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "pairs.parquet"
    make_pairs(corpus, whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3, KeyboardInterrupt)
        with pytest.raises(Interrupted, match="24 documents"):
            make_pairs(corpus, output)
    part = tmp_path / "pairs.parquet.parts" / "part-00001.parquet"
    content = part.read_bytes()
    if damage == "other columns":
        pq.write_table(pa.table({"mine": [1]}), part)
    elif damage == "a flipped page":
        part.write_bytes(content[:4] + bytes(byte ^ 255 for byte in content[4:40]) + content[40:])
    else:
        part.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with monkeypatch.context() as patch:
        stop_after(patch, 0, KeyboardInterrupt)
        with pytest.raises(Interrupted, match="the pairs of 16 documents"):
            make_pairs(corpus, output)
    assert [record.getMessage() for record in caplog.records] == [f"{part} is damaged; its pairs are made again"]
    report = make_pairs(corpus, output)
    assert report.added == COUNT - 16
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PairsOptions(seed=1), "seed 0, now 1"),
        (PairsOptions(limit=9), "limit None, now 9"),
        (PairsOptions(methods=("noise",)), "methods title, spans, noise, now noise"),
        (PairsOptions(variants=2), "variants 1, now 2"),
    ],
)
def test_changed_settings_are_refused(
    options: PairsOptions, said: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "pairs.parquet"
    with monkeypatch.context() as patch:
        stop_after(patch, 2, RuntimeError)
        with pytest.raises(RuntimeError):
            make_pairs(corpus, output)
    with pytest.raises(UsageError, match=said):
        make_pairs(corpus, output, options)
    make_pairs(corpus, output)
    with pytest.raises(UsageError, match=said):
        make_pairs(corpus, output, options)
    make_pairs(corpus, output, options, overwrite=True)
    assert make_pairs(corpus, output, options).complete_before


def test_a_changed_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.parquet"
    make_pairs(corpus, output)
    pq.write_table(pq.read_table(corpus).slice(0, 40), corpus)
    with pytest.raises(CorpusError, match="another corpus"):
        make_pairs(corpus, output)


def test_a_foreign_file_is_not_overwritten(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.parquet"
    foreign = [b"PAR1 no", corpus.read_bytes()]
    for said in (
        "{}",
        "[]",
        "null",
        "no",
        "\xff",
        "[" * 100_000,
        '{"record": {}}',
        '{"record": [], "report": {"samples": []}}',
    ):
        pq.write_table(pa.table({"mine": [1]}).replace_schema_metadata({"llmindex.pairs": said}), output)
        foreign.append(output.read_bytes())
    for content in foreign:
        output.write_bytes(content)
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="not a file of pairs made here; name another file with -o"):
                make_pairs(corpus, output, overwrite=overwrite)
        assert output.read_bytes() == content


@pytest.mark.usefixtures("small_parts")
def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs.parquet.parts"
    folder.mkdir()
    with lock(folder), pytest.raises(IndexLocked, match="is being written by"):
        make_pairs(corpus, tmp_path / "pairs.parquet")


def test_a_run_without_any_pair_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two"]})
    with pytest.raises(CorpusError, match=r"none of the 2 documents gave a pair \(2 too short\)"):
        make_pairs(table, tmp_path / "pairs.parquet", PairsOptions(methods=("spans",)))
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_before_anything_is_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "argostranslate", None)
    with pytest.raises(MissingPackage):
        make_pairs(corpus, tmp_path / "pairs.parquet", PairsOptions(methods=("translate",)))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (PairsOptions(title_column="titel"), CorpusError, r'"titel".*columns: title'),
        (PairsOptions(methods=("noise",), title_column="title"), UsageError, "--title-column"),
        (PairsOptions(instructions=("detail",)), UsageError, "--instruction is for --method instruct; add that, or"),
        (PairsOptions(methods=("noise",), generator="x"), UsageError, "--generator is for --method instruct"),
        (PairsOptions(methods=("instruct",), pivot="fr"), UsageError, "--pivot is for --method translate"),
        (PairsOptions(limit=0), UsageError, "--limit 0"),
        (PairsOptions(variants=0), UsageError, "--variants 0"),
        (PairsOptions(methods=("nois",)), UsageError, '"nois"'),  # type: ignore[arg-type]
        (PairsOptions(instructions=("riddle",)), UsageError, '"riddle"'),
    ],
)
def test_options_that_cannot_work(
    options: PairsOptions, error: type[Exception], said: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        make_pairs(corpus, tmp_path / "pairs.parquet", options)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


def test_a_corpus_without_titles_does_without(tmp_path: Path) -> None:
    table = pa.table({"text": ["one text of some words", "and another one"]})
    assert make_pairs(table, tmp_path / "a.parquet").methods == ["spans", "noise"]
    with pytest.raises(CorpusError, match="--title-column"):
        make_pairs(table, tmp_path / "b.parquet", PairsOptions(methods=("title",)))


@pytest.mark.parametrize("layout", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("named", [None, "title"])
def test_titles_in_any_layout_of_strings(tmp_path: Path, layout: pa.DataType, named: str | None) -> None:
    table = pa.table({"title": ["A title"], "text": ["A body that is long enough for a pair."]})
    table = table.set_column(0, "title", table["title"].cast(layout))
    report = make_pairs(table, tmp_path / "p.parquet", PairsOptions(title_column=named))
    assert (report.title_column, report.accepted["title"]) == ("title", 1)


def test_a_title_column_that_the_corpus_renames(tmp_path: Path) -> None:
    table = pa.table({"text": ["A title"], "body": ["A body that is long enough for a pair."]})
    options = PairsOptions(methods=("title",), title_column="text")
    report = make_pairs(table, tmp_path / "p.parquet", options, corpus=CorpusOptions(text_columns=("body",)))
    assert report.pairs == 1
    assert rows_of(tmp_path / "p.parquet")[0]["text"] == "A title"


def test_samples_are_few_and_short(tmp_path: Path) -> None:
    table = pa.table({"text": ["one word after the other " * 200] * 40})
    report = make_pairs(table, tmp_path / "p.parquet", PairsOptions(methods=("noise",)))
    assert len(report.samples) == 2 * len(report.accepted)
    assert all(len(sample.text) <= pairs_report._SAMPLE_CHARACTERS for sample in report.samples)


def test_the_corpus_is_never_written_over(corpus: Path) -> None:
    before = corpus.read_bytes()
    with pytest.raises(UsageError, match="is the corpus itself; write to another file"):
        make_pairs(corpus, corpus, overwrite=True)
    assert corpus.read_bytes() == before
    for sources in (corpus.parent, [corpus.parent]):
        with pytest.raises(UsageError, match="lies in the folder of the corpus"):
            make_pairs(sources, corpus.parent / "sub" / "pairs.parquet")


def test_a_folder_of_somebody_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs.parquet.parts"
    (folder / "sub").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds sub, which was not made here; move it away, or name another file"):
        make_pairs(corpus, tmp_path / "pairs.parquet", overwrite=True)
    assert (folder / "sub").is_dir()


def test_former_pairs_stay_until_the_new_ones_are_there(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "pairs.parquet"
    make_pairs(corpus, output, PairsOptions(methods=("noise",)))
    before = output.read_bytes()
    options = PairsOptions(methods=("spans",))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(augment, "_assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            make_pairs(corpus, output, options, overwrite=True)
    assert output.read_bytes() == before
    report = make_pairs(corpus, output, options)  # goes on, without being told again
    assert (report.added, report.complete_before, report.methods) == (0, False, ["spans"])
    assert make_pairs(corpus, output, options).complete_before


def test_pairs_that_nothing_replaces_come_back(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs.parquet"
    make_pairs(corpus, output)
    before = output.read_bytes()
    short = tmp_path / "short.parquet"
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["a", "b"]}), short)
    with pytest.raises(CorpusError, match="gave a pair"):
        make_pairs(short, output, overwrite=True)
    assert output.read_bytes() == before
    assert not output.with_name("pairs.parquet.parts").exists()
