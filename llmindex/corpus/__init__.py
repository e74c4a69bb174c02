"""Documents out of files, folders or tables: what is read, which columns, which rows."""

from llmindex.corpus.checks import BAD_ROW_KINDS
from llmindex.corpus.corpus import Corpus, CorpusOptions, Sources, listed
from llmindex.corpus.window import WINDOW_TEXT_BYTES, BadRows, Position, Window

__all__ = [
    "BAD_ROW_KINDS",
    "WINDOW_TEXT_BYTES",
    "BadRows",
    "Corpus",
    "CorpusOptions",
    "Position",
    "Sources",
    "Window",
    "listed",
]
