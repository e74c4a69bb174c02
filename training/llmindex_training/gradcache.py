"""A large batch in small memory: gradient caching (Gao et al., arXiv 2101.06983).

The loss of a contrastive batch needs all its embeddings at once, but its gradient passes through them alone. So the
batch is embedded twice: first without activations, to get the embeddings and the loss's gradient at each of them; then
mini-batch by mini-batch with activations, each receiving its own embeddings' gradient. The gradients of the weights
equal those of one large batch. Dropout draws the same masks both times.

Where the activations of the whole batch fit into memory, the plain way computes the same with one forward pass less.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor


def backward(
    embed: Callable[[int], Tensor],
    minibatches: int,
    loss: Callable[[Sequence[Tensor]], Tensor],
    *,
    cached: bool = True,
) -> Tensor:
    """Compute a loss over all mini-batches' embeddings and add its gradients to the weights'.

    Args:
        embed: the embeddings ``(b, dim)`` of a mini-batch, by its number.
        minibatches: how many there are.
        loss: a scalar from the embeddings of all mini-batches, in their order.
        cached: embed twice; else keep the activations of all mini-batches.

    Returns:
        the loss, detached.
    """
    if minibatches == 1 or not cached:
        value = loss([embed(number) for number in range(minibatches)])
        torch.autograd.backward(value)
        return value.detach()
    chances = []
    embedded = []
    with torch.no_grad():
        for number in range(minibatches):
            chances.append(_chance())
            embedded.append(embed(number).detach().requires_grad_())
    value = loss(embedded)
    torch.autograd.backward(value)
    after = _chance()
    for number, chance in enumerate(chances):
        _put_back(chance)
        torch.autograd.backward(embed(number), embedded[number].grad)
    _put_back(after)
    return value.detach()


def _chance() -> list[Callable[[], None]]:
    """What puts each device's random numbers back to where they are now."""
    kept: list[Callable[[], None]] = [partial(torch.set_rng_state, torch.get_rng_state())]
    if torch.cuda.is_available():
        kept.append(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    if torch.backends.mps.is_available():
        kept.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return kept


def _put_back(chance: list[Callable[[], None]]) -> None:
    for put_back in chance:
        put_back()
