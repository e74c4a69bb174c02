"""``llmindex train``: adapt a model to your texts, from positive pairs."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmindex_cli.console import Column, count, duration, note, plain, print_facts, print_json, print_table, say
from llmindex_cli.options import FILE, Command, json_option
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex_training.reporting import TrainReport

# As many texts of each file as `llmindex evaluate clustering` takes by default.
SAMPLE = 2000


@click.command(
    "train",
    cls=Command,
    examples=(
        ("Train on generated pairs, then index with what came of it", "llmindex train pairs.parquet -o runs/mine"),
        ("", "llmindex build corpus.parquet -o adapted.llmindex --model runs/mine/adapter"),
        (
            "A trial of two or three minutes; another recipe with two keys changed",
            "llmindex train pairs.parquet -o runs/trial --recipe tiny-cpu",
        ),
        (
            "",
            "llmindex train pairs.parquet -o runs/paper --recipe paper --set optim.steps=100 --set model.pooling=mean",
        ),
        ("Keep the checkpoint that clusters best", "llmindex train a.parquet b.parquet -o runs/c --evaluate c.parquet"),
    ),
)
@click.argument("pairs", nargs=-1, required=True, type=FILE, metavar="PAIRS...")
@click.option(
    "-o",
    "--output",
    "run",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="RUN",
    help="Folder of the run; its adapter/ is what --model takes.",
)
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    metavar="NAME|FILE",
    help="How to train: default, paper (as published), tiny-cpu (a trial), or a TOML file.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a key of the recipe; may be repeated."
)
@click.option(
    "--evaluate",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Labelled texts (Parquet, columns text and label) to choose the checkpoint by, at their mean V-measure; may "
    "be repeated. [default: the mean reciprocal rank of held-out pairs]",
)
@click.option("--overwrite", is_flag=True, help="Start afresh where there is a run already.")
@json_option("one object")
def command(
    pairs: tuple[Path, ...],
    run: Path,
    recipe: str,
    settings: tuple[str, ...],
    evaluate: tuple[Path, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a LoRA adapter on PAIRS, Parquet files with the columns text and text_pair.

    The same command goes on where it was stopped, and ends with the same adapter. Every so many steps the encoder is
    scored, and the best checkpoint becomes RUN/adapter. RUN/recipe.toml lists every key of the recipe.
    """
    from llmindex_training import pairs as pair_files
    from llmindex_training import recipe as recipes
    from llmindex_training.evaluation_data import read_clustering, set_names

    chosen = recipes.load(recipe, settings)
    pair_files.check(pairs)
    named = zip(evaluate, set_names(evaluate), strict=True)
    labelled = [read_clustering(file, name=name, sample=SAMPLE) for file, name in named]
    with progress() as on_progress:
        # Not before the files have proved readable: torch and transformers take seconds to load.
        from llmindex_training.scoring import ClusteringScore
        from llmindex_training.trainer import train

        score = ClusteringScore(labelled) if labelled else None
        report = train(pairs, run, chosen, score=score, overwrite=overwrite, on_progress=on_progress)
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes that torchrun started, the first speaks
    if as_json:
        print_json(report.to_json())
        return
    if report.complete_before:
        note("This run was complete already; start it afresh with --overwrite, or train into another folder with -o.")
    _print(report, "V-measure" if evaluate else "MRR")
    note(f"Next: llmindex build CORPUS -o adapted.llmindex --model {shlex.quote(str(report.adapter))}")


def _print(report: "TrainReport", score: str) -> None:
    if report.scores:
        columns = [Column("step", "right"), Column(score, "right"), Column("")]
        rows = [
            [f"{step:,}", f"{score:.4f}", "kept" if step in report.kept_steps else ""]
            for step, score in report.scores.items()
        ]
        print_table(columns, rows)
        say("")
    steps = ", ".join(f"{step:,}" for step in report.kept_steps)
    kept = f"the mean of steps {steps}" if len(report.kept_steps) > 1 else f"that of step {steps}"
    facts = {
        "adapter": plain(str(report.adapter)),
        "pairs": f"{report.pairs:,}",
        "steps": f"{report.steps:,}, {kept} kept",
    }
    if report.tokens:
        facts["trained on"] = f"{count(report.tokens, 'tokens')}, {report.tokens_per_s:,.0f} tokens/s"
        facts["took"] = duration(report.seconds)
    print_facts(facts)
