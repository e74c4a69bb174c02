"""Training as a Python program asks for it: what it hands over, and what it gets back as it was."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmindex import Encoder, EncoderOptions
from llmindex.errors import RecipeError, UsageError
from llmindex.progress import ProgressCallback
from llmindex.records import Vectors
from llmindex_training import evaluation_data, mining, trainer
from llmindex_training import pairs as pair_files
from llmindex_training import recipe as recipes
from llmindex_training.augment import make_pairs
from llmindex_training.evaluate import Role
from llmindex_training.evaluate_clustering import evaluate_clustering
from llmindex_training.evaluate_retrieval import evaluate_retrieval
from llmindex_training.evaluate_sts import evaluate_sts
from llmindex_training.evaluation_data import EvaluationSet, LabelledTexts, RetrievalSet, SentencePairs
from llmindex_training.methods import PairsOptions
from llmindex_training.recipe import Loss, Optim, Recipe
from llmindex_training.sweep import Grid, sweep
from tests.training_runs import COUNT, tiny_recipe, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def test_a_recipe_put_together_in_python_is_one_of_a_file(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    plain = tiny_recipe(tiny_model, "optim.steps=2")
    numbers: dict[str, Any] = {"steps": np.int64(2), "learning_rate": np.float32(0.25), "batch_size": np.int32(8)}
    lists: dict[str, Any] = {"matryoshka": [8, np.int64(16)]}
    recipe = replace(plain, optim=replace(plain.optim, **numbers), loss=replace(plain.loss, **lists))
    report = trainer.train(pairs, tmp_path / "run", recipe)
    kept = recipes.load(str(tmp_path / "run" / "recipe.toml"))
    assert (kept.optim.learning_rate, kept.loss.matryoshka) == (0.25, (8, 16))
    assert not report.complete_before
    assert trainer.train(pairs, tmp_path / "run", recipe).complete_before


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(optim=Optim(steps=-3)), "^recipe of this call: optim.steps must not be negative, not -3$"),
        (Recipe(optim=Optim(warmup_steps=0.5)), "optim.warmup_steps must be a whole number, not 0.5$"),  # type: ignore[arg-type]
        (Recipe(optim=Optim(schedule="liner")), 'optim.schedule is "liner", not one of linear, cosine, constant$'),  # type: ignore[arg-type]
        (Recipe(loss=Loss(temperature=0.0)), "loss.temperature must be at least 0.001, not 0.0$"),
        ("tiny-cpu", "^a recipe is what recipe.load gives, not str$"),
    ],
)
def test_a_recipe_put_together_in_python_is_checked(pairs: Path, tmp_path: Path, recipe: Any, why: str) -> None:  # noqa: ANN401
    with pytest.raises(RecipeError, match=why):
        trainer.train(pairs, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_pairs_files_in_whatever_holds_them(pairs: Path, tmp_path: Path) -> None:
    held: list[str | Path | Iterable[str | Path]] = [pairs, str(pairs), [str(pairs)], (path for path in [pairs])]
    assert [len(pair_files.read(files)) for files in held] == [COUNT] * 4
    table = pq.read_table(pairs)
    frame = pytest.importorskip("pandas").DataFrame()
    others: list[tuple[Any, str]] = [(table, "Table"), (frame, "DataFrame"), ([7], "int")]
    for none, kind in others:
        with pytest.raises(UsageError, match=rf"^pairs are Parquet files, not {kind}; write them to one first$"):
            pair_files.read(none)
    with pytest.raises(UsageError, match=r"^no pairs are named; name a Parquet file$"):
        mining.mine([], tmp_path / "x", tmp_path / "out.parquet")


@dataclass
class Falling:
    """A score of someone's own."""

    values: list[Any]
    identity: str = "falling"

    def __call__(self, encoder: Encoder) -> float:
        value: float = self.values.pop(0)
        return value


def test_a_score_of_numpys(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    score = Falling([np.float32(0.5), np.float64(0.25), np.int64(0)])
    report = trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=8"), score=score)
    assert (report.scores, report.kept_steps) == ({0: 0.5, 4: 0.25, 8: 0.0}, (4,))


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan")])
def test_a_score_that_compares_nothing(value: float, pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the score \(falling\) is (nan|-inf): checkpoints are compared by finite"):
        trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model), score=Falling([value] * 9))
    assert not (tmp_path / "run").exists()


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - a program may


def test_a_programs_random_numbers_stay_its_own(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    wanted = [drawn(), drawn()]
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])
    trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=2"))
    assert drawn() == wanted[0]
    with pytest.raises(UsageError):
        trainer.train(pairs, tmp_path / "other", tiny_recipe(tiny_model), score=Falling([0.5, math.nan]))
    assert drawn() == wanted[1]


TEXTS = [f"The {topic} of day {n}" for n in range(6) for topic in ("goal", "vote")]
LABELLED = LabelledTexts("labelled", TEXTS, np.arange(12) % 2, 2)
JUDGED = RetrievalSet("judged", [f"d{n}" for n in range(12)], TEXTS, ["goal", "vote"], [{"d0": 1.0}, {"d1": 1.0}])
ALIKE = SentencePairs("alike", TEXTS, TEXTS[::-1], np.arange(12.0))
GRID = Grid(("none",), ("mean",))


def test_sets_from_a_generator(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), device="cpu", dtype="float32")
    options = EncoderOptions(str(tiny_model), device="cpu", dtype="float32")
    assert evaluate_clustering(encoder, iter([LABELLED])) == evaluate_clustering(encoder, [LABELLED])
    assert evaluate_retrieval(encoder, iter([JUDGED])) == evaluate_retrieval(encoder, [JUDGED])
    assert evaluate_sts(encoder, iter([ALIKE])) == evaluate_sts(encoder, [ALIKE])
    mixed: list[EvaluationSet] = [ALIKE, JUDGED]
    assert sweep(options, iter(mixed), GRID) == sweep(options, mixed, GRID)


@dataclass
class Drawn:
    """Vectors at random."""

    seed: int

    def encode(
        self, texts: Sequence[str], *, role: Role = "document", on_progress: ProgressCallback | None = None
    ) -> Vectors:
        vectors = np.random.default_rng(self.seed).normal(size=(len(texts), 4)).astype(np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def test_columns_of_pandas_count_by_their_place() -> None:
    """Those of a shuffled frame have the numbers that their rows once had, and are asked for by them."""
    pandas = pytest.importorskip("pandas")
    columns = {"text": TEXTS, "class": [0, 1, 1, 1] * 3, "score": range(12), "id": JUDGED.document_ids}
    frame = pandas.DataFrame(columns).sample(frac=1, random_state=0)
    texts, classes, scores, ids = (frame[name].to_numpy() for name in frame)
    labelled = [LabelledTexts("x", frame["text"], frame["class"], 2), LabelledTexts("x", list(texts), classes, 2)]
    alike = [
        SentencePairs("x", frame["text"], frame["text"][::-1], frame["score"]),
        SentencePairs("x", list(texts), list(texts[::-1]), scores.astype(np.float64)),
    ]
    held, plain = (evaluate_clustering(Drawn(0), [each], baseline=Drawn(1), seeds=1) for each in labelled)
    assert held == plain
    held, plain = (evaluate_sts(Drawn(0), [each], baseline=Drawn(1)) for each in alike)
    assert held == plain
    judged = [replace(JUDGED, document_ids=frame["id"]), replace(JUDGED, document_ids=list(ids))]
    held, plain = (evaluate_retrieval(Drawn(0), [each], baseline=Drawn(1)) for each in judged)
    assert held == plain


def test_sets_that_nothing_can_be_said_of(tiny_model: Path) -> None:
    """Scores by name would be those of the last of its name."""
    options, none = EncoderOptions(str(tiny_model), device="cpu", dtype="float32"), Encoder.__new__(Encoder)
    twice = r'^two sets have the name "labelled"; read them with different names$'
    of_all = r'^a set has the name "mean", which is that of the mean of all; give it another one$'
    wrong = [([LABELLED, LABELLED], twice), ([LABELLED, replace(LABELLED, name="mean")], of_all)]
    for sets, why in (*wrong, ([], "^no sets are named: there is nothing to score$")):
        with pytest.raises(UsageError, match=why):
            evaluate_clustering(none, sets)
        with pytest.raises(UsageError, match=why):
            sweep(options, sets, GRID)
    with pytest.raises(UsageError, match=r"^two sets have the name"):
        evaluate_sts(none, [ALIKE, replace(LABELLED, name="x"), ALIKE])  # type: ignore[list-item]
    for seeds, why in ((0, "at least 1"), (1.5, "a whole number")):
        with pytest.raises(UsageError, match=rf"^--seeds {seeds} must be {why}$"):
            evaluate_clustering(none, [LABELLED], seeds=seeds)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=rf"^--seeds {seeds} must be {why}$"):
            sweep(options, [LABELLED], GRID, seeds=seeds)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^-k 0 must be at least 1$"):
        evaluate_retrieval(none, [JUDGED], k=0)


def test_sets_are_read_by_the_names_of_files(tmp_path: Path) -> None:
    labelled, alike, judged = tmp_path / "labelled.parquet", tmp_path / "alike.parquet", tmp_path / "judged"
    pq.write_table(pa.table({"text": TEXTS, "label": ["a", "b"] * 6}), labelled)
    pq.write_table(pa.table({"sentence1": TEXTS, "sentence2": TEXTS, "score": range(12)}), alike)
    judged.mkdir()
    pq.write_table(pa.table({"id": ["d0"], "text": ["goal"]}), judged / "corpus.parquet")
    pq.write_table(pa.table({"id": ["q0"], "text": ["goal"]}), judged / "queries.parquet")
    pq.write_table(pa.table({"query_id": ["q0"], "doc_id": ["d0"], "score": [1]}), judged / "qrels.parquet")
    sample: Any = np.int64(4)
    for path, read in (
        (labelled, evaluation_data.read_clustering),
        (alike, evaluation_data.read_sts),
        (judged, evaluation_data.read_retrieval),
    ):
        sizes = {evaluation_data.read_any(each, sample=sample).size for each in (path, str(path))}
        assert sizes == {read(str(path), sample=sample).size} <= {4, 8, 2}
        with pytest.raises(UsageError, match=r"^--sample 2.5 must be a whole number$"):
            read(path, sample=2.5)  # type: ignore[arg-type]


def test_pairs_are_made_of_whatever_holds_a_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": TEXTS}), corpus)
    numbers: dict[str, Any] = {"variants": np.int64(2), "limit": np.int32(5), "seed": np.int64(7)}
    for number, sources in enumerate([corpus, iter([str(corpus)])]):
        options = PairsOptions(methods=("noise",), **numbers)
        assert make_pairs(sources, tmp_path / f"{number}.parquet", options).pairs > 0
    plain = make_pairs([corpus], tmp_path / "0.parquet", PairsOptions(methods=("noise",), variants=2, limit=5, seed=7))
    assert plain.complete_before
    frame: Any = pytest.importorskip("pandas").DataFrame({"text": TEXTS})
    with pytest.raises(UsageError, match=r"^a corpus is files or a pyarrow\.Table, not DataFrame;"):
        make_pairs(frame, tmp_path / "frame.parquet")
    for name, value, why in (("limit", 2.5, "a whole number"), ("variants", 0, "at least 1")):
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(UsageError, match=rf"^--{name} {value} must be {why}$"):
            make_pairs(corpus, tmp_path / "wrong.parquet", PairsOptions(methods=("noise",), **wrong))
