"""``llmindex attention``: what the pooled token attends to, before and after adaptation."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex_cli.console import Column, count, note, print_facts, print_json, print_table, say
from llmindex_cli.encoder_options import encoder_options
from llmindex_cli.options import FILE, Command, corpus_options, json_option, output_option, role_option
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex_training.attention import AttentionReport


@click.command(
    "attention",
    cls=Command,
    examples=(
        ("Where the last token looks", 'llmindex attention "How do I sort a list?" --prompt cluster --pooling last'),
        ("Before and after adaptation, as a picture", 'llmindex attention "A text." --model RUN/adapter --plot a.png'),
        (
            "Prompt against text, over a corpus",
            "llmindex attention --file corpus.parquet --limit 500 --model RUN/adapter",
        ),
    ),
)
@click.argument("text", required=False)
@click.option(
    "--file",
    type=FILE,
    metavar="FILE",
    help="Instead of a text: a corpus, any source that build takes; the shares over its texts.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N texts of the corpus.")
@click.option(
    "--attention-layer",
    type=int,
    default=-1,
    show_default=True,
    metavar="N",
    help="Whose attention, counted from 1; -1 the last that the encoder runs.",
)
@role_option
@output_option(
    "--plot",
    suffixes=(".png",),
    help="Draw the attention of one text: a bar a token, base above adapted.",
)
@json_option("one object")
@corpus_options
@encoder_options
def command(
    text: str | None,
    file: Path | None,
    limit: int | None,
    attention_layer: int,
    role: Any,  # noqa: ANN401 - a Role
    plot: Path | None,
    as_json: bool,
    encoder: dict[str, Any],
    text_columns: tuple[str, ...],
    id_column: str | None,
    on_bad_row: Any,  # noqa: ANN401 - a literal
) -> None:
    """Show how much attention the pooled token pays to each token of TEXT, or to prompts and texts of a corpus.

    Attention is averaged over the heads of one layer. A model with an adapter is shown beside the same without it.
    The first token is left out of the shares: it is BOS, or serves as one.
    """
    context = click.get_current_context()
    if (text is None) == (file is None):
        raise click.UsageError("Give a TEXT, or a corpus with --file.", context)
    if plot is not None and text is None:
        raise click.UsageError("--plot draws one text: give a TEXT.", context)
    of_a_corpus = {
        "--limit": limit,
        "--text-column": text_columns,
        "--id-column": id_column,
        "--on-bad-row": on_bad_row != "skip",
    }
    if file is None and (given := [option for option, value in of_a_corpus.items() if value]):
        raise click.UsageError(f"{given[0]} is for --file.", context)
    report = _measure(text, file, (text_columns, id_column, on_bad_row), encoder, limit, attention_layer, role, plot)
    if plot is not None:
        from llmindex_training.attention_plot import write_plot

        write_plot(plot, report)
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if report.truncated:
        note(f"Cut {count(report.truncated, 'texts')} to the encoder's longest.")


def _measure(
    text: str | None,
    file: Path | None,
    reading: tuple[tuple[str, ...], str | None, Any],
    encoder: dict[str, Any],
    limit: int | None,
    layer: int,
    role: Any,  # noqa: ANN401
    plot: Path | None,
) -> "AttentionReport":
    from llmindex.corpus import Corpus, CorpusOptions
    from llmindex.encode.settings import EncoderOptions

    with progress() as on_progress:
        if file is None:
            from llmindex_training import attention, attention_plot

            if plot is not None:
                attention_plot.check_path(plot)
            options = EncoderOptions(**encoder)
            return attention.of_text(options, text or "", layer=layer, role=role, on_progress=on_progress)
        with Corpus.open([file], CorpusOptions(*reading), on_progress) as corpus:
            # Not before the corpus has proved readable: torch takes seconds to load.
            from llmindex_training import attention

            options = EncoderOptions(**encoder)
            return attention.of_corpus(options, corpus, limit=limit, layer=layer, role=role, on_progress=on_progress)


def _print(report: "AttentionReport") -> None:
    adapted = report.adapted is not None
    if report.tokens:
        titles = ["token", "part", "base", "adapted"] if adapted else ["token", "part", "attention"]
        columns = [Column(title, align="left" if place < 2 else "right") for place, title in enumerate(titles)]
        rows = []
        for token in report.tokens:
            values = [token.base] if token.adapted is None else [token.base, token.adapted]
            rows.append([token.shown, token.part, *(f"{value:.4f}" for value in values)])
        print_table(columns, rows)
        say("")
    facts = {
        "attention of": report.pooled,
        "layer": f"{report.layer} of {report.layers}, mean over {report.heads} heads",
        "texts": f"{report.texts:,}",
    }
    first = _shares(report, "first")
    if math.isnan(report.base.text_share):
        facts["first token"] = f"{first}: there is no other to attend to"
    else:
        facts["on the prompt"] = _shares(report, "prompt_share")
        facts["on the text"] = _shares(report, "text_share")
        facts["first token"] = f"{first}, left out above"
    print_facts(facts)


def _shares(report: "AttentionReport", name: str) -> str:
    base = getattr(report.base, name)
    if report.adapted is None:
        return f"{base:.1%}"
    adapted = getattr(report.adapted, name)
    return f"{base:.1%} base, {adapted:.1%} adapted ({100 * (adapted - base):+.1f} points)"
