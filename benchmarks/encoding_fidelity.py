"""What 16 bits cost: cosine of each text's bfloat16 vector to its float32 one, and of packed batches to padded ones.

Texts of mixed lengths, as in encoding_speed.py, by the embedded default model. Padded batches are those that models get
whose attention cannot be replaced: transformers' own attention, over padding.

    python benchmarks/encoding_fidelity.py [--texts 300] [--model default]
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

from llmindex import Encoder
from llmindex.records import Vectors
from shared_data import clustering_set

RESULTS = Path(__file__).parent / "results" / "encoding_fidelity.json"
SETS = ("agnews", "newsgroups20", "stackoverflow")


def cosines(a: Vectors, b: Vectors) -> dict[str, float]:
    """The lowest and the mean cosine of two vectors of the same text, in float64."""
    a64, b64 = (vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True) for vectors in (a, b))
    each = (a64 * b64).sum(1)
    return {"lowest": round(float(each.min()), 10), "mean": round(float(each.mean()), 10)}


def main() -> None:
    """Encode four times, print and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    texts = [text for name in SETS for text in clustering_set(name, arguments.texts // len(SETS)).texts]
    random.Random(0).shuffle(texts)
    vectors: dict[str, Vectors] = {}
    for dtype in ("float32", "bfloat16"):
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
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
