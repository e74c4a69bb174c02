"""Teach an encoder to give the beginning of a long text as much weight as the whole of it.

An encoder that was trained on short texts drowns what a long one begins with, which is most often what it is about: on
cranfield, the mean of the vectors of a document and of its first 96 tokens finds more than either does. Here the
encoder learns to give that mean at once, from itself as its own teacher. Short texts are to keep the vectors they have,
in equal numbers beside the long ones, so that nothing else changes. The loss is one minus the cosine, in the space of
the encoder's whitening; what comes out is not whitened.

    python scripts/weigh_beginnings.py weighed/ averaged/ lengths.parquet    # half an hour on two cores

The texts are those of `benchmarks/default_adapter_pairs.py`.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from llmindex import Encoder
from llmindex.encode import batching
from llmindex.encode.whitening import Whitening
from llmindex.records import Vectors
from llmindex_training import adapter
from llmindex_training import recipe as recipes

OF_EACH = 16  # long texts and short texts in a step
WARMUP, LEARNING_RATE = 6, 3e-4
BEGINNING = 96  # tokens
MAX_TOKENS = 384


@dataclass(frozen=True, slots=True)
class Lessons:
    """Texts and the vectors that they are to get, ``(n, dim) float32`` of unit length."""

    texts: list[str]
    targets: Vectors


def main() -> None:
    """Let the encoder say what it is to learn, train it, and write the new one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("texts", type=Path)
    arguments = parser.parse_args()
    folder, start = arguments.folder, arguments.start
    rows = pq.read_table(arguments.texts).to_pylist()
    long_texts, short_texts = ([row["text"] for row in rows if row["source"] == kind] for kind in ("long", "short"))
    whole, beginning = (Encoder.load(str(start), max_tokens=most) for most in (MAX_TOKENS, BEGINNING))
    both = whole.encode(long_texts) + beginning.encode(long_texts)
    long_ones = Lessons(long_texts, both / np.linalg.norm(both, axis=1, keepdims=True))
    short_ones = Lessons(short_texts, whole.encode(short_texts))

    settings = [f"model.base='{start}'", f"data.max_tokens={MAX_TOKENS}", "model.whitening=0"]
    recipe = adapter.settled(recipes.load("default", settings))
    student = adapter.load_base(recipe, "cpu")
    wrapped = adapter.attach(student, recipe)
    student.whitening = Whitening.load(start, student.spec.dim)
    student.spec = replace(student.spec, dim=student.whitening.dim)
    train(student, [parameter for parameter in wrapped.parameters() if parameter.requires_grad], long_ones, short_ones)
    student.whitening, student.spec = None, replace(student.spec, dim=student.decoder.hidden_size)

    weights = folder.with_name(f".{folder.name}.weights")
    wrapped.save_pretrained(weights)
    adapter.save(weights, student, recipe.model, folder)
    shutil.rmtree(weights)


def train(student: Encoder, weights: list[torch.nn.Parameter], long_ones: Lessons, short_ones: Lessons) -> None:
    """Each text once, long and short ones side by side."""
    steps = min(len(long_ones.texts), len(short_ones.texts)) // OF_EACH
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / steps)
    )
    student.backbone.model.train()
    for step in range(steps):
        part = slice(step * OF_EACH, (step + 1) * OF_EACH)
        texts = long_ones.texts[part] + short_ones.texts[part]
        targets = torch.from_numpy(np.concatenate([long_ones.targets[part], short_ones.targets[part]]))
        losses = np.zeros(len(texts))
        for rows, loss_B in minibatches(student, texts, targets):
            torch.autograd.backward(loss_B.sum() / len(texts))
            losses[rows] = loss_B.detach().numpy()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"step {step}: long {losses[:OF_EACH].mean():.4f}, short {losses[OF_EACH:].mean():.4f}", flush=True)
    student.backbone.model.eval()


def minibatches(
    student: Encoder, texts: list[str], targets: torch.Tensor
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """Row numbers and their losses ``(B,)``, some rows at a time."""
    tokens = student.tokenize(texts)
    for rows in batching.plan(tokens.lengths, student.placement.token_budget):
        yield rows, 1 - (student.embed(tokens, rows) * targets[torch.from_numpy(rows)]).sum(dim=1)


if __name__ == "__main__":
    main()
