"""``llmindex pairs``: positive pairs out of a corpus, to train on."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex_cli.console import Column, count, duration, kinds_of, note, plain, print_json, print_table, say
from llmindex_cli.options import (
    SOURCE,
    Command,
    ModelType,
    SectionOption,
    corpus_options,
    json_option,
    output_option,
    runtime_options,
)
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex_training.pairs_report import PairsReport, Sample

METHODS = ("title", "spans", "noise", "instruct", "translate")
INSTRUCTIONS = ("detail", "simpler", "teacher", "metaphor", "question")
SECTION = "Method options"


@click.command(
    "pairs",
    cls=Command,
    examples=(
        ("From titles, neighbouring spans and noise: seconds, no model", "llmindex pairs corpus.parquet"),
        ("Reworded by a language model", "llmindex pairs corpus.jsonl --method instruct --limit 500"),
        ("Into German and back", "llmindex pairs corpus.parquet --method translate --pivot de"),
    ),
)
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS...", type=SOURCE)
@output_option(
    "-o",
    "--output",
    suffixes=(".parquet",),
    default=Path("pairs.parquet"),
    show_default=True,
    help="The file of pairs, columns text, text_pair, source.",
)
@click.option("--overwrite", is_flag=True, help="Start afresh where there are pairs already.")
@click.option(
    "--method",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    help="How positives are made; several may be given. [default: title (if there are titles), spans, noise]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take N documents, spread over the corpus.")
@click.option(
    "--variants",
    type=click.IntRange(1, 5),
    default=1,
    show_default=True,
    metavar="N",
    help="Rewordings (instruct, at most 5) and kinds of noise (at most 3) of each document.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of all that is drawn.")
@json_option("one object")
@click.option(
    "--title-column",
    cls=SectionOption,
    section=SECTION,
    metavar="NAME",
    help="title: column with the titles. [default: found by name]",
)
@click.option(
    "--generator",
    cls=SectionOption,
    section=SECTION,
    type=ModelType(),
    default="default",
    show_default=True,
    help="instruct: a model with a chat template: default, a hub name or a folder.",
)
@click.option(
    "--instruction",
    "instructions",
    cls=SectionOption,
    section=SECTION,
    type=click.Choice(INSTRUCTIONS),
    multiple=True,
    help="instruct: what the model may be told; several may be given. [default: all, one drawn for each text]",
)
@click.option(
    "--language",
    cls=SectionOption,
    section=SECTION,
    metavar="CODE",
    default="en",
    show_default=True,
    help="translate: language of the corpus.",
)
@click.option(
    "--pivot",
    cls=SectionOption,
    section=SECTION,
    metavar="CODE",
    default="de",
    show_default=True,
    help="translate: language to go through.",
)
@runtime_options
@corpus_options
def command(
    corpus: tuple[str, ...],
    output: Path,
    overwrite: bool,
    as_json: bool,
    text_columns: tuple[str, ...],
    id_column: str | None,
    on_bad_row: str,
    runtime: dict[str, Any],
    **options: Any,  # noqa: ANN401
) -> None:
    """Make pairs of texts that mean the same out of the documents of CORPUS, to train an adapter on.

    title pairs a document's title with its body, spans two neighbouring spans of its text, noise a text with itself
    after some words or letters lost their places. instruct has a language model reword the text by one of five
    instructions, and leaves out what went wrong; translate goes through another language and back.

    Run again after an interruption: it goes on where it stopped.
    """
    if "-" in corpus and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Give the documents on standard input, or name a file.", click.get_current_context())
    from llmindex.corpus import CorpusOptions
    from llmindex_training.augment import make_pairs
    from llmindex_training.methods import PairsOptions

    with progress() as on_progress:
        report = make_pairs(
            corpus,
            output,
            PairsOptions(**options, **runtime),
            corpus=CorpusOptions(text_columns, id_column, on_bad_row),  # type: ignore[arg-type]
            overwrite=overwrite,
            on_progress=on_progress,
        )
    print_json(report.to_json()) if as_json else _print_report(report, chosen=not options["methods"])


def _print_report(report: "PairsReport", *, chosen: bool) -> None:
    shown = f"{plain(str(report.path))}: {count(report.pairs, 'pairs')} of {count(report.documents, 'documents')}"
    if report.complete_before:
        say(f"{shown}; complete before")
        note("Add --overwrite to start afresh.")
    else:
        say(f"{shown} in {duration(report.seconds)}")
    if chosen:
        titles = f' (titles: column "{report.title_column}")' if report.title_column else ""
        note(f"Used what needs no model: {', '.join(report.methods)}{titles}; --method instruct rewords by a model.")
    if report.bad_rows:
        note(f"Skipped {count(sum(report.bad_rows.values()), 'rows')} ({kinds_of(report.bad_rows)}).")
    say("")
    _print_counts(report)
    _print_samples("Some pairs", [sample for sample in report.samples if sample.reason is None])
    _print_samples("Some that were rejected", [sample for sample in report.samples if sample.reason is not None])
    note(f"Next: llmindex train {shlex.quote(str(report.path))} -o runs/mine")


def _print_counts(report: "PairsReport") -> None:
    columns = (Column("source"), Column("pairs", "right"), Column("rejected", "right"), Column("why", fit="rest"))
    rows = []
    for source in sorted({*report.accepted, *report.rejected}):
        reasons = report.rejected.get(source, {})
        rows.append((source, f"{report.accepted.get(source, 0):,}", f"{sum(reasons.values()):,}", kinds_of(reasons)))
    print_table(columns, rows)


def _print_samples(title: str, samples: "list[Sample]") -> None:
    if not samples:
        return
    say("")
    say(f"{title}:")
    columns = (Column("source"), Column("reason"), Column("text", fit="rest"), Column("text_pair", fit="rest"))
    rows = [
        (sample.source, (sample.reason or "").replace("_", " "), sample.text, sample.text_pair)
        for sample in sorted(samples, key=lambda sample: sample.source)
    ]
    if not any(row[1] for row in rows):
        columns, rows = columns[:1] + columns[2:], [(row[0], *row[2:]) for row in rows]  # type: ignore[assignment,misc]
    print_table(columns, rows)
