"""Whitening: fitted as the formula says, part of an adapter's identity, applied only where it was fitted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from llmindex.encode import adapter as adapters
from llmindex.encode.encoder import Encoder
from llmindex.encode.spec import EncoderSpec
from llmindex.encode.whitening import Whitening
from llmindex.errors import AdapterError, SpecMismatch
from tests.test_adapter import TEXTS, make_adapter

SENTENCES = [
    f"Sentence {n} is about {('bread', 'votes', 'planets', 'goals')[n % 4]}, and {n * n} more." for n in range(80)
]


def make_whitened(base: Path, folder: Path, dim: int, pooling: str = "last") -> Path:
    """An adapter with an encoder.json and a whitening, as training leaves them."""
    make_adapter(base, folder)
    plain = Encoder.load(str(folder), prompt="cluster", pooling=pooling, max_tokens=20, dtype="float32")
    Whitening.fit(plain.encode(SENTENCES), dim).save(folder / adapters.WHITENING_NAME)
    spec = replace(plain.spec, dim=dim, whitened=True, adapter_sha256=adapters.read(folder).sha256)
    (folder / adapters.SPEC_NAME).write_text(json.dumps(spec.to_json()))
    return folder


def test_an_adapter_that_lost_its_encoder_json(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_whitened(tiny_model, tmp_path / "adapter", 8)
    (folder / adapters.SPEC_NAME).unlink()
    with pytest.raises(AdapterError, match=r"encoder.json is gone: it says with what prompt, pooling and whitening"):
        Encoder.load(str(folder))


def test_whoever_reads_the_adapter_reads_its_whitening(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    Whitening(torch.zeros(4), torch.eye(4)[:2]).save(tmp_path / "whitening.safetensors")
    assert (tmp_path / "whitening.safetensors").stat().st_mode == other.stat().st_mode


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float64)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_components_are_damped_by_the_root_of_their_deviation(seed: int, dim: int) -> None:
    chance = np.random.default_rng(seed)
    vectors = unit(chance.normal(size=(200, 8)) * np.geomspace(4, 1, 8) + chance.normal(size=8)).astype(np.float32)
    whitening = Whitening.fit(vectors, dim)
    made = (vectors - whitening.mean.numpy()) @ whitening.matrix.numpy().T
    variances = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)))[::-1][:dim]
    np.testing.assert_allclose(np.atleast_2d(np.cov(made.T)), np.diag(np.sqrt(variances)), atol=1e-4)
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(whitening(torch.from_numpy(3 * vectors)).numpy(), made, atol=1e-5)


def test_no_more_directions_than_are_known() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(40, 30))).astype(np.float32)
    assert Whitening.fit(vectors, 30).dim == 10
    flat = np.tile(unit(np.random.default_rng(1).normal(size=(4, 30))), (50, 1)).astype(np.float32)
    assert Whitening.fit(flat, 30).dim == 3
    assert torch.isfinite(Whitening.fit(np.tile(flat[:1], (9, 1)), 30).matrix).all()


def test_the_encoder_whitens(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_whitened(tiny_model, tmp_path / "adapter", dim=6)
    encoder = Encoder.load(str(folder), dtype="float32")
    spec = json.loads((folder / adapters.SPEC_NAME).read_text()) | {"whitened": False, "dim": 32}
    plain = Encoder.from_spec(EncoderSpec.from_json(spec), dtype="float32")
    whitening = Whitening.load(folder, 32)
    wanted = (plain.encode(TEXTS) - whitening.mean.numpy()) @ whitening.matrix.numpy().T
    np.testing.assert_allclose(encoder.encode(TEXTS), unit(wanted), atol=1e-5)
    assert (encoder.spec.dim, encoder.spec.whitened) == (6, True)
    again = Encoder.from_spec(EncoderSpec.from_json(json.loads(json.dumps(encoder.spec.to_json()))), dtype="float32")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    cut = Encoder.load(str(folder), dtype="float32", dim=4)
    np.testing.assert_allclose(cut.encode(TEXTS), unit(wanted[:, :4]), atol=1e-5)
    assert len({each.spec.fingerprint() for each in (encoder, plain, cut)}) == 3


def test_another_pooling_or_layer_is_not_whitened(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_whitened(tiny_model, tmp_path / "adapter", dim=6)
    for options in ({"pooling": "mean"}, {"layer": 1}):
        spec = Encoder.load(str(folder), **options).spec
        assert (spec.whitened, spec.dim) == (False, 32)
    assert Encoder.load(str(folder), prompt="eol").spec.whitened
    alone = make_adapter(tiny_model, tmp_path / "alone")
    assert "whitened" not in Encoder.load(str(alone)).spec.to_json()


def test_a_changed_whitening_is_another_adapter(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_whitened(tiny_model, tmp_path / "adapter", dim=6)
    spec = Encoder.load(str(folder)).spec
    Whitening.fit(np.eye(32, dtype=np.float32), 6).save(folder / adapters.WHITENING_NAME)
    with pytest.raises(SpecMismatch, match=r"adapter .* is not the one the vectors were made with"):
        Encoder.from_spec(spec)
    with pytest.raises(AdapterError, match="written for other adapter weights"):
        Encoder.load(str(folder))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (None, "whitening.safetensors is missing or damaged"),
        ({"mean": torch.zeros(32)}, "whitening.safetensors is missing or damaged"),
        ({"mean": torch.zeros(16), "matrix": torch.zeros(6, 16)}, "do not have 32 values"),
    ],
)
def test_a_damaged_whitening(
    tiny_model: Path, tmp_path: Path, tensors: dict[str, torch.Tensor] | None, why: str
) -> None:
    folder = make_whitened(tiny_model, tmp_path / "adapter", dim=6)
    file = folder / adapters.WHITENING_NAME
    file.unlink()
    if tensors is not None:
        save_file(tensors, file)
    spec = json.loads((folder / adapters.SPEC_NAME).read_text()) | {"adapter_sha256": adapters.read(folder).sha256}
    (folder / adapters.SPEC_NAME).write_text(json.dumps(spec))
    with pytest.raises(AdapterError, match=why) as caught:
        Encoder.load(str(folder))
    assert "\n" not in str(caught.value)
