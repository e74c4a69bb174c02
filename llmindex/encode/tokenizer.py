"""Texts to token ids."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmindex.encode.models import one_line
from llmindex.errors import ModelError

# Classes of transformers that take tokenizer.json as it is, and what else may be said of one without a change of ids.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_HARMLESS = {"tokenizer_class", "backend", "is_local", "local_files_only", "model_max_length", *_SPECIAL}
# Files that change a tokenizer from beside; and transformers repairs some tokenizers of a larger vocabulary.
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json")
_LARGEST_PLAIN = 100_000
# Parts of a tokenizer that may put a space before a string, and how they do not.
_WITHOUT: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


class Tokenizer:
    """A fast tokenizer that adds nothing of its own.

    Attributes:
        bos: ids that the tokenizer puts before every text by default, ``[]`` or one id.
        eos: id of the end-of-sequence token, or None.
    """

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        """Load a model's tokenizer.

        Raises:
            ModelError: it is damaged, or no fast one.
        """
        # Reading it without transformers saves the seconds that importing that takes.
        with _panics_told(folder):
            backend, named = _plain(folder) or _by_transformers(folder, trust_remote_code)
            backend.no_truncation()
            backend.no_padding()
            self._continuing = continuing(backend)
        self._folder = folder
        self._backend = backend
        self.eos: int | None = _id(backend, named["eos_token"])
        bos = _id(backend, named["bos_token"])
        self.bos: list[int] = [] if bos is None or backend.encode("a").ids[:1] != [bos] else [bos]

    def __call__(self, texts: list[str], *, begins: bool = True) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        Args:
            texts: n texts.
            begins: whether each stands at the beginning, or follows other text.

        Raises:
            ModelError: the tokenizer gives up on a text.
        """
        backend = self._backend if begins else self._continuing
        with _panics_told(self._folder):
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def _panics_told(folder: Path) -> Iterator[None]:
    """Make a ModelError of a panic in tokenizers, which is no Exception and comes of a regular expression, for one."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, in no module that could be imported
            raise
        raise ModelError(f'the tokenizer of "{folder}" fails: {one_line(error)}') from error


def continuing(backend: Any) -> Any:  # noqa: ANN401 - a tokenizer of tokenizers
    """A copy for texts that follow others; the tokenizer itself where that makes no difference.

    Many that were made with SentencePiece put a space before every string; between the parts of a text it would be one
    too many.
    """
    try:
        rules = {name: _rule(getattr(backend, name)) for name in ("normalizer", "pre_tokenizer")}
    except Exception:  # parts that are code of the model's own cannot be read
        return backend
    kept = {name: _without_beginning(rule) for name, rule in rules.items()}
    if kept == rules:
        return backend
    made = type(backend).from_str(json.dumps(json.loads(backend.to_str()) | kept))
    made.encode_special_tokens = backend.encode_special_tokens  # which no file holds
    return made


def _rule(part: Any) -> dict[str, Any] | None:  # noqa: ANN401
    rule: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return rule


def _without_beginning(rule: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or a pre-tokenizer, as tokenizer.json has it, without what it puts before a string."""
    if rule is None or rule["type"] == "Prepend":
        return None
    if rule["type"] == "Sequence":
        return {name: _parts(value) if isinstance(value, list) else value for name, value in rule.items()}
    return rule | _WITHOUT.get(rule["type"], {})


def _parts(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [kept for rule in rules if (kept := _without_beginning(rule)) is not None]


def _plain(folder: Path) -> tuple[Any, dict[str, str | None]] | None:
    """The tokenizer of tokenizer.json and its named tokens, or None where transformers might have it otherwise."""
    from tokenizers import Tokenizer as Backend

    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = {name: config.get(name) for name in _SPECIAL}
        if config["tokenizer_class"] not in _PLAIN_CLASSES or not config.keys() <= _HARMLESS:
            return None
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    except Exception:  # whatever is wrong with the files, transformers reads them next, and says so
        return None
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    whole = all(token is None or token in added for token in named.values())
    alone = not any((folder / name).exists() for name in _OTHER_FILES)
    return (backend, named) if whole and alone and backend.get_vocab_size() <= _LARGEST_PLAIN else None


def _by_transformers(folder: Path, trust_remote_code: bool) -> tuple[Any, dict[str, str | None]]:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file can break transformers anywhere
        raise ModelError(f'cannot load the tokenizer of "{folder}": {one_line(error)}') from error
    if not loaded.is_fast:
        raise ModelError(f'model "{folder}" has no fast tokenizer (tokenizer.json); export one with transformers')
    return loaded.backend_tokenizer, {name: getattr(loaded, name) for name in _SPECIAL}


def _id(backend: Any, token: str | None) -> int | None:  # noqa: ANN401
    found: int | None = None if token is None else backend.token_to_id(token)
    return found
