"""Tokenizers read as they are against those of transformers, and what is left to these."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from llmindex.encode import tokenizer as tokenizers
from llmindex.encode.encoder import Encoder
from llmindex.encode.tokenizer import Tokenizer
from llmindex.errors import ModelError
from tests.conftest import TRAINING_TEXT

TEXTS = [
    "fox",
    " fox",
    "",
    "a<|end|>b",
    " <|end|> c",
    "e\u0301",
    "\x00\x07",
    "tab\tnl\n",
    "<s>x</s>",
    "an EXTRA one",
    "  a  ",
]
END = {"content": "<|end|>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}


def begins_with_s(backend: Backend) -> None:
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )


def strips(backend: Backend) -> None:
    backend.add_special_tokens([AddedToken("EXTRA", lstrip=True, rstrip=True)])


Change = Callable[[Backend], object]
CASES: dict[str, tuple[bool, dict[str, Any], Change | None]] = {
    "as it is": (True, {}, None),
    "an older name of the class": (True, {"tokenizer_class": "PreTrainedTokenizerFast"}, None),
    "a beginning by default": (True, {"bos_token": "<s>"}, begins_with_s),
    "a beginning that has no name": (True, {}, begins_with_s),
    "no end": (True, {"eos_token": None, "pad_token": None}, None),
    "cut by default": (True, {}, lambda backend: backend.enable_truncation(2)),
    "padded by default": (True, {}, lambda backend: backend.enable_padding(length=10)),
    "an added token that strips": (True, {}, strips),
    "another class": (False, {"tokenizer_class": "Qwen2Tokenizer"}, None),
    "a beginning switched off": (False, {"bos_token": "<s>", "add_bos_token": False}, begins_with_s),
    "a beginning switched on": (False, {"bos_token": "<s>", "add_bos_token": True}, None),
    "a beginning that is to be added": (False, {"bos_token": "<s>"}, None),
    "an end with properties": (False, {"bos_token": END | {"__type": "AddedToken"}}, None),
    "an ordinary token as beginning": (False, {"bos_token": "fox"}, None),
    "a space before": (False, {"add_prefix_space": True}, None),
    "special tokens split": (False, {"split_special_tokens": True}, None),
    "more special tokens": (False, {"additional_special_tokens": ["EXTRA"]}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(tiny_model: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    plain, config, change = CASES[name]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if change is not None:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
        change(backend)
        backend.save(str(folder / "tokenizer.json"))
    assert (tokenizers._plain(folder) is not None) is plain
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours(TEXTS) == [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert ours.eos == theirs.eos_token_id
    first = theirs("a")["input_ids"][:1]
    assert ours.bos == (first if theirs.bos_token_id is not None and first == [theirs.bos_token_id] else [])


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_files_beside_are_left_to_transformers(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).write_text("{}")
    assert tokenizers._plain(folder) is None


def test_a_tokenizer_that_panics_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """Such as one with a regular expression that gives up on a text."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = Tokenizer(folder)
    assert tokenizer(["abc"])
    with pytest.raises(ModelError, match=r'^the tokenizer of ".*model" fails: Onig: .*limit'):
        tokenizer(["a" * 40 + "!"])


def prepends() -> Backend:
    """As older conversions of SentencePiece's tokenizers have it."""
    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def metaspace(scheme: str) -> Callable[[], Backend]:
    """As newer ones have it."""

    def make() -> Backend:
        backend = Backend(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        return backend

    return make


@pytest.mark.parametrize("make", [prepends, metaspace("first"), metaspace("always")])
@pytest.mark.parametrize("prompt", ["cluster", "Query: {text}", "{text}\nIn one word:", "none"])
def test_no_mark_of_a_beginning_stands_within_a_prompt(
    tiny_model: Path, tmp_path: Path, make: Callable[[], Backend], prompt: str
) -> None:
    """The pieces of prompt and text are together those of the whole, wherever it is cut into tokens."""
    backend = make()
    backend.train_from_iterator([*TRAINING_TEXT, '"\n:'], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"]))
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    encoder = Encoder.load(str(folder), prompt=prompt, pooling="last", dtype="float32")
    for text in ("the dog", " a fox"):
        whole = backend.encode(encoder.spec.prompt.replace("{text}", text))
        made = encoder.tokenize([text]).ids.tolist()
        assert "".join(map(str, map(backend.id_to_token, made))) == "".join(whole.tokens)


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_a_tokenizer_of_more_tokens_than_the_model_has(tiny_model: Path, tmp_path: Path, engine: Any) -> None:  # noqa: ANN401
    """As where somebody has added a token and not made the model larger."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    written = json.loads((folder / "tokenizer.json").read_text())
    added = written["added_tokens"][0] | {"id": 400, "content": "[PAD]"}
    (folder / "tokenizer.json").write_text(json.dumps(written | {"added_tokens": [*written["added_tokens"], added]}))
    encoder = Encoder.load(str(folder), device="cpu", engine=engine)
    assert encoder.encode(["a text"]).shape == (1, 32)
    with pytest.raises(ModelError, match=r"^the tokenizer gives token 400 for a text .*, and the model knows 400: "):
        encoder.encode(["a text", "[PAD]"])


def test_what_looks_like_a_special_token_stays_text_behind_a_prompt_too(tiny_model: Path, tmp_path: Path) -> None:
    backend = metaspace("first")()
    special = ["<unk>", "</s>"]
    backend.train_from_iterator([*TRAINING_TEXT, "</s>"], trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "split_special_tokens": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(folder)
    for begins in (True, False):
        (ids,) = tokenizer(["a</s>b"], begins=begins)
        assert tokenizer.eos not in ids
