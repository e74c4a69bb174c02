"""What each part of the method is worth: short runs that differ in one thing, scored by topics and by likeness.

Each run starts from the bare model and sees as many pairs as the others (the published method's best comes early),
under the default's recipe, but for what its name says, without averaging and whitening. The scores are the mean
V-measure of k-means over the five clustering sets, and Spearman's correlation on sentence pairs; all texts are cut as
those of the pairs are. A run that was stopped goes on, one that is finished is read.

    python benchmarks/default_adapter_pairs.py natural.parquet topics.parquet texts.parquet
    llmindex pairs texts.parquet -o synthetic.parquet --method instruct
    python benchmarks/ablations.py natural.parquet synthetic.parquet runs/ [name ...]
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from llmindex import Encoder
from llmindex.progress import Progress
from llmindex_training import recipe as recipes
from llmindex_training import trainer
from llmindex_training.evaluate_sts import evaluate_sts
from llmindex_training.evaluation_data import LabelledTexts, SentencePairs, read_clustering, read_sts
from llmindex_training.scoring import ClusteringScore
from shared_data import CLUSTERING_SETS, data_folder

RESULTS = Path(__file__).parent / "results" / "ablations.json"
SAMPLE = 300
MAX_TOKENS = 32
PAIRS = 960
"""That each run sees; some five minutes on two cores."""

NATURAL, SYNTHETIC = "natural", "synthetic"
BOTH = (NATURAL, SYNTHETIC)


def settings_of(batch_size: int, *settings: str) -> list[str]:
    """The recipe's changes for a batch size."""
    steps = PAIRS // batch_size
    return [
        f"data.max_tokens={MAX_TOKENS}",
        "data.held_out=0",
        "model.whitening=0",
        f"optim.batch_size={batch_size}",
        f"optim.steps={steps}",
        f"optim.evaluate_every={steps}",
        "optim.warmup_steps=2",
        "optim.schedule=constant",
        "optim.average=0",
        f"optim.gradient_caching={str(batch_size > 48).lower()}",
        *settings,
    ]


RUNS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "natural and synthetic pairs": (BOTH, settings_of(48)),
    "natural pairs alone": ((NATURAL,), settings_of(48)),
    "synthetic pairs alone": ((SYNTHETIC,), settings_of(48)),
    # The others are of natural pairs, too.
    "batches of 12": ((NATURAL,), settings_of(12)),
    "batches of 120": ((NATURAL,), settings_of(120)),
    "temperature 0.2": ((NATURAL,), settings_of(48, "loss.temperature=0.2")),
    "temperature 0.02": ((NATURAL,), settings_of(48, "loss.temperature=0.02")),
    "last token": ((NATURAL,), settings_of(48, "model.pooling=last")),
    "mean of all tokens": ((NATURAL,), settings_of(48, "model.pooling=mean")),
}


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The texts that every run is scored on."""

    labelled: list[LabelledTexts]
    sentences: SentencePairs

    @classmethod
    def read(cls) -> "Yardstick":
        """From the evaluation data."""
        folder = data_folder()
        labelled = [read_clustering(folder / f"clustering/{name}.parquet", sample=SAMPLE) for name in CLUSTERING_SETS]
        return cls(labelled, read_sts(folder / "sts/stsb.parquet", sample=SAMPLE))

    def measure(self, encoder: Encoder) -> dict[str, float]:
        """V-measure and Spearman's correlation, times 100."""
        (likeness, *_) = evaluate_sts(encoder, [self.sentences])
        v_measure = ClusteringScore(self.labelled)(encoder)
        return {"v_measure": round(100 * v_measure, 1), "sts": round(100 * likeness.score, 1)}


def tell(record: Progress) -> None:
    """A line on the terminal."""
    print(f"\r{record.done}/{record.total} {record.detail}    ", end="", file=sys.stderr, flush=True)


def keep(file: Path, name: str, scores: dict[str, float]) -> None:
    """Add scores to the results that are there by now."""
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(results | {name: scores}, indent=1) + "\n", encoding="utf-8")
    print(f"\r{name}: {scores}", flush=True)


def main() -> None:
    """Train what is not trained yet, print a table and save all scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("natural")
    parser.add_argument("synthetic")
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*", help=", ".join(RUNS))
    arguments = parser.parse_args()
    files = {NATURAL: arguments.natural, SYNTHETIC: arguments.synthetic}
    yardstick = Yardstick.read()
    for name in arguments.names or RUNS:
        kinds, settings = RUNS[name]
        recipe = recipes.load("default", settings)
        place = arguments.runs / name.replace(" ", "-")
        report = trainer.train([files[kind] for kind in kinds], place, recipe, on_progress=tell)
        keep(RESULTS, name, yardstick.measure(Encoder.load(str(report.adapter), max_tokens=MAX_TOKENS)))


if __name__ == "__main__":
    main()
