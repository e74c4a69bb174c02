"""How scores are shown: tables in percent for people, shares for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmindex_cli.console import Column, print_json, print_table

if TYPE_CHECKING:
    from llmindex_training.evaluate import Score

TITLES = {
    "v_measure": "V-measure",
    "ami": "AMI",
    "hdbscan_ami": "HDBSCAN AMI",
    "hdbscan_noise": "noise",
    "ndcg@10": "nDCG@10",
    "mrr": "MRR",
    "spearman": "Spearman",
}


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share as people read scores: ``56.1``; ``+2.0`` for a difference."""
    if share is None:
        return "-"
    # Adding zero turns -0.0 into 0.0.
    rounded = round(100 * share, 1) + 0.0
    return f"{rounded:+.1f}" if signed else f"{rounded:.1f}"


def title(metric: str) -> str:
    """A metric's name for people."""
    return TITLES.get(metric, metric)


def print_scores_json(scores: "Sequence[Score]", encoder: str, baseline: str | None) -> None:
    """One object a score; what is not known is left out.

    Args:
        scores: what was measured.
        encoder: fingerprint of the encoder.
        baseline: that of the other.
    """
    for score in scores:
        values = {key: value for key, value in asdict(score).items() if value is not None}
        print_json(values | {"encoder": encoder} | ({"baseline_encoder": baseline} if baseline else {}))


def print_scores(scores: "Sequence[Score]") -> None:
    """A line a task; where two encoders are compared, a line a score."""
    if scores[0].baseline is None:
        _print_tasks(scores)
    else:
        _print_comparison(scores)


def _print_tasks(scores: "Sequence[Score]") -> None:
    metrics = list(dict.fromkeys(score.metric for score in scores))
    columns = [Column("task"), *(Column(title(metric), "right") for metric in metrics), Column("of", "right")]
    tasks: dict[str, dict[str, Score]] = {}
    for score in scores:
        tasks.setdefault(score.task, {})[score.metric] = score
    rows = [
        [task, *(_with_std(row[metric]) for metric in metrics), f"{row[metrics[0]].units:,}"]
        for task, row in tasks.items()
    ]
    print_table(columns, rows)


def _with_std(score: "Score") -> str:
    # Two digits wide at least, so that the scores themselves stand below each other.
    return percent(score.score) + ("" if score.std is None else f" ± {100 * score.std:.1f}")


def _print_comparison(scores: "Sequence[Score]") -> None:
    columns = [
        Column("task"),
        Column("metric"),
        *(Column(name, "right") for name in ("score", "baseline", "difference", "95 % interval", "of")),
    ]
    rows = []
    for score in scores:
        interval = score.interval
        between = (
            "-" if interval is None else f"{percent(interval.low, signed=True)} … {percent(interval.high, signed=True)}"
        )
        rows.append(
            [
                score.task,
                title(score.metric),
                percent(score.score),
                percent(score.baseline),
                percent(score.difference, signed=True),
                between,
                f"{score.units:,}",
            ]
        )
    print_table(columns, rows)
