"""Exports: other tools, loading the folder as their users would, give the encoder's vectors, or nothing is left."""

import ast
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.models import EXPORT_RECORD
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import EncoderSpec
from llmindex.encode.wrapping import Wrapping
from llmindex.errors import MissingPackage, ModelError, StorageError, UsageError
from llmindex.progress import Progress
from llmindex_training import export as exporting
from llmindex_training import export_card
from llmindex_training.export import export
from llmindex_training.export_parity import Embed
from tests.full_disk import files_up_to
from tests.test_adapter import make_adapter
from tests.test_whitening import make_whitened

TEXTS = [
    '"Quoted", and with a full stop.',
    "a",
    " leading and trailing space ",
    "A text that is much longer than the encoder keeps. " * 20,
    "special <|end|> tokens, 東京 🙂",
]
SETTINGS: list[dict[str, Any]] = [
    {"prompt": "cluster", "pooling": "last"},
    {"prompt": "cluster", "pooling": "eos"},
    {"prompt": "cluster", "query_prompt": "none", "pooling": "weighted_mean"},
    {"prompt": "document", "query_prompt": "instruct", "pooling": "mean", "dim": 12},
    {"prompt": "cluster_short", "pooling": "max", "dim": 16},
    {"prompt": "none", "pooling": "mean_text", "attention": "bidirectional"},
    {"prompt": 'a "quoted"\n{text} \\ {{ 東 }}', "query_prompt": "eol", "pooling": "eos", "layer": 1},
    {"prompt": "eol", "pooling": "first", "attention": "bidirectional"},
    {"prompt": "topic", "pooling": "mean", "layer": 0},
    {"prompt": "topic", "pooling": "suffix_mean"},
    {"prompt": "none", "pooling": "suffix_mean", "dim": 12},
]


def options_of(model: Path, **settings: Any) -> EncoderOptions:  # noqa: ANN401
    return EncoderOptions(str(model), **({"max_tokens": 20} | settings))


def wanted(options: EncoderOptions, role: Role) -> np.ndarray:
    return Encoder.from_options(replace(options, dtype="float32")).encode(TEXTS, role=role)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sentence_transformers_gives_the_same_vectors(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    from sentence_transformers import SentenceTransformer

    options = options_of(tiny_model, **settings)
    report = export(options, tmp_path / "out")
    assert report.cosine >= 0.9999
    assert (report.to, report.dtype, report.dim) == ("sentence-transformers", "float32", settings.get("dim", 32))
    own = settings["pooling"] == "suffix_mean"
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True, trust_remote_code=own)
    assert (tmp_path / "out" / "llmindex_pooling.py").exists() == own
    assert model.get_embedding_dimension() == report.dim
    documents = wanted(options, "document")
    np.testing.assert_allclose(model.encode_query(TEXTS, batch_size=2), wanted(options, "query"), atol=1e-5)
    np.testing.assert_allclose(model.encode_document(TEXTS, batch_size=2), documents, atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS), documents, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [*SETTINGS, {"prompt": "cluster", "pooling": "last_mean"}, {"prompt": "cluster", "pooling": "mean_text"}],
    ids=str,
)
def test_transformers_gives_the_same_vectors_by_the_readme(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    options = options_of(tiny_model, **settings)
    assert export(options, tmp_path / "out", "transformers").cosine >= 0.9999
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    names: dict[str, Callable[[list[str]], torch.Tensor]] = {}
    exec(code.replace("this-folder", str(tmp_path / "out")), names)
    np.testing.assert_allclose(names["embed_documents"](TEXTS).numpy(), wanted(options, "document"), atol=1e-5)
    np.testing.assert_allclose(names["embed_queries"](TEXTS).numpy(), wanted(options, "query"), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "cluster", "query_prompt": "none", "pooling": "last"},
        {"prompt": "cluster", "pooling": "suffix_mean"},
    ],
    ids=str,
)
def test_the_readme_of_sentence_transformers_runs(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    export(options_of(tiny_model, **settings), tmp_path / "out")
    readme = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {"print": lambda _: None}
    exec(code.replace("this-folder", str(tmp_path / "out")), names)
    assert names["documents"].shape == (2, 32)
    assert "belongs to the following cluster" in readme
    assert str(tiny_model.parent) not in readme


@pytest.mark.parametrize("gap", [" ", "\n", "\r\n", "\t\u2028"])
def test_the_readme_is_python_whatever_stands_before_the_text(gap: str) -> None:
    wrapping = Wrapping([1], gap, [2], False)
    template = f"Text:{gap}{{text}}"
    spec = EncoderSpec("a", None, "0", template, template, "last", -1, "causal", max_tokens=10, dim=8)
    readme = export_card.card(spec, {"query": wrapping, "document": wrapping}, "transformers")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (called,) = re.findall(r"document_tokenizer, (gap=.*), before=1, after=1\)", code)
    assert ast.literal_eval(called.removeprefix("gap=")) == gap
    compile(code, "README.md", "exec")


@pytest.mark.parametrize("dim", [8, 5])
def test_whitening_goes_along(tiny_model: Path, tmp_path: Path, dim: int) -> None:
    from sentence_transformers import SentenceTransformer

    options = replace(EncoderOptions(str(make_whitened(tiny_model, tmp_path / "adapter", dim=8))), dim=dim)
    assert export(options, tmp_path / "st").cosine >= 0.9999
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(model.encode_document(TEXTS), wanted(options, "document"), atol=1e-5)
    assert export(options, tmp_path / "plain", "transformers").cosine >= 0.9999
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "plain" / "README.md").read_text(), re.DOTALL)
    names: dict[str, Callable[[list[str]], torch.Tensor]] = {}
    exec(code.replace("this-folder", str(tmp_path / "plain")), names)
    np.testing.assert_allclose(names["embed_documents"](TEXTS).numpy(), wanted(options, "document"), atol=1e-5)


def test_sentence_transformers_may_load_it_in_16_bits(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    options = EncoderOptions(str(make_whitened(tiny_model, tmp_path / "adapter", dim=8, pooling="suffix_mean")))
    export(options, tmp_path / "out")
    settings: dict[str, Any] = {"device": "cpu", "local_files_only": True, "trust_remote_code": True}
    model = SentenceTransformer(str(tmp_path / "out"), model_kwargs={"dtype": torch.bfloat16}, **settings)
    vectors = model.encode_document(TEXTS, convert_to_tensor=True).float().numpy()
    assert np.einsum("nd,nd->n", vectors, wanted(options, "document")).min() > 0.99


def test_an_adapter_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    options = options_of(adapter, prompt="cluster", pooling="last")
    steps: list[Progress] = []
    export(options, tmp_path / "out", on_progress=steps.append)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    made = model.encode_document(TEXTS)
    np.testing.assert_allclose(made, wanted(options, "document"), atol=1e-5)
    bare = options_of(tiny_model, prompt="cluster", pooling="last")
    assert np.abs(made - wanted(bare, "document")).max() > 0.01
    assert not list((tmp_path / "out").glob("adapter*"))
    assert str(tmp_path) not in (tmp_path / "out" / EXPORT_RECORD).read_text()
    assert [(step.stage, step.done, step.total) for step in steps] == [("export", n, 3) for n in range(4)]


@pytest.mark.parametrize("dim", [32, 12])
def test_half_precision_halves_the_weights(tiny_model: Path, tmp_path: Path, dim: int) -> None:
    from sentence_transformers import SentenceTransformer

    options = options_of(tiny_model, prompt="cluster", pooling="last", dtype="bfloat16", dim=dim)
    report = export(options, tmp_path / "out")
    assert (report.dtype, report.cosine >= 0.9999) == ("bfloat16", True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    made = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode_document(TEXTS, convert_to_tensor=True)
    cosines = (made.float().numpy() * wanted(options, "document")).sum(axis=1)
    assert cosines.min() > 0.99


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": "cluster", "pooling": "last_mean"}, "cannot express the pooling last_mean"),
        ({"prompt": "cluster", "query_prompt": "eol", "pooling": "suffix_mean"}, "with prompts of different lengths"),
        ({"prompt": "cluster", "pooling": "mean_text"}, "cannot express the pooling mean_text with a prompt"),
    ],
)
def test_a_pooling_that_cannot_be_expressed(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export(options_of(tiny_model, **settings), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def make_prefixing_model(tiny_model: Path, folder: Path) -> Path:
    """A tokenizer that begins every string, and every piece of one, with a mark of its own."""
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    marks = pre_tokenizers.Metaspace("_", prepend_scheme="always", split=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [marks, tokenizer.backend_tokenizer.pre_tokenizer]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("query_prompt", ["cluster", "query"])
def test_a_tokenizer_that_begins_every_string_with_a_mark(tiny_model: Path, tmp_path: Path, query_prompt: str) -> None:
    """As SentencePiece's do: one stands before the prompt, none between its parts and the text."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("_")
    tokenizer.save_pretrained(model)
    options = options_of(model, prompt="cluster", query_prompt=query_prompt, pooling="last")
    assert export(options, tmp_path / "out").cosine > exporting.PARITY
    assert export(options, tmp_path / "plain", "transformers").cosine > exporting.PARITY


def test_other_vectors_are_refused_with_a_way_out(tiny_model: Path, tmp_path: Path) -> None:
    model = make_prefixing_model(tiny_model, tmp_path / "model")
    settings: dict[str, Any] = {"prompt": "cluster", "query_prompt": "query", "pooling": "last"}
    with pytest.raises(ModelError, match=r"cosine -?0\.\d+ for the (query|document) .* two different prompts"):
        export(options_of(model, **settings), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # What it says helps.
    export(options_of(model, **settings), tmp_path / "plain", "transformers")
    export(options_of(model, **(settings | {"query_prompt": "cluster"})), tmp_path / "one")


def test_an_encoder_that_differs_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tiny_model, prompt="cluster", pooling="last")
    export(options, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}

    def zeros(folder: Path, encoder: Encoder) -> Embed:
        return lambda texts, role: np.zeros((len(texts), 32), np.float32)

    monkeypatch.setattr(exporting, "with_sentence_transformers", zeros)
    with pytest.raises(ModelError, match=r"cosine 0\.00000 for the query .*nothing was kept"):
        export(options, tmp_path / "out", overwrite=True)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def breaks(folder: Path, encoder: Encoder) -> Embed:
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(exporting, "with_sentence_transformers", breaks)
    for place in ("other", "deep/er/other"):
        with pytest.raises(ModelError, match="cannot use what was written; nothing was kept: no such thing"):
            export(options, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    options = options_of(tiny_model, prompt="cluster", pooling="last")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is there already.*--overwrite"):
        export(options, out)
    with pytest.raises(UsageError, match="is no earlier export"):
        export(options, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"
    export(options, tmp_path / "new" / "deep", "transformers")
    export(options, tmp_path / "new" / "deep", overwrite=True)
    assert json.loads((tmp_path / "new" / "deep" / EXPORT_RECORD).read_text())["to"] == "sentence-transformers"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["deep"]


def test_two_exports_at_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, out = options_of(tiny_model, prompt="cluster", pooling="last"), tmp_path / "out"
    write = exporting._write

    def overtaken(encoder: Encoder, folder: Path, to: exporting.Target) -> None:
        write(encoder, folder, to)
        with monkeypatch.context() as patch:
            patch.setattr(exporting, "_write", write)
            export(options, out, "transformers", overwrite=True)

    monkeypatch.setattr(exporting, "_write", overtaken)
    with pytest.raises(UsageError, match=r"out is there already: name another folder, or replace it"):
        export(options, out)
    assert json.loads((out / EXPORT_RECORD).read_text())["to"] == "transformers"
    export(options, out, overwrite=True)
    assert json.loads((out / EXPORT_RECORD).read_text())["to"] == "sentence-transformers"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_killed_exports_left_is_removed(tiny_model: Path, tmp_path: Path) -> None:
    options, out = options_of(tiny_model, prompt="cluster", pooling="last"), tmp_path / "out"
    left, alive, fresh, old = (
        tmp_path / f".out.making-{name}" for name in ("l3ft0000", "al1ve000", "fre_h000", "x-old")
    )
    for folder in (left, alive, fresh, old):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        if folder != fresh:
            os.utime(folder, (0, 0))
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    export(options, out, "transformers")
    assert {path.name for path in tmp_path.iterdir()} == {"out", alive.name, fresh.name, old.name}
    os.close(held)
    export(options, out, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", fresh.name, old.name}


def test_an_export_onto_its_own_input(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(options_of(tiny_model), out, "transformers")
    adapter = make_adapter(tiny_model, out / "adapter")
    for options in (options_of(out), options_of(adapter), EncoderOptions(str(tiny_model), adapter=str(adapter))):
        with pytest.raises(UsageError, match=r"which is to be exported, lies at .*out: name another folder with -o"):
            export(options, out, overwrite=True)
    assert adapter.is_dir()


def test_a_disk_that_refuses(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_modules", full)
    monkeypatch.setattr(exporting, "_save_tokenizer", full)
    with pytest.raises(StorageError, match=r"cannot write .*out: No space left on device"):
        export(options_of(tiny_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", ["_write", "_save_tokenizer"])
def test_a_disk_that_is_full(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    write = getattr(exporting, writer)

    def limited(*arguments: object) -> None:
        with files_up_to(2_000):
            write(*arguments)

    monkeypatch.setattr(exporting, writer, limited)
    with pytest.raises(StorageError) as caught:
        export(options_of(tiny_model), tmp_path / "out", "transformers")
    assert str(caught.value) == f"cannot write {tmp_path / 'out'}: File too large"
    assert list(tmp_path.iterdir()) == []


def test_no_sentence_transformers(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install sentence-transformers"):
        export(options_of(tiny_model), tmp_path / "out")


def test_a_model_with_code_of_its_own(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    monkeypatch.setattr(LlamaModel, "__module__", "transformers_modules.theirs.modeling")
    with pytest.raises(ModelError, match="runs Python code of its own"):
        export(options_of(tiny_model), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_not_utf8(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\\udcff is not UTF-8; name another one$"):
        export(options_of(tiny_model), tmp_path / "x\udcff", "transformers")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='unknown target "onnx"'):
        export(options_of(tiny_model), tmp_path / "out", "onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["sentence-transformers", "transformers"])
def test_an_export_is_no_backbone(tiny_model: Path, tmp_path: Path, to: exporting.Target) -> None:
    out = tmp_path / "out"
    export(options_of(make_whitened(tiny_model, tmp_path / "adapter", 8)), out, to)
    make_adapter(tiny_model, tmp_path / "other")
    for options in (options_of(out), EncoderOptions(str(out), adapter=str(tmp_path / "other"))):
        with pytest.raises(
            ModelError, match=r"is an export for other tools \(llmindex.json\), not a backbone: name the"
        ):
            Encoder.from_options(options)
