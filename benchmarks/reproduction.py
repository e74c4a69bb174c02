"""The published comparison of prompts and aggregations (Roth et al., arXiv 2507.22729) on the embedded model.

Mean V-measure of mini-batch k-means at the true k over the five labelled sets, five seeds, 2,000 texts a set. The model
is the bare one for every prompt and pooling, then with each adapter that is named, which was trained with the prompt
`cluster` for the pooling before it. What a former call has scored is kept; delete the results to score afresh.

    python benchmarks/steps_against_score.py runs/last natural.parquet --steps 100
    python benchmarks/steps_against_score.py runs/mean natural.parquet --steps 100 --pooling mean
    python benchmarks/reproduction.py last=runs/last/checkpoints/checkpoint-100 mean=runs/mean/...
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import cast

from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import Pooling
from llmindex.progress import Progress
from llmindex_training.evaluation_data import read_clustering
from llmindex_training.sweep import Grid, sweep
from shared_data import CLUSTERING_SETS, data_folder

RESULTS = Path(__file__).parent / "results" / "reproduction.json"
PROMPTS = ("none", "eol", "cluster", "summary", "pcot", "question")
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "weighted_mean", "last_mean")


def tell(record: Progress) -> None:
    """A line on the terminal."""
    print(f"\r{record.done:,}/{record.total:,} texts    ", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Score what is not scored yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("adapters", nargs="*", metavar="POOLING=FOLDER")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--sample", type=int, default=2000)
    arguments = parser.parse_args()
    cut = {"sample": arguments.sample, "max_tokens": arguments.max_tokens}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"cut": cut, "scores": {}}
    if results["cut"] != cut:
        raise SystemExit(f"{RESULTS} holds scores of {results['cut']}: delete it, or ask for the same")
    folder = data_folder() / "clustering"
    sets = [read_clustering(folder / f"{name}.parquet", sample=arguments.sample) for name in CLUSTERING_SETS]
    rows: list[tuple[str, str | None, str, tuple[Pooling, ...]]] = [
        (f"default-base, {prompt}", None, prompt, POOLINGS) for prompt in PROMPTS
    ]
    for pooling, _, adapter in (each.partition("=") for each in arguments.adapters):
        rows.append((f"trained for {pooling}, cluster", adapter, "cluster", (cast("Pooling", pooling),)))
    for name, adapter, prompt, poolings in rows:
        if name in results["scores"]:
            continue
        options = EncoderOptions("default-base", adapter=adapter, max_tokens=arguments.max_tokens)
        found = sweep(options, sets, Grid((prompt,), poolings), on_progress=tell)
        results["scores"][name] = {
            each.pooling: {name: round(100 * score, 1) for name, score in {"mean": each.score, **each.scores}.items()}
            for each in found
            if (each.prompt, each.pooling) in itertools.product((prompt,), poolings)
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row, by_pooling in results["scores"].items():
        print(row, {pooling: scores["mean"] for pooling, scores in by_pooling.items()})


if __name__ == "__main__":
    main()
