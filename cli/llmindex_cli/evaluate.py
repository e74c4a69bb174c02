"""``llmindex evaluate``: what an encoder is good for, measured on labelled data."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from llmindex_cli.console import Column, count, note, print_json, print_table
from llmindex_cli.encoder_options import encoder_options
from llmindex_cli.options import FILE, Command, IndexType, ModelType, SectionOption, json_option, seeds_option
from llmindex_cli.progress import progress
from llmindex_cli.scores import percent, print_scores, print_scores_json, title

if TYPE_CHECKING:
    from llmindex.encode.encoder import Encoder
    from llmindex_training.evaluate import Score
    from llmindex_training.evaluate_retrieval import IndexEvaluation

# What says where an encoder runs, and not what it is.
RUNTIME = ("dtype", "device", "trust_remote_code")

baseline_option = click.option(
    "--baseline",
    type=ModelType(),
    help="A second encoder, measured on the same texts with its own prompts and pooling: differences with 95 % "
    "bootstrap intervals.",
)
scores_json_option = json_option("one object a score, as a share of 1")


class Group(click.Group, Command):
    """Subcommands, and examples at the end of the help."""


@click.group(
    "evaluate",
    cls=Group,
    examples=(
        ("Score the clustering, and compare two encoders", "llmindex evaluate clustering topics.parquet"),
        ("", "llmindex evaluate clustering topics.parquet --model RUN/adapter --baseline default"),
        ("See what an index loses", "llmindex evaluate retrieval cranfield/ -i cranfield.llmindex"),
    ),
)
def command() -> None:
    """Measure an encoder on labelled data: your own Parquet files, or the tasks of MTEB."""


@command.command("clustering", cls=Command, short_help="V-measure and AMI of labelled texts.")
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Column with the labels.")
@click.option(
    "--sample",
    type=click.IntRange(min=2),
    metavar="N",
    default=2000,
    show_default=True,
    help="The most texts of a file; more are sampled, always the same.",
)
@seeds_option
@baseline_option
@scores_json_option
@encoder_options
def clustering(
    files: tuple[Path, ...],
    label_column: str,
    sample: int,
    seeds: int,
    baseline: str | None,
    as_json: bool,
    encoder: dict[str, Any],
) -> None:
    """Cluster the texts of each FILE (Parquet, columns text and label) and compare with their labels.

    V-measure and AMI are those of mini-batch k-means at the true number of classes, as MTEB does it, mean and standard
    deviation over seeds. HDBSCAN AMI and noise are what `llmindex cluster` gives by default.
    """
    from llmindex_training.evaluation_data import read_clustering, set_names

    sets = [
        read_clustering(file, name=name, label_column=label_column, sample=sample)
        for file, name in zip(files, set_names(files), strict=True)
    ]
    from llmindex_training.evaluate_clustering import evaluate_clustering

    _measure(partial(evaluate_clustering, sets=sets, seeds=seeds), encoder, baseline, as_json)


@command.command("retrieval", cls=Command, short_help="nDCG, recall and MRR; what an index loses.")
@click.argument("folders", nargs=-1, required=True, type=FILE, metavar="FOLDER...")
@click.option(
    "-k",
    "k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Hits that recall counts.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most queries, and the most documents, though all that are judged stay. Fewer are an easier task.",
)
@click.option(
    "-i",
    "--index",
    type=IndexType(),
    help="An index of the one FOLDER's corpus.parquet, measured with its own encoder: what model, quantiser and "
    "approximate search lose.",
)
@baseline_option
@scores_json_option
@encoder_options
@click.pass_context
def retrieval(
    ctx: click.Context,
    folders: tuple[Path, ...],
    k: int,
    sample: int | None,
    index: Path | None,
    baseline: str | None,
    as_json: bool,
    encoder: dict[str, Any],
) -> None:
    """Ask the queries of each FOLDER for its documents.

    It holds corpus.parquet (columns id, text, and title if there is one), queries.parquet (id, text) and
    qrels.parquet (query_id, doc_id, score: above 0 for a document that answers the query).

    Queries get the query prompt, documents theirs, a title before its text. Search is exact, unless an index is given.
    MRR looks at the first 100 hits.
    """
    from llmindex_training.evaluation_data import read_retrieval, set_names

    if index is not None:
        _check_index_alone(ctx, folders)
    sets = [
        read_retrieval(folder, name=name, sample=sample)
        for folder, name in zip(folders, set_names(folders), strict=True)
    ]
    from llmindex_training.evaluate_retrieval import evaluate_index, evaluate_retrieval

    if index is not None:
        from llmindex import api

        opened = api.open(index, **{name: encoder[name] for name in RUNTIME})
        with progress() as on_progress:
            evaluation = evaluate_index(opened, sets[0], k=k, on_progress=on_progress)
        _print_stages(evaluation, opened.store.manifest.encoder.spec.fingerprint(), as_json=as_json)
        return

    _measure(partial(evaluate_retrieval, sets=sets, k=k), encoder, baseline, as_json)


@command.command("sts", cls=Command, short_help="Spearman's correlation with scored sentence pairs.")
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="NAME",
    help="Rows that count, by the column split if there is one.",
)
@click.option("--sample", type=click.IntRange(min=2), metavar="N", help="The most pairs of a file; more are sampled.")
@baseline_option
@scores_json_option
@encoder_options
def sts(
    files: tuple[Path, ...],
    split: str,
    sample: int | None,
    baseline: str | None,
    as_json: bool,
    encoder: dict[str, Any],
) -> None:
    """Compare cosines with people's scores in each FILE: Parquet, columns sentence1, sentence2, score.

    Both sentences get the documents' prompt. The score is Spearman's correlation of ranks.
    """
    from llmindex_training.evaluation_data import read_sts, set_names

    sets = [
        read_sts(file, name=name, split=split, sample=sample)
        for file, name in zip(files, set_names(files), strict=True)
    ]
    from llmindex_training.evaluate_sts import evaluate_sts

    _measure(partial(evaluate_sts, sets=sets), encoder, baseline, as_json)


@command.command(
    "mteb",
    cls=Command,
    short_help="Tasks and benchmarks of the mteb package.",
    examples=(("Two tasks", "llmindex evaluate mteb STSBenchmark TwentyNewsgroupsClustering.v2"),),
)
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Folder for MTEB's own result files; what is there for this encoder is not run again.",
)
@json_option("one object a task")
@encoder_options
def mteb(tasks: tuple[str, ...], output: Path | None, as_json: bool, encoder: dict[str, Any]) -> None:
    """Run tasks of the mteb package: each TASK is the name of a task or of a benchmark, such as "MTEB(eng, v2)".

    Queries get the query prompt, everything else the documents'. The tasks' data come from the Hugging Face hub.
    """
    scores = []
    try:
        with progress() as on_progress:
            # Here, as torch takes seconds to load: the terminal has a sign of life meanwhile.
            from llmindex_training.mteb_model import evaluate_mteb, find_tasks

            found = find_tasks(tasks)
            loaded = _load(encoder)
            for score in evaluate_mteb(loaded, found, results=output, on_progress=on_progress):
                scores.append(score)
                if as_json:
                    values = {"task": score.task, "type": score.type, "metric": score.metric, "score": score.score}
                    print_json(values | {"seconds": score.seconds, "encoder": loaded.spec.fingerprint()})
    finally:  # a task that fails, after hours perhaps, does not take the scores of those before it along
        if scores and not as_json:
            columns = [Column("task"), Column("type"), Column("metric"), Column("score", "right")]
            print_table(columns, [[each.task, each.type, title(each.metric), percent(each.score)] for each in scores])


def _measure(
    evaluate: "Callable[..., Sequence[Score]]", encoder: dict[str, Any], baseline: str | None, as_json: bool
) -> None:
    """Load one encoder or two, run an evaluation of given sets and print its scores."""
    with progress() as on_progress:
        one = _load(encoder)
        other = None if baseline is None else _load({"model": baseline} | {name: encoder[name] for name in RUNTIME})
        scores = evaluate(one, baseline=other, on_progress=on_progress)
    if as_json:
        print_scores_json(scores, one.spec.fingerprint(), other.spec.fingerprint() if other else None)
    else:
        print_scores(scores)


def _load(options: dict[str, Any]) -> "Encoder":
    from llmindex.encode.encoder import Encoder
    from llmindex.encode.settings import EncoderOptions

    return Encoder.from_options(EncoderOptions(**options))


def _check_index_alone(ctx: click.Context, folders: Sequence[Path]) -> None:
    """With an index there is one folder, and its encoder is given."""
    if len(folders) > 1:
        raise click.UsageError("An index is measured on one FOLDER, that of its corpus.", ctx)
    for parameter in ctx.command.params:
        given = parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        chosen = isinstance(parameter, SectionOption) and parameter.name not in RUNTIME
        if given and (chosen or parameter.name in ("baseline", "sample")):
            raise click.UsageError(
                f"An index is measured as it is, with its own encoder: leave out {parameter.opts[0]}.", ctx
            )


def _print_stages(evaluation: "IndexEvaluation", fingerprint: str, *, as_json: bool) -> None:
    names = {"model": "float32, exact", "stored": "as stored, exact", "index": "the index"}
    if as_json:
        for score in evaluation.scores:
            values = {"task": score.task, "metric": score.metric, "stage": score.stage, "score": score.score}
            print_json(values | {"loss": score.loss, "units": evaluation.queries, "encoder": fingerprint})
    else:
        rows: dict[str, list[str]] = {}
        for score in evaluation.scores:
            row = rows.setdefault(score.stage, [names[score.stage]])
            row += [percent(score.score), "" if score.loss is None else percent(-score.loss, signed=True)]
        metrics = list(dict.fromkeys(score.metric for score in evaluation.scores))
        titles = [each for metric in metrics for each in (title(metric), "change")]
        print_table([Column("stage"), *(Column(each, "right") for each in titles)], list(rows.values()))
        note(f"Queries: {evaluation.queries:,}. Documents: {evaluation.documents:,}.")
    if evaluation.absent:
        note(f"{count(evaluation.absent, 'judged documents')} are not in the index, and count as not found.")
