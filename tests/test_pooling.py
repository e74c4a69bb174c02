"""Pooling against loops in plain NumPy, with padding on either side."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.encode.pooling import POOLERS, pooled_width, read_positions
from llmindex.encode.spec import POOLINGS, Pooling

Array = NDArray[np.float64]


def naive(pooling: str, states: Array, start: int, end: int) -> Array:
    """One text's pooled vector; ``states`` are its own tokens, ``start:end`` those of the text inside the prompt."""
    match pooling:
        case "last" | "eos":
            return np.array(states[-1])
        case "first":
            return np.array(states[0])
        case "mean":
            return np.array([column.sum() / len(column) for column in states.T])
        case "mean_text":
            part = states[start:end] if end > start else states
            return np.array([column.sum() / len(column) for column in part.T])
        case "weighted_mean":
            total = np.zeros(states.shape[1])
            for position, state in enumerate(states, start=1):
                total += position * state
            return total / sum(range(1, len(states) + 1))
        case "suffix_mean":
            part = states[end:] if end > start and end < len(states) else states[-1:]
            return naive("weighted_mean", part, 0, 0)
        case "max":
            return np.array([max(column) for column in states.T])
        case "last_mean":
            last, mean = states[-1], states.mean(0)
            return np.concatenate([last / np.linalg.norm(last), mean / np.linalg.norm(mean)])
    raise AssertionError(pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    extra=st.integers(0, 3),
)
def test_pooling_equals_a_loop(pooling: Pooling, side: str, lengths: list[int], seed: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    width = max(lengths) + extra
    hidden = rng.normal(size=(len(lengths), width, 4)).astype(np.float32)
    mask = np.zeros((len(lengths), width), np.int64)
    span = np.zeros_like(mask)
    expected = []
    for row, length in enumerate(lengths):
        offset = width - length if side == "left" else 0
        start, end = sorted(rng.integers(0, length + 1, size=2))
        mask[row, offset : offset + length] = 1
        span[row, offset + start : offset + end] = 1
        expected.append(naive(pooling, hidden[row, offset : offset + length].astype(np.float64), start, end))
    pooled = POOLERS[pooling](torch.from_numpy(hidden), torch.from_numpy(mask), torch.from_numpy(span))
    assert pooled.dtype == torch.float32
    assert pooled.shape == (len(lengths), pooled_width(pooling, 4))
    np.testing.assert_allclose(pooled.numpy(), np.array(expected), rtol=1e-4, atol=1e-5)
    read = read_positions(pooling, torch.from_numpy(mask), torch.from_numpy(span))
    assert not (read & (torch.from_numpy(mask) == 0)).any()
    hidden[~read.numpy()] = 7  # what is not read may be anything
    again = POOLERS[pooling](torch.from_numpy(hidden), torch.from_numpy(mask), torch.from_numpy(span))
    assert torch.equal(again, pooled)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_states_do_not_overflow(pooling: Pooling) -> None:
    hidden = torch.full((1, 64, 8), 60000.0, dtype=torch.float16)
    mask = torch.ones(1, 64, dtype=torch.int64)
    assert torch.isfinite(POOLERS[pooling](hidden, mask, mask)).all()
