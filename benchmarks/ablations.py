"""What each part of the method is worth: short runs that differ in one thing, scored on labelled texts as they go.

Each run sees as many pairs as the others (one epoch of them: the published method's best comes early), under the
default's recipe, without averaging and whitening, but for what its name says. The score is the mean V-measure of
k-means over the five clustering sets, whose texts are cut as those of the pairs are. A run that was stopped goes on,
one that is finished is read.

    python benchmarks/default_adapter_pairs.py natural.parquet topics.parquet texts.parquet
    llmindex pairs texts.parquet -o synthetic.parquet --method instruct
    python benchmarks/ablations.py natural.parquet synthetic.parquet runs/ [name ...]
"""

import argparse
import json
import sys
from pathlib import Path

from llmindex.progress import Progress
from llmindex_training import recipe as recipes
from llmindex_training import trainer
from llmindex_training.evaluation_data import read_clustering
from llmindex_training.scoring import ClusteringScore
from shared_data import CLUSTERING_SETS, data_folder

RESULTS = Path(__file__).parent / "results" / "ablations.json"
SAMPLE = 500
PAIRS = 2400
"""That each run sees; a third of an hour on two cores."""

NATURAL, SYNTHETIC = "natural", "synthetic"


def settings_of(batch_size: int, *settings: str, steps: int | None = None) -> list[str]:
    """The recipe's changes for a batch size, with a score before, halfway and after."""
    steps = steps or PAIRS // batch_size
    return [
        f"optim.batch_size={batch_size}",
        f"optim.steps={steps}",
        f"optim.warmup_steps={max(2, steps // 10)}",
        f"optim.evaluate_every={max(1, steps // 2)}",
        "optim.average=0",
        "model.whitening=0",
        "data.held_out=0",
        *settings,
    ]


RUNS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "natural and synthetic pairs": ((NATURAL, SYNTHETIC), settings_of(120)),
    "natural pairs alone": ((NATURAL,), settings_of(120)),
    "synthetic pairs alone": ((SYNTHETIC,), settings_of(120)),
    "batches of 12": ((NATURAL, SYNTHETIC), settings_of(12)),
    "temperature 0.2": ((NATURAL, SYNTHETIC), settings_of(120, "loss.temperature=0.2")),
    "temperature 0.02": ((NATURAL, SYNTHETIC), settings_of(120, "loss.temperature=0.02")),
    "last token": ((NATURAL, SYNTHETIC), settings_of(120, "model.pooling=last")),
    "mean pooling": ((NATURAL, SYNTHETIC), settings_of(120, "model.pooling=mean")),
    "batches of 12, 400 steps": ((NATURAL, SYNTHETIC), settings_of(12, "optim.evaluate_every=25", steps=400)),
}


def tell(record: Progress) -> None:
    """A line on the terminal."""
    print(f"\r{record.done}/{record.total} {record.detail}    ", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Train what is not trained yet, print a table and save all scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("natural")
    parser.add_argument("synthetic")
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*", help=", ".join(RUNS))
    arguments = parser.parse_args()
    files = {NATURAL: arguments.natural, SYNTHETIC: arguments.synthetic}
    folder = data_folder() / "clustering"
    score = ClusteringScore([read_clustering(folder / f"{name}.parquet", sample=SAMPLE) for name in CLUSTERING_SETS])
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in arguments.names or RUNS:
        kinds, settings = RUNS[name]
        place = arguments.runs / name.replace(" ", "-").replace(",", "")
        recipe = recipes.load("default", settings)
        report = trainer.train([files[kind] for kind in kinds], place, recipe, score=score, on_progress=tell)
        results[name] = {step: round(100 * value, 1) for step, value in report.scores.items()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"\r{name}: {results[name]}", flush=True)


if __name__ == "__main__":
    main()
