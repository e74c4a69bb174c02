"""Attention of the pooled token: equal to what plain transformers gives, told apart by part, base beside adapted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmindex.corpus import Corpus
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import POOLINGS, Pooling
from llmindex.errors import MissingPackage, ModelError, UsageError
from llmindex.progress import Progress
from llmindex_training import attention, attention_plot
from llmindex_training.attention import AttentionReport, Shares, TokenAttention
from tests.test_adapter import make_adapter
from tests.test_packing import GROUPED, load, make

TEXTS = ["The quick brown fox.", "A vector index answers which of the stored documents lie nearest.", "fox"]
TEMPLATE = 'This sentence: "{text}" means in one word:'


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "adapter")


def plain(model: Path, ids: list[int], layer: int) -> np.ndarray:
    """One row's attention by transformers alone, mean over heads: ``(T, T)``."""
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        output = loaded(input_ids=torch.tensor([ids]), output_attentions=True)
    mean: np.ndarray = output.attentions[layer - 1][0].double().mean(dim=0).numpy()
    return mean


def expected(pooling: Pooling, square: np.ndarray, start: int, stop: int) -> np.ndarray:
    count = len(square)
    rows = {
        "last": [count - 1],
        "eos": [count - 1],
        "first": [0],
        "mean_text": range(start, stop),
        "weighted_mean": [row for row in range(count) for _ in range(row + 1)],
        "suffix_mean": [row for row in range(stop, count) for _ in range(row - stop + 1)],
        "last_mean": [*range(count), *([count - 1] * count)],
    }.get(pooling, range(count))
    mean: np.ndarray = square[list(rows)].mean(axis=0)
    return mean


def rows_of(encoder: Encoder, texts: list[str], layer: int = -1) -> list[np.ndarray]:
    """The pooled token's attention to each token of each text's row."""
    number = attention._layer(encoder, layer)
    return [row.attention for row in attention._rows(encoder, texts, number, "document")]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [1, 2])
def test_it_equals_plain_transformers(tiny_model: Path, pooling: Pooling, layer: int) -> None:
    encoder = Encoder.load(str(tiny_model), prompt=TEMPLATE, pooling=pooling, dtype="float32", engine="transformers")
    rows = rows_of(encoder, TEXTS, layer=layer)
    tokens = encoder.tokenize(TEXTS)
    for number, row in enumerate(rows):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]].tolist()
        square = plain(tiny_model, ids, layer)
        np.testing.assert_allclose(row, expected(pooling, square, *tokens.text_spans[number]), atol=1e-6)
        assert row.sum() == pytest.approx(1, abs=1e-5)


def test_the_encoder_is_as_it_was_before(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), dtype="float32", engine="transformers")
    kernel = encoder.backbone.model.config._attn_implementation
    before = encoder.encode(TEXTS)
    rows_of(encoder, TEXTS)
    assert encoder.backbone.model.config._attn_implementation == kernel
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


def test_a_text_beside_its_adaptation(tiny_model: Path, adapter: Path) -> None:
    options = EncoderOptions(str(adapter), prompt=TEMPLATE, pooling="last", dtype="float32", engine="transformers")
    stages: list[Progress] = []
    report = attention.of_text(options, "The quick brown fox.", on_progress=stages.append)
    bare = rows_of(
        Encoder.load(str(tiny_model), prompt=TEMPLATE, pooling="last", dtype="float32", engine="transformers"),
        ["The quick brown fox."],
    )[0]
    adapted = rows_of(Encoder.from_options(options), ["The quick brown fox."])[0]
    np.testing.assert_allclose([token.base for token in report.tokens], bare)
    np.testing.assert_allclose([token.adapted or 0.0 for token in report.tokens], adapted)
    assert np.abs(bare - adapted).max() > 1e-3
    assert "".join(token.token for token in report.tokens) == TEMPLATE.replace("{text}", "The quick brown fox.")
    assert "".join(token.token for token in report.tokens if token.part == "text") == "The quick brown fox."
    assert [token.part for token in report.tokens].count("first") == 1
    assert (report.pooled, report.layer, report.layers, report.heads) == ("the last token", 2, 2, 4)
    assert [(stage.stage, stage.done, stage.total) for stage in stages] == [("adapted", 1, 1), ("base", 1, 1)]
    assert report.adapted is not None
    assert report.change == pytest.approx(report.adapted.text_share - report.base.text_share)
    for shares, values in ((report.base, bare), (report.adapted, adapted)):
        assert shares.first == pytest.approx(values[0])
        assert shares.first + shares.prompt + shares.text == pytest.approx(1, abs=1e-5)
        assert shares.prompt_share + shares.text_share == pytest.approx(1)


def test_a_corpus_gives_the_mean_of_its_texts(adapter: Path) -> None:
    options = EncoderOptions(str(adapter), prompt="eol", pooling="last", dtype="float32", max_tokens=6)
    last: Any = np.int64(-1)
    singles = [attention.of_text(options, text, layer=last) for text in TEXTS[:2]]
    assert json.loads(json.dumps(singles[0].to_json()))["layer"] == 2
    table = pa.table({"text": [TEXTS[0], " ", *TEXTS[1:]]})
    with Corpus.open(table) as corpus:
        report = attention.of_corpus(options, corpus, limit=2)
    assert (report.texts, report.truncated, report.tokens) == (2, sum(single.truncated for single in singles), ())
    for part in attention.PARTS:
        mean = np.mean([getattr(single.base, part) for single in singles])
        assert getattr(report.base, part) == pytest.approx(mean, abs=1e-6)
    assert report.adapted is not None
    assert report.to_json()["adapted"]["text_share"] == report.adapted.text_share


def test_many_texts_keep_their_order(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(str(tiny_model), pooling="last", dtype="float32", engine="transformers")
    texts = [f"{'word ' * (number % 7)}number {number}" for number in range(20)]
    alone = [rows_of(encoder, [text])[0] for text in texts]
    monkeypatch.setattr(attention, "_WINDOW", 8)
    monkeypatch.setattr(attention, "_BATCH_BYTES", 100_000)
    for one, many in zip(alone, rows_of(encoder, texts), strict=True):
        np.testing.assert_allclose(one, many, atol=1e-6)


def test_bidirectional_attention_looks_ahead(tiny_model: Path) -> None:
    encoder = Encoder.load(
        str(tiny_model), pooling="first", attention="bidirectional", dtype="float32", engine="transformers"
    )
    causal = Encoder.load(str(tiny_model), pooling="first", dtype="float32", engine="transformers")
    assert (rows_of(encoder, TEXTS[:1])[0] > 0).all()
    assert rows_of(causal, TEXTS[:1])[0][1:].sum() == 0


def test_the_layers_below_a_pooled_layer_can_be_seen(tiny_model: Path) -> None:
    options = EncoderOptions(str(tiny_model), layer=1, pooling="last")
    assert attention.of_text(options, "fox").layer == 1
    with pytest.raises(UsageError, match="layers 1 to 1"):
        attention.of_text(options, "fox", layer=2)
    with pytest.raises(UsageError, match="no token attends"):
        attention.of_text(replace(options, layer=0), "fox")


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_a_layer_that_is_not_there(tiny_model: Path, layer: int) -> None:
    with pytest.raises(UsageError, match=f"--attention-layer {layer} is out of range.*layers 1 to 2"):
        attention.of_text(EncoderOptions(str(tiny_model)), "fox", layer=layer)


def test_an_empty_text(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="the text is empty"):
        attention.of_text(EncoderOptions(str(tiny_model)), " \n")


def report_of(count: int, *, adapted: bool) -> AttentionReport:
    tokens = tuple(
        TokenAttention(
            f" t{n}\n東$", "first" if n == 0 else "text" if n % 2 else "prompt", 0.1, 0.2 if adapted else None
        )
        for n in range(count)
    )
    shares = Shares(0.2, 0.3, 0.5)
    return AttentionReport("the last token", 2, 2, 4, 1, 0, shares, shares if adapted else None, tokens)


@pytest.mark.parametrize("adapted", [True, False])
def test_the_picture(tmp_path: Path, *, adapted: bool) -> None:
    report = report_of(9, adapted=adapted)
    canvas = attention_plot.figure(report)
    assert len(canvas.axes) == (2 if adapted else 1)
    bars = [patch for axes in canvas.axes for patch in axes.patches]
    assert len(bars) == 8 * len(canvas.axes)
    assert len({bar.get_facecolor() for bar in bars}) == 2
    assert canvas.axes[-1].get_xticklabels()[0].get_text() == "·t1⏎東$"
    path = tmp_path / "a.png"
    attention_plot.write_plot(path, report)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"is a \.png image"):
        attention_plot.check_path(tmp_path / "a.html")
    with pytest.raises(UsageError, match="there is no folder"):
        attention_plot.check_path(tmp_path / "none" / "a.png")
    with pytest.raises(UsageError, match="one text alone"):
        attention_plot.write_plot(tmp_path / "a.png", replace(report_of(3, adapted=False), tokens=()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install matplotlib"):
        attention_plot.check_path(tmp_path / "a.png")


def test_no_share_where_nothing_is_left() -> None:
    assert np.isnan(Shares(1.0, 0.0, 0.0).text_share)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        # transformers leaves it its kernel, beside which it tells an attention without its mask.
        ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, "kernel cannot be changed"),
        ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}, "has attention in 1 of its 2 layers alone"),
    ],
)
def test_a_model_that_tells_another_attention_is_refused(
    tmp_path: Path, tiny_model: Path, kind: str, config: dict[str, Any], why: str
) -> None:
    encoder = load(make(tmp_path / "model", tiny_model, kind, **config))
    vectors = encoder.encode(TEXTS)
    with pytest.raises(ModelError, match=why):
        rows_of(encoder, TEXTS, layer=1)
    np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)
