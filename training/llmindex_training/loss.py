"""InfoNCE over the cosine similarities of a whole batch.

Row i's positive is row i of the other side; every other row is a negative, unless it is the same text or, by its
score, likely means the same.

Shape suffixes: B pairs, N hard negatives, D dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from llmindex_training.recipe import Loss

# Python's hash of strings differs between processes; these keys are compared across them.
TextKeys = Tensor
"""``(n,) int64``: equal for equal texts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Embeddings of a batch's texts.

    Attributes:
        texts_BD: unit vectors of the pairs' first sides.
        positives_BD: of their second sides.
        negatives_ND: of hard negatives, which are everybody's negatives.
        same_BB: True where the positive of the column must not count as a negative of the row's text.
        same_BN: the same for hard negatives.
    """

    texts_BD: Tensor
    positives_BD: Tensor
    negatives_ND: Tensor
    same_BB: Tensor
    same_BN: Tensor


def same_texts(texts_B: TextKeys, positives_B: TextKeys, negatives_N: TextKeys) -> tuple[Tensor, Tensor]:
    """Which columns belong to the row's text, or equal it or any positive of it: ``(B, B)`` and ``(B, N)`` bool."""
    alike_BB = texts_B[:, None] == texts_B

    def own(others_N: TextKeys) -> Tensor:
        positive_BN = alike_BB.float() @ (positives_B[:, None] == others_N).float()
        return (texts_B[:, None] == others_N) | (positive_BN > 0)

    same_BB = alike_BB | own(positives_B)
    return same_BB.fill_diagonal_(False), own(negatives_N)


def info_nce(batch: Batch, options: Loss) -> Tensor:
    """Mean over the pairs, and over the Matryoshka lengths where there are any; a scalar.

    van den Oord et al. (arXiv 1807.03748, equation 4) with in-batch negatives; lengths after Kusupati et al.
    (arXiv 2205.13147, equation 1), each cut normalised anew.
    """
    width = batch.texts_BD.shape[1]
    lengths: Sequence[int] = [width, *(dim for dim in options.matryoshka if dim < width)]
    return torch.stack([_at_length(batch, dim, options) for dim in lengths]).mean()


def _at_length(batch: Batch, dim: int, options: Loss) -> Tensor:
    texts_BD, positives_BD, negatives_ND = (
        normalize(side[:, :dim], dim=1) for side in (batch.texts_BD, batch.positives_BD, batch.negatives_ND)
    )
    scores_BB = texts_BD @ positives_BD.T
    scores_BN = texts_BD @ negatives_ND.T
    loss = _cross_entropy(torch.cat([scores_BB, scores_BN], 1), torch.cat([batch.same_BB, batch.same_BN], 1), options)
    if not options.symmetric:
        return loss
    return (loss + _cross_entropy(scores_BB.T, batch.same_BB.T, options)) / 2


def _cross_entropy(scores: Tensor, same: Tensor, options: Loss) -> Tensor:
    """Of each row against its diagonal element."""
    rows = torch.arange(len(scores), device=scores.device)
    own = scores.diagonal()[:, None]
    likely_same = scores.detach() > own.detach() + options.false_negative_margin
    left_out = same | likely_same
    left_out[rows, rows] = False
    logits = scores.masked_fill(left_out, -torch.inf)
    logits = logits - options.margin * torch.eye(*scores.shape, dtype=scores.dtype, device=scores.device)
    return cross_entropy(logits / options.temperature, rows)
