import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.encode.encoder import Encoder
from tests.training_runs import TOPICS, tiny_recipe, write_pairs

from .conftest import Llmindex, start
from .test_bad_input import NAMESPACE, can_mount


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with pairs.parquet, recipe.toml and topics.parquet."""
    write_pairs(tmp_path / "pairs.parquet")
    (tmp_path / "recipe.toml").write_text(tiny_recipe(tiny_model).to_toml(), encoding="utf-8")
    rows = {"text": [f"{TOPICS[n % 4]} {n}" for n in range(40)], "label": [n % 4 for n in range(40)]}
    pq.write_table(pa.table(rows), tmp_path / "topics.parquet")
    return tmp_path


def test_a_run_for_people(process: Llmindex, llmindex: Llmindex, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("train", "pairs.parquet", "-o", "my run", "--recipe", "recipe.toml")
    ended = process(*arguments, cwd=here)
    assert ended.code == 0, ended.err
    out = ended.out.splitlines()
    assert out[0].split() == ["step", "MRR"]
    assert [line.split()[0] for line in out[1:5]] == ["0", "4", "8", "12"]
    assert sum(line.endswith("kept") for line in out[1:5]) == 1
    assert out[5:8] == ["", "adapter     my run/adapter", "pairs       80"]
    assert out[8].startswith("steps       12, that of step ")
    assert "tokens/s" in out[9]
    assert out[10].startswith("took        ")
    said = ended.err.splitlines()[-1]
    assert said == "Next: llmindex build CORPUS -o adapted.llmindex --model 'my run/adapter'"
    # The adapter stands on its own, from any folder.
    assert Encoder.load(str(here / "my run" / "adapter")).encode(["a"]).shape == (1, 32)

    monkeypatch.chdir(here)
    again = llmindex(*arguments)
    assert again.code == 0
    assert [line.split() for line in again.out.splitlines()] == [line.split() for line in out[:9]]
    assert again.err.startswith("This run was complete already; start it afresh with --overwrite, or train into ")

    changed = llmindex(*arguments, "--set", "optim.steps=20")
    assert (changed.code, changed.out) == (1, "")
    assert changed.err == (
        "Error: my run was started with another recipe (optim.steps was 12, now 20); train into another folder with "
        "-o, or start afresh with --overwrite\n"
    )


def test_a_run_for_programs(llmindex: Llmindex, here: Path) -> None:
    run = here / "run"
    arguments = ("train", here / "pairs.parquet", "-o", run, "--recipe", here / "recipe.toml", "--json")
    ended = llmindex("-q", *arguments, "--set", "optim.steps=4", "--set", "model.pooling=mean")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert (report["pairs"], report["steps"], report["kept_steps"], report["complete_before"]) == (80, 4, [4], False)
    assert report["adapter"] == str(run / "adapter")
    assert list(report["scores"]) == ["0", "4"]
    assert report["tokens_per_s"] > 0
    assert Encoder.load(str(run / "adapter")).spec.pooling == "mean"
    ended = llmindex("-q", *arguments, "--overwrite", "--set", "optim.steps=8")
    assert json.loads(ended.out)["steps"] == 8


def test_scored_by_files(llmindex: Llmindex, here: Path) -> None:
    arguments = ("train", here / "pairs.parquet", "-o", here / "run", "--recipe", here / "recipe.toml", "--json")
    evaluate = ("--evaluate", here / "topics.parquet")
    ended = llmindex("-q", *arguments, *evaluate)
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    measured = llmindex(
        "-q", "evaluate", "clustering", here / "topics.parquet", "--model", report["adapter"], "--json", "--max-tokens",
        32, "--dtype", "float32",
    )  # fmt: skip
    v_measure = next(score for score in map(json.loads, measured.out.splitlines()) if score["metric"] == "v_measure")
    assert np.isclose(report["scores"][str(report["kept_steps"][0])], v_measure["score"], atol=0.02)
    ended = llmindex("-q", *arguments)
    assert ended.code == 1
    assert "run was scored by the V-measure of topics (" in ended.err
    assert "now by the held-out pairs; train into another folder with -o" in ended.err
    assert llmindex("-q", *arguments, *evaluate).code == 0


def test_bad_input(llmindex: Llmindex, here: Path) -> None:
    run = here / "run"
    wrong, empty, one = (here / f"{name}.parquet" for name in ("wrong", "empty", "one"))
    pq.write_table(pa.table({"question": ["a"]}), wrong)
    pq.write_table(pa.table({"text": ["a", " "], "text_pair": ["b", "c"]}), empty)
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "x"]}), one)

    def refused(code: int, why: str, *arguments: str | Path) -> None:
        ended = llmindex("train", "-o", run, *arguments)
        assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1), ended.err
        assert why in ended.err

    recipe = ("--recipe", here / "recipe.toml")
    pairs = here / "pairs.parquet"
    refused(1, 'has no column "text" (columns: question)', wrong, *recipe)
    refused(1, f'{empty}, row 1: "text" is empty', empty, *recipe)
    refused(1, f"no such file: {here / 'none.parquet'}", here / "none.parquet", *recipe)
    refused(1, 'unknown key "optim.step"; did you mean "optim.steps"?', pairs, *recipe, "--set", "optim.step=3")
    refused(1, "must have the form section.key=value", pairs, *recipe, "--set", "steps=3")
    refused(1, "optim.steps must not be negative, not -1", pairs, *recipe, "--set", "optim.steps=-1")
    refused(1, 'no recipe "nothing"', pairs, "--recipe", "nothing")
    refused(1, "has one class only", pairs, *recipe, "--evaluate", one)
    refused(1, 'no column "text"', pairs, *recipe, "--evaluate", wrong)
    refused(2, "Missing argument 'PAIRS...'", *recipe)
    assert not run.exists()
    refused(1, "notes", pairs, *recipe, "--set", "model.base=./notes")
    assert not (run / "adapter").exists()
    (here / "file").touch()
    assert llmindex("train", pairs, *recipe, "-o", here / "file").code == 2
    assert llmindex("train", pairs, *recipe, "-o", here, "--overwrite").code == 2  # a recipe.toml makes no run


def test_ctrl_c(llmindex: Llmindex, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process, interrupted after its first checkpoint; a second one on the same run is refused."""
    arguments = ("train", "pairs.parquet", "-o", "run", "--recipe", "recipe.toml", "--set", "optim.steps=4000")
    running = start(*arguments, cwd=here)
    deadline = time.monotonic() + 120
    while not (here / "run/checkpoints/checkpoint-8/checksums.json").exists():
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    monkeypatch.chdir(here)
    second = llmindex(*arguments)
    assert second.code == 1
    assert second.err == f"Error: run is being written by process {running.pid}; wait for it or stop it\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, b"")
    message = err.decode().splitlines()[-1]
    assert message.startswith("Interrupted: the checkpoint of step ")
    assert message.endswith(" is kept; run the same command again to go on")
    assert not (here / "run" / "adapter").exists()


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small tmpfs")
def test_a_full_disk_while_checkpointing(here: Path) -> None:
    small = here / "small"
    small.mkdir()
    train = f"{sys.executable} -m llmindex_cli -q train pairs.parquet --recipe recipe.toml -o small/run --json"
    script = f"""
        mount -t tmpfs -o size=300k tmpfs {small}
        {train}; echo "train $?"
        ls small/run/checkpoints | wc -l
        ls small/run | grep -c adapter
        mount -o remount,size=16m {small}
        {train} | grep -o '"steps": [0-9]*'
        cp -r small/run kept
    """
    ended = subprocess.run(
        [*NAMESPACE, "bash", "-c", script], capture_output=True, text=True, check=False, cwd=here, env={**os.environ}
    )
    step = re.fullmatch(
        r"Error: cannot write the checkpoint of step (8|12) to small/run/checkpoints: .+; the checkpoint of step (4|8) "
        r"is safe; free space and run the same command again\n",
        ended.stderr,
    )
    assert step is not None, ended.stderr
    whole = int(step[2])
    assert whole == int(step[1]) - 4
    assert ended.stdout.splitlines() == ["train 1", str(whole // 4), "0", '"steps": 12']
    shutil.rmtree(small)
    assert (here / "kept" / "adapter" / "encoder.json").is_file()
