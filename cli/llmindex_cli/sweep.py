"""``llmindex sweep``: which prompt, pooling and layer suit some texts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex.encode.prompts import PLACE
from llmindex_cli.console import Column, note, plain, print_json, print_table
from llmindex_cli.encoder_options import fixed_options
from llmindex_cli.options import FILE, Command, json_option, output_option, seeds_option
from llmindex_cli.progress import progress
from llmindex_cli.scores import percent

if TYPE_CHECKING:
    from llmindex_training.sweep import Candidate


def split_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names from ``a,b``; a template of the user's own, whose commas are its own, stays whole."""
    return tuple(
        name for value in values for name in ([value] if PLACE in value else map(str.strip, value.split(","))) if name
    )


def split_layers(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers from ``-1,16``."""
    names = split_names(ctx, param, values)
    try:
        return tuple(map(int, names))
    except ValueError as error:
        raise click.BadParameter(f"'{','.join(names)}' is not a list of whole numbers.", ctx, param) from error


@click.command(
    "sweep",
    cls=Command,
    examples=(
        ("Try some on two labelled files, and keep the best", "llmindex sweep a.parquet b.parquet -o encoder.json"),
        ("", "llmindex build corpus.parquet --model encoder.json"),
        (
            "Middle layers, and a prompt of one's own",
            "llmindex sweep a.parquet --layers 16,24 --prompts 'Topic of {text}:'",
        ),
    ),
)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option(
    "--prompts",
    multiple=True,
    default=("none,eol,cluster",),
    show_default=True,
    callback=split_names,
    metavar="NAME,...",
    help="Named prompts; or, given again, a template.",
)
@click.option(
    "--query-prompts",
    multiple=True,
    callback=split_names,
    metavar="NAME,...",
    help="Prompts of a retrieval folder's queries, each beside each prompt. [default: the prompt itself]",
)
@click.option(
    "--poolings",
    multiple=True,
    default=("last,mean,weighted_mean",),
    show_default=True,
    callback=split_names,
    metavar="NAME,...",
    help="Poolings.",
)
@click.option(
    "--layers",
    multiple=True,
    default=("-1",),
    show_default=True,
    callback=split_layers,
    metavar="N,...",
    help="Layers: -1 the last, 0 the embeddings.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    default=2000,
    show_default=True,
    metavar="N",
    help="The most texts, queries or pairs of a set; more are sampled, always the same.",
)
@seeds_option
@output_option(
    "-o",
    "--output",
    suffixes=(".json",),
    help="Write the best as encoder.json, which --model takes.",
)
@json_option("one object a combination")
@fixed_options
def command(
    files: tuple[Path, ...],
    prompts: tuple[str, ...],
    query_prompts: tuple[str, ...],
    poolings: tuple[str, ...],
    layers: tuple[int, ...],
    sample: int,
    seeds: int,
    output: Path | None,
    as_json: bool,
    encoder: dict[str, Any],
) -> None:
    """Score every combination of prompt, pooling and layer on each FILE, in one pass over the texts for each prompt.

    A FILE is what evaluate takes: a labelled Parquet file (V-measure of k-means), a retrieval folder (nDCG@10) or a
    file of sentence pairs (Spearman's correlation). The score is their mean. The model with its own settings, and the
    whitening that it was adapted with, stands in the table, too.
    """
    from llmindex_training.evaluation_data import read_any, set_names

    sets = [read_any(file, name=name, sample=sample) for file, name in zip(files, set_names(files), strict=True)]
    with progress() as on_progress:
        # Here, as torch takes seconds to load: the terminal has a sign of life meanwhile.
        from llmindex.encode.settings import EncoderOptions
        from llmindex_training.sweep import Grid, check_replaceable, save_spec, sweep

        if output is not None:
            check_replaceable(output)
        grid = Grid(prompts, poolings, layers, query_prompts)  # type: ignore[arg-type]
        candidates = sweep(EncoderOptions(**encoder), sets, grid, seeds=seeds, on_progress=on_progress)
    if output is not None:
        save_spec(candidates[0].spec, output)
    if as_json:
        _print_json(candidates)
    else:
        _print(candidates)
        _compare(candidates)
    if output is not None:
        note(f"Wrote the best to {plain(str(output))}; use it with --model {shlex.quote(str(output))}")


def _print_json(candidates: "Sequence[Candidate]") -> None:
    for each in candidates:
        asked = {} if each.query_prompt is None else {"query_prompt": each.query_prompt}
        combination = {"prompt": each.prompt, **asked, "pooling": each.pooling, "layer": each.layer}
        combination |= {"whitened": each.spec.whitened, "unchanged": each.unchanged}
        print_json({**combination, "score": each.score, "scores": each.scores, "encoder": each.spec.fingerprint()})


def _print(candidates: "Sequence[Candidate]") -> None:
    first = candidates[0]
    tasks = list(first.scores) if len(first.scores) > 1 else []
    asked = any(each.query_prompt not in (None, each.prompt) for each in candidates)
    columns = [
        Column("prompt", fit="quarter"),
        *([Column("query prompt", fit="quarter")] if asked else []),
        Column("pooling"),
        Column("layer", "right"),
        *(Column(task, "right") for task in tasks),
        Column("mean" if tasks else "score", "right"),
    ]
    rows = [
        [
            each.prompt,
            *([each.query_prompt or "-"] if asked else []),
            f"{each.pooling}, whitened" if each.spec.whitened else each.pooling,
            str(each.layer),
            *(percent(each.scores[task]) for task in tasks),
            percent(each.score),
        ]
        for each in candidates
    ]
    print_table(columns, rows)


def _compare(candidates: "Sequence[Candidate]") -> None:
    """Say how the best does beside the model as it is."""
    best = candidates[0]
    unchanged = next(each for each in candidates if each.unchanged)
    settings = f"{unchanged.prompt}, {unchanged.pooling}, layer {unchanged.layer}"
    if best.unchanged:
        note(f"The model's own settings are the best: {plain(settings)}")
    else:
        gain = 100 * (best.score - unchanged.score)
        note(f"{gain:.1f} points above the model's own settings: {plain(settings)}")
