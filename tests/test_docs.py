"""What README and the guides say is true: code runs, command lines are accepted, keys, tests and files exist."""

import itertools
import json
import re
import shlex
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from llmindex.encode import embedded
from llmindex_cli.main import root
from llmindex_training import recipe as recipes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE_NAMES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
NAMES = ["README.md", *GUIDE_NAMES]
GUIDES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in GUIDE_NAMES]
RECIPE_PAGE = GUIDES[GUIDE_NAMES.index("recipe.md")]
# Options of pip and torchrun.
FOREIGN_OPTIONS = {"--logdir", "--help", "--version", "--no-deps", "--nproc-per-node"}

TOPICS = {
    "sort": [
        "sorted() returns a new sorted list",
        "list.sort() sorts a list in place",
        "sort a list of dicts by a key",
    ],
    "http": ["urllib opens a URL over HTTP", "an HTTP server that answers GET", "send a POST request with headers"],
    "date": ["datetime parses an ISO date", "time zones and daylight saving time", "format a date with strftime"],
}


@pytest.mark.skipif(embedded.find_gguf() is None, reason=f"default model: {embedded.INSTALL}")
def test_the_python_code_in_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [
        {"id": f"{topic}-{number}", "text": text, "topic": topic}
        for topic, texts in TOPICS.items()
        for number, text in enumerate(texts)
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert getattr(scope["vectors"], "shape", None) == (2, 384)


def test_readme_and_the_command_line_name_the_same_commands() -> None:
    table = README.split("| command | does |")[1].split("\n\n")[0]
    documented = {name for cell in re.findall(r"^\| (.*?) \|", table, re.M) for name in re.findall(r"`([a-z]+)", cell)}
    assert documented == set(root.list_commands(None))  # type: ignore[arg-type]


def options_of(command: click.Command) -> set[str]:
    """All options of a command and of the commands below it."""
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            known |= options_of(below)
    return known


@pytest.mark.parametrize("page", [README, *GUIDES], ids=NAMES)
def test_every_option_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    assert named - options_of(root) - FOREIGN_OPTIONS == set()


MENTION = re.compile(r"llmindex((?: [a-z]+)+)")


@pytest.mark.parametrize("page", [README, *GUIDES], ids=NAMES)
def test_every_command_that_is_mentioned_exists(page: str) -> None:
    for words in re.findall(rf"`{MENTION.pattern}`", page):
        command: click.Command | None = root
        for name in words.split():
            assert isinstance(command, click.Group), words
            command = command.get_command(click.Context(command), name)
            assert command is not None, words


def command_lines(page: str) -> list[list[str]]:
    """The arguments of each ``llmindex ...`` in a page's code, whoever starts it."""
    blocks = re.findall(r"^ *```(?:sh|console)\n(.*?)^ *```", page, re.DOTALL | re.M)
    spans = [
        span
        for span in re.findall(r"(?<!`)`(llmindex [^`]+)`(?!`)", page)
        if not MENTION.fullmatch(" ".join(span.split()))
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "<TAB>" not in line]
    found = []
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        starts = [place for place, word in enumerate(words) if word in ("llmindex", "llmindex_cli")]
        for start in starts:
            own = itertools.takewhile(lambda word: word not in ("|", ">", ">>", "&&", ";"), words[start + 1 :])
            if arguments := list(own):
                found.append(arguments)
    return found


LINES = [arguments for page in (README, *GUIDES) for arguments in command_lines(page)]


@pytest.mark.parametrize("arguments", LINES, ids=" ".join)
def test_every_command_line_is_accepted(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed for real, callbacks and checks of options included; only the command itself is not run."""
    parsed: list[click.Context] = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: parsed.append(context))
    monkeypatch.delenv("LLMINDEX_INDEX", raising=False)
    monkeypatch.chdir(tmp_path)
    for folder in ("corpus.llmindex", "demo", "runs"):
        Path(folder).mkdir()
    with root.make_context("llmindex", list(arguments)) as context:
        root.invoke(context)
    values = parsed[-1].params
    assert values.keys() >= {parameter.name for parameter in parsed[-1].command.params}
    if "settings" in values:
        recipes.load(values["recipe"], values["settings"])


def test_the_guides_have_command_lines() -> None:
    """That the search for them finds any, and all kinds."""
    assert {arguments[0] for arguments in LINES} >= {"build", "search", "pairs", "train", "attention", "mine", "export"}
    assert any("torchrun" in page for page in GUIDES)


def rows_of(page: str, title: str) -> dict[str, list[str]]:
    """A section's table: the cells after the first, by the name in the first."""
    section = page.split(f"\n## {title}")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in re.findall(r"^\| `.*\|$", section, re.M)]
    return {name.strip("`"): cells for name, *cells in rows}


def written(value: object) -> Any:  # noqa: ANN401
    """A value as TOML gives it back."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("section", ["data", "model", "loss", "optim"])
def test_recipe_page_has_every_field_and_its_default(section: str) -> None:
    rows = rows_of(RECIPE_PAGE, f"[{section}]")
    assert {name: tomllib.loads(f"value = {cells[0].strip('`')}")["value"] for name, cells in rows.items()} == {
        name: written(value) for name, value in asdict(recipes.Recipe())[section].items()
    }
    assert all(len(cells) == 3 and all(cells) for cells in rows.values())


def test_recipe_page_says_what_each_recipe_changes() -> None:
    rows = rows_of(RECIPE_PAGE, "The recipes that come along")
    assert set(recipes.names()) == {"paper", "default", "tiny-cpu"}
    for place, name in enumerate(("default", "tiny-cpu")):
        cells = {key: cells[place].strip("`") for key, cells in rows.items() if cells[place]}
        settings = [f"{key}={cell}" for key, cell in cells.items()]
        assert recipes.load("paper", settings) == recipes.load(name)
        assert len(settings) == len(recipes.changes(recipes.load("paper"), recipes.load(name)))
    assert recipes.load("paper") == recipes.Recipe()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", "".join(GUIDES)))))
def test_every_test_that_is_named_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^ *def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *(f"docs/{name}" for name in GUIDE_NAMES)]
)
def test_links_to_files_of_the_project_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
