"""``llmindex mine``: hard negatives for pairs, from an index."""

from pathlib import Path
from typing import Any

import click

from llmindex_cli.console import count, duration, note, plain, print_facts, print_json
from llmindex_cli.options import FILE, Command, Number, index_option, json_option, output_option, runtime_options
from llmindex_cli.progress import progress


@click.command(
    "mine",
    cls=Command,
    examples=(
        ("A hard negative for each pair", "llmindex mine pairs.parquet -i corpus.llmindex -o mined.parquet"),
        (
            "Up to three, and more careful with near ones",
            "llmindex mine pairs.parquet -o mined.parquet --negatives 3 --margin 0.1",
        ),
    ),
)
@click.argument("pairs", nargs=-1, required=True, type=FILE, metavar="PAIRS...")
@index_option
@output_option(
    "-o",
    "--output",
    suffixes=(".parquet",),
    required=True,
    help="The pairs with their negatives: mined.parquet.",
)
@click.option(
    "-k",
    "k",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="N",
    help="How many of the nearest documents are considered.",
)
@click.option(
    "--margin",
    type=Number(0, 2),
    default=0.05,
    show_default=True,
    metavar="SCORE",
    help="How far a negative's score has to stay below that of the positive.",
)
@click.option(
    "--negatives", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="The most of a pair."
)
@json_option("one object")
@runtime_options
def command(
    pairs: tuple[Path, ...],
    index: Path,
    output: Path,
    k: int,
    margin: float,
    negatives: int,
    as_json: bool,
    runtime: dict[str, Any],
) -> None:
    """Add a column negative to PAIRS, Parquet files with the columns text and text_pair.

    A negative is a document of the index that lies near the text, but less near than its positive by a margin: what
    lies nearer may be a positive as well. Pairs are encoded as the index's documents were.
    """
    with progress() as on_progress:
        # Here, as torch takes seconds to load: the terminal has a sign of life meanwhile.
        from llmindex_training.mining import mine

        report = mine(pairs, index, output, k=k, margin=margin, negatives=negatives, on_progress=on_progress, **runtime)
    if as_json:
        print_json(report.to_json())
        return
    print_facts(
        {
            "wrote": f"{plain(str(report.file))}, {count(report.rows, 'rows')}",
            "pairs": f"{report.pairs:,}, {report.with_negative:,} with a negative, {report.without:,} without",
            "held back": f"{count(report.held_back, 'documents')} too near to be surely negative",
            "mean score": f"{_score(report.positive_score)} to the positive, {_score(report.negative_score)} to the "
            "negatives",
            "took": duration(report.seconds),
        }
    )
    if report.without:
        note(f"{count(report.without, 'pairs')} without a negative: raise -k, lower --margin, or index more documents.")


def _score(score: float | None) -> str:
    return "none" if score is None else f"{score:.4f}"
