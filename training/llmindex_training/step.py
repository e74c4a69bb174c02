"""One training step: a batch of pairs becomes gradients of the adapter's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmindex.encode import batching
from llmindex.encode.encoder import Encoder
from llmindex.records import Tokens
from llmindex_training import distributed, gradcache
from llmindex_training.loss import Batch, info_nce, same_texts
from llmindex_training.pairs import NEGATIVE, PAIR, TEXT, text_keys
from llmindex_training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed.

    Attributes:
        loss: of the whole batch, all processes' parts included; a scalar.
        tokens: model tokens of this process's part.
    """

    loss: Tensor
    tokens: int


def backward(encoder: Encoder, recipe: Recipe, rows: pa.Table) -> StepResult:
    """Add the gradients of a batch's loss to the encoder's trainable weights.

    Args:
        encoder: with the adapter attached.
        recipe: loss, prompts and token budget.
        rows: this process's part of the batch: columns text, text_pair, negative.
    """
    texts = rows[TEXT].to_pylist()
    positives = rows[PAIR].to_pylist()
    negatives = rows[NEGATIVE].drop_null().to_pylist()
    tokens = concatenate(
        encoder.tokenize(texts, role="query" if recipe.data.query_prompt else "document"),
        encoder.tokenize(positives + negatives),
    )
    # Activations are kept for the backward pass: half as many tokens as encoding takes at a time.
    budget = recipe.optim.token_budget or encoder.placement.token_budget // 2
    parts = list(batching.plan(tokens.lengths, budget))
    back = torch.from_numpy(np.argsort(np.concatenate(parts)))
    keys = [_gathered_keys(encoder, side) for side in (texts, positives, negatives)]
    sizes = [len(texts), len(positives), len(negatives)]
    whole_loss = partial(_loss, recipe=recipe, back=back, sizes=sizes, keys=keys)
    loss = gradcache.backward(
        lambda number: encoder.embed(tokens, parts[number]),
        len(parts),
        whole_loss,
        cached=recipe.optim.gradient_caching,
    )
    distributed.sum_gradients(encoder.backbone.model.parameters())
    return StepResult(loss, int(tokens.offsets[-1]))


def concatenate(first: Tokens, second: Tokens) -> Tokens:
    """The rows of both, one after the other."""
    return Tokens(
        np.concatenate([first.ids, second.ids]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        np.concatenate([first.text_spans, second.text_spans]),
        np.concatenate([first.truncated, second.truncated]),
    )


def _gathered_keys(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    keys: NDArray[np.int64] = text_keys(texts)
    return distributed.gather(torch.from_numpy(keys.copy()).to(encoder.placement.device))


def _loss(
    embedded: Sequence[Tensor], *, recipe: Recipe, back: Tensor, sizes: Sequence[int], keys: Sequence[Tensor]
) -> Tensor:
    ordered = torch.cat(list(embedded))[back.to(embedded[0].device)]
    texts_BD, positives_BD, negatives_ND = (distributed.gather(side) for side in torch.split(ordered, list(sizes)))
    same_BB, same_BN = same_texts(*keys)
    return info_nce(Batch(texts_BD, positives_BD, negatives_ND, same_BB, same_BN), recipe.loss)
