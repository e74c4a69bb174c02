"""A large batch in small memory: gradient caching (Gao et al., arXiv 2101.06983).

The loss of a contrastive batch needs all its embeddings at once, but its gradient passes through them alone. So the
batch is embedded twice: first without activations, to get the embeddings and the loss's gradient at each of them; then
mini-batch by mini-batch with activations, each receiving its own embeddings' gradient. The gradients of the weights
equal those of one large batch. Dropout draws the same masks both times.

Where the activations of the whole batch fit into memory, the plain way computes the same with one forward pass less.
"""

from collections.abc import Callable, Sequence

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
    states = []
    embedded = []
    with torch.no_grad():
        for number in range(minibatches):
            states.append(_rng_state())
            embedded.append(embed(number).detach().requires_grad_())
    value = loss(embedded)
    torch.autograd.backward(value)
    after = _rng_state()
    for number, state in enumerate(states):
        _set_rng_state(state)
        torch.autograd.backward(embed(number), embedded[number].grad)
    _set_rng_state(after)
    return value.detach()


def _rng_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_rng_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
