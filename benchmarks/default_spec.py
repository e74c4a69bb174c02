"""Which prompt, query prompt, pooling and layer suit the unadapted default model best?

Each prompt is one pass over the texts; all poolings and layers come from it. Clustering is scored by V-measure of
mini-batch k-means at the true number of clusters (mean of three seeds), retrieval by nDCG@10. Texts are cut to 64
tokens for clustering and 96 for retrieval, so that one layer takes about ten minutes on two cores.

    python benchmarks/default_spec.py [layer ...]       # -1 by default; writes benchmarks/results/default_spec.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import ndcg_score, v_measure_score

from llmindex import Encoder
from llmindex.encode import batching
from llmindex.encode.pooling import POOLERS
from llmindex.encode.spec import Pooling
from llmindex.records import Vectors
from shared_data import CLUSTERING_SETS, RetrievalSet, clustering_set, retrieval_set

RESULTS = Path(__file__).parent / "results" / "default_spec.json"
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "mean_text", "weighted_mean", "last_mean")
CLUSTERING_PROMPTS = ("none", "cluster", "eol", "summary")
DOCUMENT_PROMPTS = ("none", "cluster", "eol")
QUERY_PROMPTS = ("none", "cluster", "eol", "query")
RETRIEVAL_SETS = ("xquad_en", "cranfield")

Scores = dict[str, dict[str, float]]


def all_poolings(encoder: Encoder, texts: Sequence[str]) -> dict[Pooling, Vectors]:
    """Vectors of the texts by each pooling, from one pass of the model."""
    tokens = encoder.tokenize(texts)
    made: dict[Pooling, list[Vectors]] = {pooling: [] for pooling in POOLINGS}
    order = []
    for batch in batching.plan(tokens.lengths, encoder.placement.token_budget):
        order.extend(batch.tolist())
        with torch.inference_mode():
            hidden, mask, span = encoder.token_states(tokens, batch)
            for pooling in POOLINGS:
                pooled = POOLERS[pooling](hidden, mask, span)
                made[pooling].append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    back = np.argsort(order)
    return {pooling: np.concatenate(parts)[back] for pooling, parts in made.items()}


def v_measure(vectors: Vectors, labels: list[str]) -> float:
    """Mean over three seeds, in percent."""
    k = len(set(labels))
    guesses = [MiniBatchKMeans(k, batch_size=512, n_init="auto", random_state=s).fit_predict(vectors) for s in range(3)]
    return 100 * float(np.mean([v_measure_score(labels, guess) for guess in guesses]))


def ndcg_at_10(queries: Vectors, documents: Vectors, data: RetrievalSet) -> float:
    """In percent."""
    grades = [[data.judged[query].get(document, 0) for document in data.document_ids] for query in data.query_ids]
    return 100 * float(ndcg_score(np.array(grades), queries @ documents.T, k=10))


def clustering_scores(layers: Sequence[int]) -> Scores:
    """V-measure by "prompt, pooling, layer" and set."""
    scores: Scores = {}
    sets = {name: clustering_set(name, 200) for name in CLUSTERING_SETS}
    for prompt in CLUSTERING_PROMPTS:
        for layer in layers:
            encoder = Encoder.load("default-base", prompt=prompt, layer=layer, max_tokens=64)
            for name, data in sets.items():
                for pooling, vectors in all_poolings(encoder, data.texts).items():
                    row = scores.setdefault(f"{prompt}, {pooling}, layer {layer}", {})
                    row[name] = round(v_measure(vectors, data.labels), 1)
    return scores


def retrieval_scores(layers: Sequence[int]) -> Scores:
    """nDCG@10 by "document prompt / query prompt, pooling, layer" and set."""
    scores: Scores = {}
    for layer in layers:
        for name in RETRIEVAL_SETS:
            data = retrieval_set(name, queries=60, documents=200)
            asked = {
                prompt: all_poolings(
                    Encoder.load("default-base", prompt=prompt, layer=layer, max_tokens=96), data.queries
                )
                for prompt in QUERY_PROMPTS
            }
            for prompt in DOCUMENT_PROMPTS:
                encoder = Encoder.load("default-base", prompt=prompt, layer=layer, max_tokens=96)
                for pooling, documents in all_poolings(encoder, data.documents).items():
                    for query_prompt, queries in asked.items():
                        row = scores.setdefault(f"{prompt} / {query_prompt}, {pooling}, layer {layer}", {})
                        row[name] = round(ndcg_at_10(queries[pooling], documents, data), 1)
    return scores


def best_first(scores: Scores) -> list[tuple[str, float, dict[str, float]]]:
    """Rows with their mean, the best first."""
    rows = [(name, round(float(np.mean(list(row.values()))), 1), row) for name, row in scores.items()]
    return sorted(rows, key=lambda row: -row[1])


def main() -> None:
    """Score everything, print the best and save all of it."""
    layers = [int(argument) for argument in sys.argv[1:]] or [-1]
    result = {
        "clustering_v_measure": best_first(clustering_scores(layers)),
        "retrieval_ndcg_10": best_first(retrieval_scores(layers)),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for title, rows in result.items():
        print(title)
        for name, mean, row in rows[:15]:
            print(f"  {mean:5.1f}  {name:50s} {row}")


if __name__ == "__main__":
    main()
