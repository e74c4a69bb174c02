"""``llmindex build``: encode a corpus, store the vectors, index them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex_cli.console import count, duration, kinds_of, note, plain, print_facts, print_json, say, size
from llmindex_cli.encoder_options import encoder_options
from llmindex_cli.options import FILE, SOURCE, Command, corpus_options, json_option, recall_options
from llmindex_cli.plans import index_kind, index_time, note_plan_only
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex.builder import BuildPlan, BuildReport

STREAM = ("read", "encode", "write")


@click.command(
    "build",
    cls=Command,
    examples=(
        ("Index a Parquet, JSONL, CSV or text file, a folder, or a glob", "llmindex build corpus.parquet"),
        ("", "llmindex build 'logs/*.jsonl.gz' --text-column message -o logs.llmindex"),
        ("See first what it will take", "llmindex build corpus.parquet --plan"),
        ("Choose the prompt and the pooling", "llmindex build notes/ --prompt cluster --pooling mean"),
    ),
)
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS...", type=SOURCE)
@click.option(
    "-o",
    "--output",
    "index",
    type=FILE,
    metavar="INDEX",
    help="The index folder. [default: <name of the first corpus, or of a glob's folder>.llmindex here]",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Start afresh where there is an index already, but go on with what this same build has left unfinished.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what it will take in tokens, time, disk, memory; stop.")
@recall_options
@click.option(
    "--vector-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="How vectors are stored.",
)
@json_option("one object")
@corpus_options
@encoder_options
def command(
    corpus: tuple[str, ...],
    index: Path | None,
    overwrite: bool,
    plan_only: bool,
    as_json: bool,
    encoder: dict[str, Any],
    text_columns: tuple[str, ...],
    id_column: str | None,
    on_bad_row: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Encode the documents of CORPUS, store their vectors, and index them for search.

    Sources are Parquet, JSONL, CSV and TSV (the latter three also as .gz or .zst), .txt and .md files, folders and
    globs of them, and - for standard input: JSONL, Parquet, or a text a line. Run again after an interruption: it goes
    on where it stopped.
    """
    from llmindex import builder
    from llmindex.corpus import CorpusOptions
    from llmindex.encode.settings import EncoderOptions

    arguments = {
        "encoder": EncoderOptions(**encoder),
        "corpus": CorpusOptions(text_columns, id_column, on_bad_row),  # type: ignore[arg-type]
        **options,
    }
    if plan_only:
        with progress() as on_progress:
            plan = builder.plan(corpus, index, on_progress=on_progress, **arguments)
        print_json(plan.to_json()) if as_json else _print_plan(plan)
        _note_one_document(corpus, plan)
        return
    with progress() as on_progress:
        report = builder.build(corpus, index, overwrite=overwrite, on_progress=on_progress, **arguments)
    print_json(report.to_json()) if as_json else _print_report(report, overwrite)
    _note_one_document(corpus, report)


def _note_one_document(corpus: tuple[str, ...], result: "BuildPlan | BuildReport") -> None:
    """A file of lines may have been meant as that many texts."""
    if result.documents == 1 and not result.text_columns and corpus != ("-",):
        note("A text file is one document; `llmindex build - < FILE` makes one of each line.")


def _print_plan(plan: "BuildPlan") -> None:
    print_facts(
        {
            "folder": str(plan.path),
            "documents": f"{plan.documents:,}",
            **_text(plan),
            **_losses(plan),
            "tokens": f"{plan.tokens:,}",
            "time": f"about {duration(plan.seconds)}, and {index_time(plan)}",
            "disk": size(plan.disk_bytes),
            "memory": size(plan.memory_bytes),
            "model": plan.model
            + (f" with the adapter {plan.adapter}" if plan.adapter else "")
            + f", {plan.dtype} on {plan.device}",
            "index": index_kind(plan),
        }
    )
    note_plan_only()


def _print_report(report: "BuildReport", overwrite: bool) -> None:
    from llmindex.store.manifest import Manifest
    from llmindex.store.verify import outdated_clusterings

    if report.complete_before and not report.added:
        say(f"{plain(str(report.path))} is complete: {count(report.documents, 'documents')}")
        if not overwrite:
            note("Add --overwrite to start afresh.")
    else:
        say(f"{plain(str(report.path))}: {count(report.documents, 'documents')}")
        print_facts(_facts(report))
        for outdated in outdated_clusterings(report.path, Manifest.load(report.path)):
            note(outdated)
    note(f'Next: llmindex search "..." -i {shlex.quote(str(report.path))}')


def _facts(report: "BuildReport") -> dict[str, str]:
    facts = {}
    if report.added != report.documents:
        facts["added"] = f"{report.added:,} by this run"
    facts |= _text(report) | _losses(report)
    facts["tokens"] = f"{report.tokens:,}"
    facts["time"] = _times(report.seconds)
    if speed := _speed(report):
        facts["speed"] = speed
    facts["index"] = f"{report.index.factory}, measured recall@10 {report.index.recall_at_10:.3f}"
    return facts


def _text(result: "BuildPlan | BuildReport") -> dict[str, str]:
    """Where the texts come from: it may have been found by name, and not be what was meant."""
    names = ", ".join(result.text_columns)
    return {"text": f"from the column{'s' * (len(result.text_columns) > 1)} {names}"} if names else {}


def _losses(result: "BuildPlan | BuildReport") -> dict[str, str]:
    """What of the corpus does not reach the index whole."""
    facts = {}
    if bad := {kind: rows for kind, rows in result.bad_rows.items() if rows}:
        facts["skipped"] = f"{count(sum(bad.values()), 'rows')} ({kinds_of(bad)})"
        if "not_utf8" in bad:
            facts["skipped"] += "; convert what is not UTF-8 to keep it"
    if result.truncated:
        facts["truncated"] = (
            f"{count(result.truncated, 'documents')} cut to the encoder's maximum of tokens; --max-tokens keeps more"
        )
    return facts


def _times(seconds: Mapping[str, float]) -> str:
    # Reading, encoding and writing run side by side: the slowest of them is what the stream took. What is left
    # of the total went into starting: loading the model, scanning the corpus.
    stages = {stage: seconds.get(stage, 0.0) for stage in (*STREAM, "index")}
    start = seconds["total"] - seconds["index"] - max(stages[stage] for stage in STREAM)
    listed = ", ".join(f"{stage} {duration(taken)}" for stage, taken in {"start": start, **stages}.items())
    return f"{duration(seconds['total'])} ({listed}; held back by {max(stages, key=stages.__getitem__)})"


def _speed(report: "BuildReport") -> str:
    streaming = max(report.seconds.get(stage, 0.0) for stage in STREAM)
    return f"{report.added / streaming:,.1f} documents/s" if report.added and streaming else ""
