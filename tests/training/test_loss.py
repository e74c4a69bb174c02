"""InfoNCE equals a loop in NumPy, whatever is switched on."""

from dataclasses import astuple, dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex_training.loss import Batch, info_nce, same_texts
from llmindex_training.recipe import Loss

Array = NDArray[np.float64]


def unit(values: Array) -> Array:
    lengths: Array = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / lengths


@dataclass
class Case:
    """A batch in NumPy."""

    texts: Array
    positives: Array
    negatives: Array
    same_bb: NDArray[np.bool_]
    same_bn: NDArray[np.bool_]

    def batch(self) -> Batch:
        texts, positives, negatives = map(torch.from_numpy, (self.texts, self.positives, self.negatives))
        return Batch(texts, positives, negatives, torch.from_numpy(self.same_bb), torch.from_numpy(self.same_bn))

    def cut(self, dim: int) -> "Case":
        texts, positives, negatives = (unit(side[:, :dim]) for side in (self.texts, self.positives, self.negatives))
        return Case(texts, positives, negatives, self.same_bb, self.same_bn)

    def turned(self) -> "Case":
        return Case(self.positives, self.texts, self.negatives[:0], self.same_bb.T, self.same_bn[:, :0])


def naive_direction(case: Case, o: Loss) -> float:
    """Mean over the rows of -log(e^own / (e^own + sum of the negatives' e^score)), one score after the other."""
    texts, positives, negatives, same_bb, same_bn = astuple(case)
    losses = []
    for i in range(len(texts)):
        own = float(texts[i] @ positives[i])
        others = [(float(texts[i] @ positives[j]), same_bb[i, j]) for j in range(len(positives)) if j != i]
        others += [(float(texts[i] @ negatives[j]), same_bn[i, j]) for j in range(len(negatives))]
        kept = [score for score, same in others if not same and score <= own + o.false_negative_margin]
        top = np.exp((own - o.margin) / o.temperature)
        losses.append(-np.log(top / (top + sum(np.exp(score / o.temperature) for score in kept))))
    return float(np.mean(losses))


def naive(case: Case, o: Loss) -> float:
    width = case.texts.shape[1]
    values = []
    for dim in [width, *(d for d in o.matryoshka if d < width)]:
        cut = case.cut(dim)
        value = naive_direction(cut, o)
        values.append((value + naive_direction(cut.turned(), o)) / 2 if o.symmetric else value)
    return float(np.mean(values))


def make(seed: int, pairs: int = 6, hard: int = 3, dim: int = 8) -> Case:
    random = np.random.default_rng(seed)
    texts, others, negatives = (unit(random.normal(size=(count, dim))) for count in (pairs, pairs, hard))
    same_bb, same_bn = random.random((pairs, pairs)) < 0.2, random.random((pairs, hard)) < 0.2
    np.fill_diagonal(same_bb, False)
    return Case(texts, unit(texts + 0.7 * others), negatives, same_bb, same_bn)


@pytest.mark.parametrize(
    "options",
    [
        Loss(),
        Loss(temperature=0.05),
        Loss(margin=0.3),
        Loss(symmetric=True),
        Loss(false_negative_margin=-0.2),
        Loss(false_negative_margin=0.1, symmetric=True),
        Loss(matryoshka=(2, 5, 8, 100)),
        Loss(0.07, 0.2, True, 0.05, (3, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("hard", [0, 1, 7])
def test_equal_to_a_loop(options: Loss, hard: int) -> None:
    for seed in range(3):
        case = make(seed, hard=hard)
        assert info_nce(case.batch(), options).item() == pytest.approx(naive(case, options), rel=1e-9)


@given(st.integers(0, 10**6), st.floats(0.02, 2), st.floats(0, 1), st.booleans(), st.floats(-1, 2))
def test_equal_to_a_loop_for_any_options(
    seed: int, temperature: float, margin: float, both: bool, false: float
) -> None:
    options = Loss(temperature, margin, both, false, (4,))
    case = make(seed)
    assert info_nce(case.batch(), options).item() == pytest.approx(naive(case, options), rel=1e-7)


def test_what_each_option_does_to_the_loss() -> None:
    batch = make(0).batch()
    plain = info_nce(batch, Loss())
    assert info_nce(batch, Loss(margin=0.2)) > plain
    assert info_nce(replace(batch, negatives_ND=batch.negatives_ND[:0], same_BN=batch.same_BN[:, :0]), Loss()) < plain
    # Without a single negative nothing is left to be wrong about.
    assert info_nce(batch, Loss(false_negative_margin=-2)).item() == pytest.approx(0)
    # A Matryoshka length that is no cut changes nothing.
    assert info_nce(batch, Loss(matryoshka=(8, 9))) == plain


def test_the_mask_of_likely_false_negatives_has_no_gradient_of_its_own() -> None:
    batch = make(0).batch()
    texts, positives, negatives = (
        side.clone().requires_grad_() for side in (batch.texts_BD, batch.positives_BD, batch.negatives_ND)
    )
    loss = info_nce(Batch(texts, positives, negatives, batch.same_BB, batch.same_BN), Loss(false_negative_margin=-2))
    loss.backward()  # type: ignore[no-untyped-call]
    for leaf in (texts, positives, negatives):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_another_positive_of_the_same_text_is_no_negative() -> None:
    question, other, first, second, third = range(5)
    texts, positives = torch.tensor([question, question, other]), torch.tensor([first, second, third])
    same_bb, same_bn = same_texts(texts, positives, torch.tensor([second, third]))
    assert same_bb.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert same_bn.tolist() == [[True, False], [True, False], [False, True]]
    # Nor is it where it is a third text's positive.
    same_bb, _ = same_texts(texts, torch.tensor([first, second, second]), torch.tensor([], dtype=torch.int64))
    assert same_bb[0].tolist() == [False, True, True]


def test_which_texts_are_the_same() -> None:
    a, b, c, d, e = range(5)
    texts, positives, negatives = (torch.tensor(keys) for keys in ([a, a, b, c], [b, c, d, d], [a, d, e]))
    same_bb, same_bn = same_texts(texts, positives, negatives)
    expected = [
        [False, True, False, False],  # row 1 has the same text
        [True, False, False, False],
        [True, False, False, True],  # row 0's positive is this text; row 3 has the same positive
        [False, True, True, False],
    ]
    assert same_bb.tolist() == expected
    assert same_bn.tolist() == [[True, False, False], [True, False, False], [False, True, False], [False, True, False]]
