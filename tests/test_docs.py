"""What README says is true: its Python code runs, its commands and options exist."""

import json
import re
from pathlib import Path

import pytest

from llmindex.encode import embedded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

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
    assert getattr(scope["vectors"], "shape", None) == (2, 576)


def test_readme_and_the_command_line_name_the_same_commands() -> None:
    from llmindex_cli.main import root

    table = README.split("| command | does |")[1].split("\n\n")[0]
    documented = {name for cell in re.findall(r"^\| (.*?) \|", table, re.M) for name in re.findall(r"`([a-z]+)", cell)}
    assert documented == set(root.list_commands(None))  # type: ignore[arg-type]


def test_every_option_that_readme_names_exists() -> None:
    import click

    from llmindex_cli.main import root

    context = click.Context(root)
    known = {"--help", "--version", "--no-deps"}
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        known |= {option for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named - known == set()


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_to_files_of_the_project_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
