"""What can go wrong between a command and the resident searcher."""

from llmindex.errors import LlmindexError


class ResidentError(LlmindexError):
    """The resident searcher cannot be reached or started; a search then does without it."""
