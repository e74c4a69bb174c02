"""A prompt's beginning, computed once, against computing it for each text."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmindex.encode import llama, packing, ragged
from llmindex.encode.encoder import Encoder
from llmindex.encode.llama import Llama
from llmindex.encode.pack import Pack
from llmindex.encode.spec import POOLINGS
from llmindex.records import Vectors
from tests.pretend_gpu import varlen_attn
from tests.test_llama import MODELS, TEXTS, load, make

PROMPT = 'A sentence to be grouped with others like it: "{text}" means in one word:'


def shared(encoder: Encoder) -> list[tuple[int, ...]]:
    """The beginnings that were computed."""
    assert isinstance(encoder.decoder, Llama)
    return [ids for ids, beginning in encoder.decoder._shared.items() if beginning is not None]


def encode_plainly(folder: Path, **options: Any) -> Vectors:  # noqa: ANN401
    """Vectors of an encoder that was not told of its prompt's beginning."""
    encoder = load(folder, **options)
    assert isinstance(encoder.decoder, Llama)
    encoder.decoder._shared.clear()
    return encoder.encode(TEXTS)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_vectors_are_the_same(tiny_model: Path, pooling: str, layer: int) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "pooling": pooling, "layer": layer}
    encoder = load(tiny_model, **options)
    np.testing.assert_allclose(encoder.encode(TEXTS), encode_plainly(tiny_model, **options), atol=2e-6)
    # The first token is all that "first" reads: there is nothing to be computed after the beginning.
    assert len(shared(encoder)) == (pooling != "first")
    theirs = load(tiny_model, "transformers", **options)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_family_shares_its_beginning(tiny_model: Path, tmp_path: Path, name: str) -> None:
    kind, config = MODELS[name]
    folder = make(tmp_path / "model", tiny_model, kind, **config)
    encoder = load(folder, prompt=PROMPT)
    theirs = load(folder, "transformers", prompt=PROMPT)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    assert shared(encoder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loses_no_more_by_it(tiny_model: Path, dtype: str) -> None:
    exact = load(tiny_model, prompt=PROMPT).encode(TEXTS)
    lost = [
        1 - (vectors * exact).sum(1).min()
        for vectors in (
            load(tiny_model, prompt=PROMPT, dtype=dtype).encode(TEXTS),
            encode_plainly(tiny_model, prompt=PROMPT, dtype=dtype),
        )
    ]
    assert lost[0] < max(2 * lost[1], 1e-3)


def test_a_query_shares_its_own_beginning(tiny_model: Path) -> None:
    options = {"prompt": PROMPT, "query_prompt": "Instruct: find what answers it\nQuery: {text}"}
    encoder, theirs = load(tiny_model, **options), load(tiny_model, "transformers", **options)
    for role in ("document", "query"):
        np.testing.assert_allclose(encoder.encode(TEXTS, role=role), theirs.encode(TEXTS, role=role), atol=1e-5)
    assert len(shared(encoder)) == 2


def test_short_beginnings_and_bidirectional_attention_share_nothing(tiny_model: Path) -> None:
    for options in ({"prompt": '"{text}" is'}, {"prompt": PROMPT, "attention": "bidirectional"}):
        encoder = load(tiny_model, **options)
        encoder.encode(TEXTS)
        assert not shared(encoder)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    begun=st.lists(st.booleans(), min_size=8, max_size=8),
    kernel=st.sampled_from(["fused", "long", "products", "varlen", "flex"]),
)
def test_rows_that_begin_otherwise_or_end_early_are_computed_in_full(
    tiny_model: Path, lengths: list[int], begun: list[bool], kernel: str
) -> None:
    beginning = torch.tensor([7, 8, 9, 10, 11])
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(12, 300, mask_BT.shape, generator=torch.Generator().manual_seed(len(lengths)))
    for row, begins in zip(ids_BT, begun, strict=False):
        if begins:
            row[:5] = beginning[: len(row)]
    plain, sharing = (load(tiny_model).decoder for _ in range(2))
    sharing.share(beginning.tolist())
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        expected_BTD = plain(ids_BT * mask_BT, mask_BT)
        use(kernel, patch)
        states_BTD = sharing(ids_BT * mask_BT, mask_BT)
    real_BT = mask_BT.bool()
    torch.testing.assert_close(states_BTD[real_BT], expected_BTD[real_BT], rtol=1e-4, atol=1e-5)
    assert isinstance(sharing, Llama)
    computed = sharing._shared[tuple(beginning.tolist())] is not None
    assert computed == (min(lengths) > 5 and all(begun[: len(lengths)]))


def use(kernel: str, patch: pytest.MonkeyPatch) -> None:
    """Have attention computed in one of the five ways, whatever dtype, device and length would choose."""
    if kernel == "long":  # a mask of all queries by all keys is out of the question
        patch.setattr(packing, "_LONG", 1)
        patch.delattr(packing, "_causal")
    if kernel == "products":
        patch.setattr(packing, "_fused", lambda *args: packing._by_products(*args[:5]))
    if kernel == "varlen":
        from torch.nn.attention import varlen

        patch.setattr(ragged, "kernel", lambda *states: ragged.by_varlen)
        patch.setattr(varlen, "varlen_attn", varlen_attn)
    if kernel == "flex":
        patch.setattr(ragged, "kernel", lambda *states: ragged.by_flex)


def test_a_device_that_gives_other_states_shares_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llama, "_PROVEN", ())
    sound = load(tiny_model, prompt=PROMPT)
    expected = sound.encode(TEXTS)
    assert shared(sound)

    mix = packing.mix

    def forgetful(*heads: Tensor, before: object = None, **others: object) -> Tensor:
        return mix(*heads, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "mix", forgetful)
    broken = load(tiny_model, prompt=PROMPT)
    with caplog.at_level(logging.INFO, "llmindex"):
        vectors = broken.encode(TEXTS)
    assert not shared(broken)
    assert "computed anew for each text" in caplog.text
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_positions_go_on_after_the_beginning() -> None:
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0]])
    pack = Pack.of(mask_BT, mask_BT, torch.device("cpu"), before=4)
    assert pack.positions_1N.tolist() == [[4, 5, 6, 4]]
    first_KPC = torch.full((1, 4, 1), -1.0)
    own_KNC = torch.arange(4.0).view(1, 4, 1)
    keys, values = ragged.interleaved((first_KPC, first_KPC - 1), (own_KNC, own_KNC + 10), pack)
    assert values[0, :, 0].tolist() == [-2, -2, -2, -2, 10, 11, 12, -2, -2, -2, -2, 13]
    assert keys[0, :, 0].tolist() == [-1, -1, -1, -1, 0, 1, 2, -1, -1, -1, -1, 3]
