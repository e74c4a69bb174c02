"""What a decoder of transformers turns out to be when it is loaded: how wide its states are, and what padding does."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from llmindex.encode.backbone import Backbone
from llmindex.encode.pack import Pack
from llmindex.encode.settings import EncoderOptions
from llmindex.errors import ModelError, UsageError
from llmindex_training.evaluate import Encoding
from llmindex_training.readings import Reader
from tests.test_packing import GROUPED, SIZES, TEXTS, load, make

# As OPT-350m: the embeddings, and what leaves the last layer, are narrower than what is between them.
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 16}


@pytest.mark.parametrize(("layer", "width"), [(-1, 16), (1, 32), (0, 16)])
def test_vectors_are_as_long_as_the_states_of_their_layer(
    tmp_path: Path, tiny_model: Path, layer: int, width: int
) -> None:
    encoder = load(make(tmp_path / "model", tiny_model, "opt", **NARROW), layer=layer, pooling="mean")
    assert encoder.spec.dim == width
    assert encoder.encode(TEXTS).shape == (len(TEXTS), width)


def test_layers_of_different_widths_are_not_read_together(tmp_path: Path, tiny_model: Path) -> None:
    folder = make(tmp_path / "model", tiny_model, "opt", **NARROW)
    options = EncoderOptions(model=str(folder), device="cpu", dtype="float32")
    apart = Reader(options, "none", ("mean",), (-1, 0))
    assert {vectors.shape for vectors in apart.vectors(TEXTS, Encoding(len(TEXTS))).values()} == {(len(TEXTS), 16)}
    reader = Reader(options, "none", ("mean",), (-1, 1))
    with pytest.raises(UsageError, match=r"^--layers 1: its states are of another shape than the last layer's"):
        reader.vectors(TEXTS, Encoding(len(TEXTS)))


def test_a_layer_with_several_states_a_token_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the middle ones of decoders with several streams, such as DeepSeek V4, have."""
    plain = Backbone._states

    def several(self: Backbone, ids_BT: Tensor, mask_BT: Tensor) -> dict[int, Tensor]:
        states = plain(self, ids_BT, mask_BT)
        return {layer: each if layer == -1 else each[:, :, None].repeat(1, 1, 4, 1) for layer, each in states.items()}

    monkeypatch.setattr(Backbone, "_states", several)
    assert load(tiny_model).encode(TEXTS).shape == (len(TEXTS), 32)
    with pytest.raises(ModelError, match=r"several states for each token of that layer; use --layer -1$"):
        load(tiny_model, layer=1)


@pytest.mark.parametrize("layer", [-1, 1])
def test_threads_get_the_states_of_their_own_texts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    encoder = load(tiny_model, layer=layer)
    expected = [encoder.encode([text]) for text in TEXTS]
    plain = Pack.unpack

    def slowly(self: Pack, hidden_1ND: Tensor) -> Tensor:
        time.sleep(0.02)  # others begin meanwhile
        return plain(self, hidden_1ND)

    monkeypatch.setattr(Pack, "unpack", slowly)
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        found = list(pool.map(lambda text: encoder.encode([text]), TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_window_that_is_in_the_masks_alone_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}
    folder = make(tmp_path / "model", tiny_model, "phimoe", **GROUPED, **experts, initializer_range=0.2)
    encoder = load(folder, pooling="last")
    assert not encoder.backbone.packs
    texts = [f"{word} and so on, to the end of a text that is longer than the window" for word in ("A", "The fox")]
    assert encoder.tokenize(texts).lengths.min() > 2 * experts["sliding_window"]
    # The last token has heard nothing of the first word, which is beyond the windows of both layers.
    one, other = encoder.encode(texts)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_model_that_minds_padding_is_refused(tmp_path: Path, tiny_model: Path, attention: str) -> None:
    """Llama 4's chunks stay causal, but where they need no mask, as for a short text alone."""
    config: dict[str, Any] = GROUPED | {"head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2}
    config |= {"attention_chunk_size": 16, "layer_types": ["chunked_attention", "full_attention"]}
    folder = make(tmp_path / "model", tiny_model, "llama4_text", **config, initializer_range=0.2)
    if attention == "causal":
        assert load(folder, attention=attention).encode(TEXTS).shape == (len(TEXTS), SIZES["hidden_size"])
    else:
        with pytest.raises(ModelError, match=r"does not leave out padding .* or --attention causal$"):
            load(folder, attention=attention)
