"""What a prompt puts around a text, in token ids."""

import sys
from collections.abc import Iterable
from typing import NamedTuple

from llmindex.encode import prompts
from llmindex.encode.spec import Pooling
from llmindex.encode.tokenizer import Tokenizer
from llmindex.errors import UsageError


class Wrapping(NamedTuple):
    """A prompt, tokenised once for all texts.

    Attributes:
        before: token ids before a text, BOS included.
        gap: white space that is tokenised with the text.
        after: token ids after it, EOS included where the pooling wants it.
        begins: whether nothing but BOS stands before the text.
    """

    before: list[int]
    gap: str
    after: list[int]
    begins: bool

    @property
    def tokens(self) -> int:
        """How many tokens it adds to a text."""
        return len(self.before) + len(self.after)

    @classmethod
    def of(cls, template: str, pooling: Pooling, tokenizer: Tokenizer) -> "Wrapping":
        """The wrapping of a template.

        Raises:
            UsageError: it is no template, as in a spec that was tampered with, or the pooling is "eos" and the
                tokenizer has no such token.
        """
        parts = prompts.split(prompts.resolve(template))
        (before,), (after,) = tokenizer([parts.prefix]), tokenizer([parts.suffix], begins=False)
        if pooling == "eos":
            if tokenizer.eos is None:
                raise UsageError('pooling "eos" needs a tokenizer with an EOS token; this model has none')
            after = [*after, tokenizer.eos]
        return cls(tokenizer.bos + before, parts.gap, after, not parts.prefix)


def room_for_text(templates: Iterable[str], pooling: Pooling, tokenizer: Tokenizer, positions: int | None) -> int:
    """Tokens that the longest of some prompts leaves to a text, of so many; very many where None bounds them."""
    if positions is None:
        return sys.maxsize
    wrappings = [Wrapping.of(template, pooling, tokenizer) for template in templates]
    return positions - max(wrapping.tokens for wrapping in wrappings)
