"""``llmindex cluster``: group the documents of an index."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex.cluster.options import DEFAULT_MIN_SAMPLES, REDUCTIONS, SELECTIONS, ClusterOptions
from llmindex.errors import UsageError
from llmindex.folder import CLUSTERS
from llmindex_cli.console import Column, count, duration, note, plain, print_json, print_table, say
from llmindex_cli.indexes import open_index
from llmindex_cli.labels import SUFFIXES, write_labels
from llmindex_cli.options import Command, Number, Size, index_option, json_option, output_option
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex.cluster.clustering import Clustering
    from llmindex.store.reader import VectorStore

LEAST_SIZE = 2
_DEFAULTS = ClusterOptions()
_COLUMNS = (
    Column("cluster", align="right"),
    Column("size", align="right"),
    Column("keywords", fit="rest"),
    Column("a central document", fit="rest"),
)


@click.command(
    "cluster",
    cls=Command,
    examples=(
        ("Groups, keywords, and a map to open in a browser", "llmindex cluster --plot map.html"),
        ("Fewer and larger groups, labels to a file", "llmindex cluster --min-cluster-size 50 -o labels.csv"),
        ("A second clustering beside the first, finer", "llmindex cluster --name fine --selection leaf"),
    ),
)
@index_option
@click.option(
    "--min-cluster-size",
    type=click.IntRange(min=LEAST_SIZE),
    metavar="N",
    help="The least documents that make a cluster. [default: a quarter of the root of all documents]",
)
@click.option(
    "--min-samples",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Neighbours that make a place dense, the document itself not counted. [default: {DEFAULT_MIN_SAMPLES}]",
)
@click.option(
    "--selection",
    type=click.Choice(SELECTIONS),
    default=_DEFAULTS.selection,
    show_default=True,
    help="The most persistent clusters of the tree, or its leaves: more and smaller ones.",
)
@click.option(
    "--reduce",
    type=click.Choice(REDUCTIONS),
    default=_DEFAULTS.reduce,
    show_default=True,
    help="Reduce the dimensions first; umap needs the package umap-learn.",
)
@click.option(
    "--assign-noise/--no-assign-noise",
    default=_DEFAULTS.assign_noise,
    show_default=True,
    help="Give documents that HDBSCAN calls noise to the cluster of their nearest neighbours.",
)
@click.option(
    "--assign-distance",
    type=Number(min=0),
    metavar="D",
    help="How far such a neighbour may be. [default: so far that nine in ten documents have one]",
)
@click.option(
    "--memory",
    type=Size(),
    metavar="SIZE",
    help="The most memory to take; what does not fit joins the clusters of a sample. [default: what is free]",
)
@click.option(
    "--name", default=_DEFAULTS.name, show_default=True, metavar="NAME", help="Name that the clustering is kept under."
)
@output_option(
    "--plot",
    suffixes=(".html", ".png"),
    multiple=True,
    help="Draw a map: map.html to explore, map.png to print; may be given twice.",
)
@output_option(
    "-o",
    "--output",
    suffixes=SUFFIXES,
    help="Write id, row, label and probability to a .parquet, .csv or .jsonl file.",
)
@json_option("one object")
def command(index: Path, plot: tuple[Path, ...], output: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Group the documents with HDBSCAN; each cluster gets keywords and a central document.

    Documents that belong to no cluster are noise, label -1.
    """
    if options["assign_distance"] is not None and not options["assign_noise"]:
        raise UsageError("--assign-distance is for --assign-noise: leave it or --no-assign-noise out")
    from llmindex.cluster import map as cluster_map
    from llmindex.cluster import saved

    for path in plot:
        cluster_map.check_path(path)  # before the clustering, which may take minutes, rather than after it
    opened = open_index(index)
    if not opened.store.count:
        raise UsageError(f"{index} holds no documents yet: run its build again")
    replaces = options["name"] in saved.names(opened.store)
    with progress() as on_progress:
        clustering = opened.cluster(on_progress=on_progress, **options)
        file = opened.path / CLUSTERS / f"{clustering.options.name}.parquet"
        if output is not None:
            write_labels(file, output)
        if plot:
            data = cluster_map.read(opened.store, clustering, on_progress)
            for path in plot:
                cluster_map.draw(path, data)
    if as_json:
        print_json(_summary(clustering, output or file))
    else:
        _print(clustering, opened.store)
        for written in filter(None, (output, *plot)):
            say(f"Wrote {plain(str(written))}")
    if not clustering.clusters:
        _note_none_found(len(clustering.labels), clustering.options, replaces)


def _note_none_found(documents: int, options: ClusterOptions, replaces: bool) -> None:
    size = options.min_cluster_size or LEAST_SIZE
    lost = f'; the clustering "{options.name}" that was there is replaced (--name keeps both)' if replaces else ""
    smaller = ": try a smaller --min-cluster-size" if size > LEAST_SIZE else ""
    if documents < 2 * LEAST_SIZE:
        note(f"Clusters take {2 * LEAST_SIZE} documents at least{lost}.")
    elif documents < 2 * size:  # the whole is never a cluster
        note(f"Clusters of {size:,} take {2 * size:,} documents at least{smaller}{lost}.")
    else:
        note(f"No {size:,} documents are dense enough to be a cluster{smaller}{lost}.")


def _summary(clustering: "Clustering", file: Path) -> Mapping[str, Any]:
    return {
        "documents": len(clustering.labels),
        "clusters": [
            {
                "label": cluster.label,
                "size": cluster.size,
                "keywords": cluster.keywords,
                "central_ids": cluster.central_ids,
            }
            for cluster in clustering.clusters
        ],
        "noise_share": clustering.noise_share,
        "name": clustering.options.name,
        "file": str(file),
        "seconds": clustering.seconds,
    }


def _print(clustering: "Clustering", store: "VectorStore") -> None:
    clusters = clustering.clusters
    if clusters:
        import numpy as np

        central = np.array([cluster.central_rows[0] for cluster in clusters], np.int64)
        texts = store.take(central, ["text"])["text"].to_pylist()
        print_table(
            _COLUMNS,
            [
                [str(cluster.label), f"{cluster.size:,}", ", ".join(cluster.keywords), text]
                for cluster, text in zip(clusters, texts, strict=True)
            ],
        )
        say("")
    noise = int((clustering.labels == -1).sum())
    # Of the documents in clusters, those that HDBSCAN itself called noise.
    share = clustering.assigned_share
    placed = (
        f", {round(share * len(clustering.labels)):,} more ({share:.1%}) placed by their neighbours" if share else ""
    )
    step = clustering.placement.step
    if step > 1:
        placed += f", 1 in {step} clustered and the others joined to these"
    say(
        f"{count(len(clusters), 'clusters')} of {count(len(clustering.labels), 'documents')}; noise "
        f"{count(noise, 'documents')} ({clustering.noise_share:.1%}){placed}; {duration(clustering.seconds)}; "
        f'kept as "{clustering.options.name}"'
    )
