import json
from pathlib import Path

import pytest

from .conftest import Llmindex

TEXT = "The quick brown fox."


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.test_adapter import make_adapter

    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "adapter")


def test_a_text(llmindex: Llmindex, tiny_model: Path) -> None:
    ended = llmindex("attention", TEXT, "--model", tiny_model, "--prompt", "eol", "--pooling", "last")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["token", "part", "attention"]
    assert lines[1].split()[:2] == ["This", "first"]
    assert "attention of   the last token" in lines
    assert "layer          2 of 2, mean over 4 heads" in lines


@pytest.mark.parametrize("model", ["base", "adapted"])
def test_a_text_of_one_token(llmindex: Llmindex, tiny_model: Path, adapter: Path, tmp_path: Path, model: str) -> None:
    options = ("--model", adapter if model == "adapted" else tiny_model, "--prompt", "none", "--pooling", "last")
    ended = llmindex("attention", "a", *options)
    assert (ended.code, ended.err) == (0, "")
    assert "nan" not in ended.out
    assert "on the" not in ended.out
    assert ended.out.endswith(": there is no other to attend to\n")
    assert json.loads(llmindex("attention", "a", *options, "--json").out)["base"]["text_share"] is None
    refused = llmindex("attention", "a", *options, "--plot", tmp_path / "a.png")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the first token is left out, and this text has no other; give a longer one" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_beside_its_adaptation(llmindex: Llmindex, adapter: Path, tmp_path: Path) -> None:
    plot = tmp_path / "a.png"
    options = ("--model", adapter, "--prompt", "eol", "--pooling", "last", "--attention-layer", 1)
    ended = llmindex("attention", TEXT, *options, "--plot", plot)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0].split() == ["token", "part", "base", "adapted"]
    assert "points)" in ended.out
    assert plot.read_bytes().startswith(b"\x89PNG")
    report = json.loads(llmindex("attention", TEXT, *options, "--json").out)
    assert report["layer"] == 1
    assert report["change"] == pytest.approx(report["adapted"]["text_share"] - report["base"]["text_share"])
    assert {token["part"] for token in report["tokens"]} == {"first", "prompt", "text"}


def test_a_picture_replaces_pictures_alone(llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    plot = tmp_path / "a.png"
    arguments = ("attention", TEXT, "--model", tiny_model, "--plot", plot)
    for content in (b"my notes", b"", b"\x89PNG"):
        plot.write_bytes(content)
        ended = llmindex(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"Error: --plot {plot}: that file is there and is no .png image; name another one\n"
        assert plot.read_bytes() == content
    plot.unlink()
    assert llmindex(*arguments).code == 0
    drawn = plot.read_bytes()
    assert llmindex(*arguments, "--prompt", "eol").code == 0
    assert plot.read_bytes() != drawn


def test_a_corpus(llmindex: Llmindex, adapter: Path, documents: Path) -> None:
    options = ("--model", adapter, "--prompt", "eol", "--pooling", "weighted_mean", "--max-tokens", "4")
    ended = llmindex("attention", "--file", documents, "--limit", 7, *options)
    assert (ended.code, ended.err) == (0, "Cut 7 texts to the encoder's longest.\n")
    assert "texts          7" in ended.out
    assert "all tokens, averaged with the pooling's weights" in ended.out
    report = json.loads(llmindex("attention", "--file", documents, *options, "--json").out)
    assert (report["texts"], report["tokens"]) == (120, [])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Give a TEXT, or a corpus with --file"),
        ([TEXT, "--file", "a.txt"], 2, "Give a TEXT, or a corpus with --file"),
        (["--file", "a.txt", "--plot", "a.png"], 2, "--plot draws one text"),
        ([TEXT, "--limit", "3"], 2, "--limit is for --file"),
        ([TEXT, "--text-column", "a"], 2, "--text-column is for --file"),
        ([TEXT, "--id-column", "a"], 2, "--id-column is for --file"),
        ([TEXT, "--on-bad-row", "fail"], 2, "--on-bad-row is for --file"),
        ([TEXT, "--plot", "a.svg"], 2, "does not end in .png"),
        (["--file", "none.txt"], 1, "none.txt"),
        ([" "], 2, "the text is empty"),
        (["a\udcff"], 2, "the text ('a\\udcff') is not valid UTF-8"),
        ([TEXT, "--attention-layer", "9"], 2, "--attention-layer 9 is out of range"),
    ],
)
def test_bad_input(
    llmindex: Llmindex,
    tiny_model: Path,
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = llmindex("attention", *arguments, "--model", tiny_model)
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []
