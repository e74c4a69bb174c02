import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "demo.sh"


@pytest.mark.parametrize("where", ["beside the project", "from the root"])
def test_the_demonstration_runs_what_is_in_the_folder_named(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "llmindex"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name}:" "$@"\n')
        (folder / name).chmod(0o755)
    script = tmp_path / "scripts" / "demo.sh"
    script.parent.mkdir()
    shutil.copy(SCRIPT, script)
    named = folder.name if where == "beside the project" else str(folder)
    ended = subprocess.run([script, named], capture_output=True, text=True, check=True, cwd="/")
    lines = ended.stdout.splitlines()
    assert lines.count("llmindex: build demo/stdlib.parquet -o demo/stdlib.llmindex --max-tokens 64") == 1
    assert sum(line.startswith("llmindex: ") for line in lines) == 5
    assert lines[-2] == f'Ask something else:   {named}/llmindex search -i demo/stdlib.llmindex "compress data"'


def test_a_folder_that_is_not_there() -> None:
    ended = subprocess.run([SCRIPT, "nowhere/at/all"], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "nowhere/at/all: No such file" in ended.stderr
    assert ended.stdout == ""
