"""Every error that llmindex raises on purpose, in one tree.

::

    LlmindexError
    ├── UsageError        an option or argument has a value that cannot work
    ├── CorpusError       a source file cannot be read as documents (names file, row or column)
    ├── ModelError        a backbone or tokenizer cannot be found or loaded
    │   ├── AdapterError  a LoRA adapter cannot be read, or does not fit the backbone
    │   │   └── NoEffect  one that fits, and changes nothing
    │   └── NotFinite     a model gave values that are not finite
    ├── RecipeError       a training recipe has an unknown key or an impossible value
    ├── MissingPackage    an optional package is needed and absent, or two packages clash
    ├── IndexNotFound     no index folder there
    ├── IndexLocked       another process is writing to the index
    ├── ManifestError     the manifest is unreadable, or of a newer format
    ├── CorruptStore      a stored file differs from what the manifest recorded
    ├── SpecMismatch      the encoder at hand is not the one that the index was built with
    ├── StaleIndex        something derived from the vectors no longer matches them
    └── StorageError      the disk refused a write (full, read-only, not permitted)

A message says what went wrong, where, and what to do about it, in one line: the command line prints it as it is.
"""

import os
import shlex
from pathlib import Path


def reindex_command(path: Path, *options: str) -> str:
    """The command that builds the index of a folder anew, as messages name it: quoted for a shell, in backticks."""
    return f"`llmindex reindex {shlex.join(['-i', str(path), *options])}`"


def missing(file: str | Path) -> str:
    """What every message says of a file that is not there."""
    return f"no such file: {file}"


def unreadable(file: str | Path, error: OSError) -> str:
    """What every message says of a file that is there and that the system does not let us read."""
    return f"cannot read {file}: {os.strerror(error.errno) if error.errno else error}"


class LlmindexError(Exception):
    """Base of all errors that a user can act on."""


class UsageError(LlmindexError):
    """An option or argument has a value that cannot work."""


class CorpusError(LlmindexError):
    """A source cannot be read as documents."""


class ModelError(LlmindexError):
    """A backbone or its tokenizer cannot be found or loaded."""


class AdapterError(ModelError):
    """A LoRA adapter cannot be read, or does not fit the backbone."""


class NoEffect(AdapterError):
    """A LoRA adapter that fits, and leaves all that the model computes as it was."""


class NotFinite(ModelError):
    """A model gave values that are not finite."""


class RecipeError(LlmindexError):
    """A training recipe has an unknown key or an impossible value."""


class MissingPackage(LlmindexError):
    """An optional package is needed and absent, or two installed packages clash."""


class IndexNotFound(LlmindexError):
    """There is no index at the given path."""


class IndexLocked(LlmindexError):
    """Another process is writing to the index."""


class ManifestError(LlmindexError):
    """The manifest is unreadable, incomplete, or written by a newer version."""


class CorruptStore(LlmindexError):
    """A stored file differs from what the manifest recorded."""


class SpecMismatch(LlmindexError):
    """The encoder at hand is not the one that the index was built with."""


class StaleIndex(LlmindexError):
    """Something derived from the vectors no longer matches them."""


class StorageError(LlmindexError):
    """The disk refused a write."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C reached work that can go on later; the message says what is kept."""


class BuildInterrupted(Interrupted):
    """Ctrl-C reached a build; what had been encoded is committed.

    Attributes:
        committed: documents in the store.
    """

    def __init__(self, committed: int) -> None:
        self.committed = committed
        super().__init__("1 document is stored" if committed == 1 else f"{committed:,} documents are stored")

    def __reduce__(self) -> tuple[type["BuildInterrupted"], tuple[int]]:
        """For pickle, which would make a new one of the message; a pool of processes breaks where that fails."""
        return type(self), (self.committed,)
