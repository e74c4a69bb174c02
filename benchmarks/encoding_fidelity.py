"""What 16 bits cost: cosine of each text's bfloat16 vector to its float32 one, and of our computation to transformers'.

Texts of mixed lengths, as in encoding_speed.py, by the embedded default model: as llmindex computes it, by transformers
in packed batches, and by transformers in padded ones, which models get whose attention cannot be replaced. Then the
V-measure of k-means over the five clustering sets, by both dtypes, twenty seeds each.

    python benchmarks/encoding_fidelity.py [--texts 300] [--labelled 500] [--model default]
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

from llmindex import Encoder
from llmindex.records import Vectors
from llmindex_training.evaluate_clustering import kmeans_v_measure
from llmindex_training.evaluation_data import read_clustering
from shared_data import CLUSTERING_SETS, clustering_set, data_folder

RESULTS = Path(__file__).parent / "results" / "encoding_fidelity.json"
SETS = ("agnews", "newsgroups20", "stackoverflow")
DTYPES = ("float32", "bfloat16")
SEEDS = 20


def cosines(a: Vectors, b: Vectors) -> dict[str, float]:
    """The lowest and the mean cosine of two vectors of the same text, in float64."""
    a64, b64 = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True) for vectors in (a, b))
    each = (a64 * b64).sum(1)
    return {"lowest": round(float(each.min()), 10), "mean": round(float(each.mean()), 10)}


def v_measure(encoder: Encoder, name: str, sample: int) -> float:
    """V-measure times 100 of a sample of a set."""
    labelled = read_clustering(data_folder() / f"clustering/{name}.parquet", sample=sample)
    return round(100 * kmeans_v_measure(encoder.encode(labelled.texts), labelled, SEEDS), 2)


def main() -> None:
    """Encode six times, print and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    texts = [text for name in SETS for text in clustering_set(name, arguments.texts // len(SETS)).texts]
    random.Random(0).shuffle(texts)
    vectors: dict[str, Vectors] = {}
    v_measures: dict[str, dict[str, float]] = {}
    for dtype in DTYPES:
        ours = Encoder.load(arguments.model, dtype=dtype)
        vectors[dtype] = ours.encode(texts)
        v_measures[dtype] = {name: v_measure(ours, name, arguments.labelled) for name in CLUSTERING_SETS}
        encoder = Encoder.load(arguments.model, dtype=dtype, engine="transformers")
        if not encoder.backbone.packs:
            raise SystemExit(f"{arguments.model} gets padded batches: there is nothing to compare")
        vectors[f"{dtype} packed"] = encoder.encode(texts)
        encoder.backbone.model.set_attn_implementation("sdpa")
        vectors[f"{dtype} padded"] = encoder.encode(texts)
    exact = vectors["float32 padded"]
    result = {
        "texts": len(texts),
        "prompt": encoder.spec.prompt,
        "pooling": encoder.spec.pooling,
        "cosine to float32, padded": {name: cosines(made, exact) for name, made in vectors.items()},
        "labelled texts of each set": arguments.labelled,
        "v_measure": v_measures,
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
