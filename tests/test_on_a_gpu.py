"""What runs on a GPU, on one that is pretended: the vectors are a CPU's, and nobody waits for it in between."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llmindex.encode.encoder import Encoder
from tests.pretend_gpu import pretend_gpu

# Few words, many, none; of more lengths than attention would compute one by one.
TEXTS = [
    "hello world",
    "",
    "a longer text about rivers and mountains " * 9,
    *(f"number {i} " * i for i in range(1, 14)),
]
LEAST_COSINE = {"float32": 0.999999, "bfloat16": 0.999}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "question", "pooling": "mean"},  # whose beginning is computed once
        {"prompt": "cluster", "layer": 1},
        {"engine": "transformers"},
        {"engine": "transformers", "attention": "bidirectional"},
    ],
    ids=str,
)
def test_it_gives_the_vectors_of_a_cpu(tiny_model: Path, options: dict[str, object], half: bool) -> None:
    expected = Encoder.load(str(tiny_model), device="cpu", dtype="float32", **options).encode(TEXTS)
    with pretend_gpu(half=half):
        encoder = Encoder.load(str(tiny_model), **options)
        found = encoder.encode(TEXTS)
    assert str(encoder.placement) == f"cuda, {'bfloat16' if half else 'float32'}"
    assert (found * expected).sum(axis=1).min() > LEAST_COSINE[encoder.dtype]


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_it_is_waited_for_when_vectors_are_fetched_and_not_before(tiny_model: Path, engine: str) -> None:
    with pretend_gpu(half=True) as gpu:
        encoder = Encoder.load(str(tiny_model), engine=engine, prompt="cluster")
        encoder._budget = 128
        encoder.encode(TEXTS)  # tries the prompt's beginning
        gpu.waits.clear()
        batches: list[int] = []
        encoder.forward(encoder.tokenize(TEXTS), on_tokens=lambda texts, tokens: batches.append(gpu.waits.count("cpu")))
    assert len(batches) > 3
    assert set(batches) == {0}
    assert gpu.waits == ["cpu"] * len(batches)


def test_what_a_gpu_refuses_is_refused() -> None:
    with pretend_gpu(half=False) as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        sent = here.to("cuda")
        assert all(tensor.is_cuda for tensor in (there, sent, there + 1, sent[:2].clone(), torch.zeros_like(sent)))
        assert not here.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.functional.embedding(torch.tensor([1]), torch.ones(3, 3, device="cuda"))
        with pytest.raises(RuntimeError, match="indices"):
            here[torch.tensor([1], device="cuda")]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert not gpu.waits
        assert np.array_equal((there * 2 + torch.tensor(1)).cpu().numpy(), [3, 3, 3])
        assert float(there.sum()) == 3
        there[there > 0] = 0
        assert gpu.waits == ["cpu", "_local_scalar_dense", "index_put_"]
