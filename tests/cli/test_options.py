from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from llmindex_cli.encoder_options import encoder_options
from llmindex_cli.main import main
from llmindex_cli.options import Command, Size, corpus_options, index_option

from .conftest import Llmindex


@click.command("where", cls=Command)
@index_option
def where(index: Path) -> None:
    click.echo(str(index))


def found(*arguments: str) -> str:
    context = where.make_context("where", list(arguments))
    return str(context.params["index"])


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMINDEX_INDEX", raising=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5g", 15 * 10**8), ("512 MiB", 2**29), ("600000kB", 6 * 10**8), ("0.5TB", 5 * 10**11)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size()(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "0GB", "0.0MB", "2 G B", "infGB", "２GB", "9999999999GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 2GB or 512MB"):
        Size()(text)


@pytest.mark.parametrize("text", ["1kb", "0.0001kB", "999kB"])
def test_a_size_too_small_for_anything(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}' is less than 1MB"):
        Size()(text)


def test_the_only_index_here_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.llmindex").mkdir()
    (tmp_path / "file.llmindex").touch()
    assert found() == "a.llmindex"


def test_the_environment_comes_before_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.llmindex").mkdir()
    monkeypatch.setenv("LLMINDEX_INDEX", "/elsewhere/b.llmindex")
    assert found() == "/elsewhere/b.llmindex"
    assert found("-i", "c.llmindex") == "c.llmindex"
    assert found("--index", "c") == "c"


def test_no_index_says_how_to_make_one(llmindex: Llmindex, tmp_path: Path) -> None:
    ended = llmindex("search", "x")
    assert ended.code == 1
    assert ended.err == (
        f"Error: no *.llmindex folder in {tmp_path}: name an index with -i or $LLMINDEX_INDEX, "
        "or make one with `llmindex build CORPUS`\n"
    )


def test_an_index_without_its_option(llmindex: Llmindex) -> None:
    ended = llmindex("info", "mine.llmindex")
    assert ended.code == 2
    assert ended.err == "Error: Got unexpected extra argument (mine.llmindex). Try 'llmindex info --help'.\n"


def test_several_indexes_are_listed(llmindex: Llmindex, tmp_path: Path) -> None:
    (tmp_path / "b.llmindex").mkdir()
    (tmp_path / "a.llmindex").mkdir()
    ended = llmindex("info")
    assert ended.code == 2
    assert "Several indexes here: a.llmindex, b.llmindex. Choose one with -i or $LLMINDEX_INDEX." in ended.err


def test_encoder_options_are_those_of_the_library() -> None:
    from llmindex.encode.settings import EncoderOptions

    taken: dict[str, Any] = {}

    @click.command(cls=Command)
    @encoder_options
    def probe(encoder: dict[str, Any]) -> None:
        taken.update(encoder)

    probe.main([], standalone_mode=False)
    # Who computes the model is for each command to say.
    assert list(taken) == [field.name for field in fields(EncoderOptions) if field.name != "engine"]
    assert EncoderOptions(**taken) == EncoderOptions()


def test_corpus_options_are_those_of_the_library() -> None:
    from llmindex.corpus import CorpusOptions

    taken: dict[str, Any] = {}

    @click.command(cls=Command)
    @corpus_options
    def probe(**options: Any) -> None:  # noqa: ANN401
        taken.update(options)

    probe.main([], standalone_mode=False)
    assert CorpusOptions(**taken) == CorpusOptions()
    assert set(taken) == {field.name for field in fields(CorpusOptions)}


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("_LLMINDEX_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert main([]) == 0
    return capfd.readouterr().out.split()


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one.llmindex", "two.llmindex", "other"):
        (tmp_path / name).mkdir()

    def completed(line: str) -> list[str]:
        return complete(line, monkeypatch, capfd)

    assert completed("llmindex se") == ["plain,search"]
    assert completed("llmindex build --prompt cl") == ["plain,cluster", "plain,cluster_short", "plain,classify"]
    assert completed("llmindex encode --pooling m") == ["plain,mean", "plain,mean_text", "plain,max"]
    assert completed("llmindex search -i ") == ["plain,one.llmindex", "plain,two.llmindex"]
    assert completed(f"llmindex info --index {tmp_path}/o") == [f"plain,{tmp_path}/one.llmindex"]
    assert completed("llmindex info -i x") == ["dir,x"]
    assert completed("llmindex build --model d") == ["plain,default", "plain,default-base"]
    assert completed("llmindex build --model default-") == ["plain,default-base"]
    assert completed("llmindex build --model enc") == ["file,enc"]
    assert completed("llmindex build --device c") == ["plain,cpu", "plain,cuda"]
    assert completed("llmindex build ") == ["file,"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_LLMINDEX_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert "_LLMINDEX_COMPLETE" in capfd.readouterr().out
