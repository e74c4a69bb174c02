"""What the tests of training share: a file of pairs, and a recipe that takes a second on the tiny model."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmindex_training import recipe as recipes
from llmindex_training.recipe import Recipe

TOPICS = ("goal", "vote", "planet", "bread")
COUNT = 80


def write_pairs(path: Path, count: int = COUNT, **columns: list[str | None]) -> Path:
    """Pairs of two sources, each side different from all others; further columns as given."""
    texts = [f"The {TOPICS[n % 4]} of the day is number {n}." for n in range(count)]
    pairs = [f"Number {n}: a {TOPICS[n % 4]}, once more" for n in range(count)]
    sources = ["even" if n % 2 == 0 else "odd" for n in range(count)]
    pq.write_table(pa.table({"text": texts, "text_pair": pairs, "source": sources, **columns}), path)
    return path


def tiny_recipe(model: Path, *settings: str) -> Recipe:
    """Twelve steps of eight pairs in several mini-batches, with dropout, a score every four steps."""
    fixed = (
        f"model.base='{model}'",
        "model.lora_dropout=0.1",
        "model.whitening=0",
        "data.held_out=16",
        "optim.batch_size=8",
        "optim.steps=12",
        "optim.evaluate_every=4",
        "optim.learning_rate=0.005",
        "optim.token_budget=300",
        "optim.dtype=float32",
        "optim.device=cpu",
    )
    return recipes.load("tiny-cpu", [*fixed, *settings])
