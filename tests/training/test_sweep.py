import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import Pooling
from llmindex.errors import StorageError, UsageError
from llmindex.progress import Progress
from llmindex_training.evaluate import Encoding
from llmindex_training.evaluate_clustering import evaluate_clustering
from llmindex_training.evaluate_retrieval import evaluate_retrieval
from llmindex_training.evaluate_sts import evaluate_sts
from llmindex_training.evaluation_data import EvaluationSet, LabelledTexts, RetrievalSet, SentencePairs
from llmindex_training.readings import Reader
from llmindex_training.sweep import Candidate, Grid, save_spec, sweep

TEXTS = [
    f"{'A story of cats' if n % 2 else 'The price of oil'} in {n * 37} words" + " and more" * (n % 5) for n in range(40)
]
LABELLED = LabelledTexts("labelled", TEXTS, np.arange(40) % 2, 2)
RETRIEVAL = RetrievalSet(
    "retrieval", [f"d{n}" for n in range(40)], TEXTS, [t[:12] for t in TEXTS[:10]], [{f"d{n}": 1} for n in range(10)]
)
PAIRS = SentencePairs("pairs", TEXTS[:20], TEXTS[5:25], np.random.default_rng(0).random(20))


@pytest.fixture
def options(tiny_model: Path) -> EncoderOptions:
    return EncoderOptions(model=str(tiny_model), device="cpu", dtype="float32")


def tried(candidates: list[Candidate]) -> list[Candidate]:
    """Those of the grid."""
    return [each for each in candidates if not each.unchanged]


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("layers", [(-1, 1, 0), (1, 0), (0,), (2, -2, -3)])
def test_readings_are_the_encoders_of_their_specs(
    layers: tuple[int, ...], attention: str, options: EncoderOptions, tiny_model: Path
) -> None:
    from dataclasses import replace

    poolings: tuple[Pooling, ...] = ("last", "mean_text", "last_mean")
    reader = Reader(replace(options, attention=attention, dim=20), "cluster", poolings, layers)  # type: ignore[arg-type]
    found = reader.vectors(TEXTS, Encoding(40))
    assert set(found) == {
        (pooling, {2: -1, -2: 1, -3: 0}.get(layer, layer)) for pooling in poolings for layer in layers
    }
    for read, vectors in found.items():
        pooling, layer = read
        encoder = Encoder.load(
            str(tiny_model),
            prompt="cluster",
            pooling=pooling,
            layer=layer,
            attention=attention,
            dim=20,
            device="cpu",
            dtype="float32",
        )
        assert reader.spec(read) == encoder.spec
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=1e-5)


def test_the_layers_of_one_prompt_are_one_forward(options: EncoderOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = Encoder.token_states

    def counted(self: Encoder, tokens: object, batch: np.ndarray, **options: object) -> object:
        calls.append(len(batch))
        return forward(self, tokens, batch, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "token_states", counted)
    grid = Grid(("none", "eol"), ("last", "mean", "max"), (-1, 1, 0))
    # The nineteenth is the model with its own settings.
    assert len(sweep(options, [LABELLED], grid, seeds=1)) == 19
    assert sum(calls) == 3 * len(TEXTS)


def test_layers_above_the_highest_are_not_run(options: EncoderOptions) -> None:
    from dataclasses import replace

    reader = Reader(options, "none", ("mean",), (1, 0))
    assert reader._count == 1
    # Their specs are the same as if they had been.
    whole = Reader(options, "none", ("mean",), (-1, 1))
    assert reader.spec(("mean", 1)) == whole.spec(("mean", 1)) == replace(whole.spec(("mean", -1)), layer=1)


def test_hooks_are_gone_afterwards(options: EncoderOptions) -> None:
    reader = Reader(options, "none", ("mean",), (-1, 1, 0))
    reader.vectors(TEXTS[:3], Encoding(3))
    assert not any(module._forward_hooks for module in reader._encoder.backbone.model.modules())


def test_scores_are_those_of_the_evaluations(options: EncoderOptions, tiny_model: Path) -> None:
    sets: list[EvaluationSet] = [LABELLED, RETRIEVAL, PAIRS]
    grid = Grid(("none", "cluster"), ("eos", "mean"), (-1, 1), ("query", "none"))
    candidates = sweep(options, sets, grid, seeds=2)
    assert len(candidates) == 16 + 1
    assert [each.score for each in candidates] == sorted((each.score for each in candidates), reverse=True)
    for each in candidates[::3]:
        encoder = Encoder.load(
            str(tiny_model),
            prompt=each.prompt,
            query_prompt=each.query_prompt,
            pooling=each.pooling,
            layer=each.layer,
            max_tokens=each.spec.max_tokens,
            device="cpu",
            dtype="float32",
        )
        assert each.spec == encoder.spec
        assert each.score == pytest.approx(np.mean(list(each.scores.values())))
        assert each.scores == pytest.approx(
            {
                "labelled": evaluate_clustering(encoder, [LABELLED], seeds=2)[0].score,
                "retrieval": evaluate_retrieval(encoder, [RETRIEVAL])[0].score,
                "pairs": evaluate_sts(encoder, [PAIRS])[0].score,
            },
            abs=0.02,
        )


def test_long_texts_are_cut_as_the_written_encoder_cuts_them(options: EncoderOptions) -> None:
    """The longest prompt leaves least room, whichever texts it is around."""
    long = "Which of these texts has the answer to the question that is asked? " * 6 + "{text}"
    documents = [f"{' '.join(TEXTS[n:] + TEXTS[:n])} Number {n}." for n in range(12)]
    queries = [text[-400:] for text in documents]
    judged = RetrievalSet("long", [f"d{n}" for n in range(12)], documents, queries, [{f"d{n}": 1} for n in range(12)])
    for each in tried(sweep(options, [judged], Grid(("none",), ("mean",), (-1,), ("none", long)), seeds=1)):
        encoder = Encoder.from_spec(each.spec, device_name="cpu", dtype="float32")
        assert each.score == pytest.approx(evaluate_retrieval(encoder, [judged])[0].score, abs=1e-9)
    with pytest.raises(UsageError, match="leaves no room for a text"):
        sweep(options, [judged], Grid(("none",), ("mean",), (-1,), ("Query " * 600 + "{text}",)))


def test_queries_get_the_prompt_unless_told_otherwise(options: EncoderOptions) -> None:
    (candidate,) = tried(sweep(options, [RETRIEVAL], Grid(("eol",), ("last",)), seeds=1))
    assert candidate.query_prompt == "eol"
    assert candidate.spec.query_prompt == candidate.spec.prompt
    (candidate,) = tried(sweep(options, [LABELLED], Grid(("eol",), ("last",), query_prompts=("none",)), seeds=1))
    assert candidate.query_prompt is None


def test_what_is_named_twice_is_tried_once(options: EncoderOptions) -> None:
    assert len(tried(sweep(options, [PAIRS], Grid(("none", "none"), ("mean", "mean"), (-1, 2, -1))))) == 1


@pytest.mark.parametrize("query_prompts", [("none",), ()])
@pytest.mark.parametrize("sets", [[LABELLED, PAIRS], [RETRIEVAL, PAIRS]], ids=["no queries", "queries"])
def test_the_models_own_settings_stand_in_the_table_once(
    sets: list[EvaluationSet], query_prompts: tuple[str, ...], options: EncoderOptions
) -> None:
    found = sweep(options, sets, Grid(("cluster",), ("weighted_mean",), query_prompts=query_prompts), seeds=1)
    (unchanged,) = (each for each in found if each.unchanged)
    encoder = Encoder.from_options(options)
    assert unchanged.spec == encoder.spec
    assert unchanged.prompt == "cluster"
    assert unchanged.scores["pairs"] == evaluate_sts(encoder, [PAIRS])[0].score
    # By itself, an unadapted model asks without a prompt.
    assert len(found) == (2 if sets[0] is RETRIEVAL and not query_prompts else 1)


def test_a_whitening_counts_in_the_models_own_settings(tmp_path: Path) -> None:
    options = EncoderOptions(device="cpu", dtype="float32")
    found = sweep(options, [PAIRS], Grid(("topic_word",), ("suffix_mean",)), seeds=1)
    assert [each.spec.whitened for each in found if each.unchanged] == [True]
    assert [each.spec.whitened for each in found if not each.unchanged] == [False]
    best = next(each for each in found if each.unchanged)
    assert (best.prompt, best.pooling) == ("topic_word", "suffix_mean")
    save_spec(best.spec, tmp_path / "encoder.json")
    assert Encoder.load(str(tmp_path / "encoder.json"), device="cpu").spec == best.spec


def test_progress_counts_every_forward(options: EncoderOptions) -> None:
    records: list[Progress] = []
    grid = Grid(("none", "eol"), ("eos", "mean"), (-1,), ("none",))
    sweep(options, [LABELLED, RETRIEVAL], grid, seeds=1, on_progress=records.append)
    # Two forwards, as "eos" needs its own, of two prompts over 80 documents and of one over 10 queries; and one more.
    assert records[-1].done == records[-1].total == 2 * (2 * 80 + 10) + 90
    assert records[-1].tokens > 0


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((("elo",), ("mean",), (-1,)), 'unknown prompt "elo"; did you mean "eol"'),
        ((("none",), ("men",), (-1,)), 'unknown pooling "men"; one of'),
        (((), ("mean",), (-1,)), "--prompts names none"),
        ((("none",), ("mean",), ()), "--layers names none"),
        ((("none",), ("mean",), (-1,), ("x",)), 'unknown prompt "x"'),
    ],
)
def test_a_grid_is_checked_first(parts: tuple[object, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Grid(*parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [(3,), (-4,), (-1, 9)])
def test_layers_that_are_not_there(layers: tuple[int, ...], options: EncoderOptions) -> None:
    with pytest.raises(UsageError, match=r"^--layers -?\d is out of range: the model has layers 0 \(embeddings\) to 2"):
        sweep(options, [PAIRS], Grid(("none",), ("mean",), layers))


def test_a_dim_that_a_pooling_lacks(options: EncoderOptions) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="--dim 40 is larger than the 32 values that pooling mean gives"):
        sweep(replace(options, dim=40), [PAIRS], Grid(("none",), ("last_mean", "mean")))


def test_the_winner_can_be_loaded(options: EncoderOptions, tmp_path: Path) -> None:
    best, *_ = tried(sweep(options, [PAIRS], Grid(("none", "eol"), ("last", "last_mean"), (-1, 1))))
    file = tmp_path / "encoder.json"
    save_spec(best.spec, file)
    loaded = Encoder.load(str(file), dtype="float32")
    assert loaded.spec == best.spec
    assert evaluate_sts(loaded, [PAIRS])[0].score == pytest.approx(best.score, abs=1e-4)
    assert json.loads(file.read_text())["layer"] == best.layer
    with pytest.raises(StorageError):
        save_spec(best.spec, tmp_path / "nowhere" / "encoder.json")


def test_states_of_a_batch_alone_are_held(options: EncoderOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    reader = Reader(options, "none", ("mean",), (-1, 1))
    encoder = reader._encoder
    encoder.placement = replace(encoder.placement, token_budget=64)
    most = 0
    forward = Encoder.token_states

    def watched(self: Encoder, tokens: object, batch: np.ndarray) -> tuple[torch.Tensor, ...]:
        nonlocal most
        states = forward(self, tokens, batch)  # type: ignore[arg-type]
        most = max(most, states[0].shape[0] * states[0].shape[1])
        return states

    monkeypatch.setattr(Encoder, "token_states", watched)
    reader.vectors(TEXTS, Encoding(40))
    assert 0 < most <= 64


def test_reading_files_of_all_kinds(options: EncoderOptions, tmp_path: Path) -> None:
    from llmindex_training.evaluation_data import read_any

    pq.write_table(pa.table({"text": TEXTS, "label": [str(n % 2) for n in range(40)]}), tmp_path / "l.parquet")
    pairs = {"sentence1": TEXTS[:9], "sentence2": TEXTS[1:10], "score": list(range(9))}
    pq.write_table(pa.table(pairs), tmp_path / "p.parquet")
    sets = [read_any(tmp_path / "l.parquet"), read_any(tmp_path / "p.parquet")]
    (candidate,) = tried(sweep(options, sets, Grid(("none",), ("mean",)), seeds=1))
    assert set(candidate.scores) == {"l", "p"}
