import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.samples import make_store

from .conftest import Llmindex


def test_table_and_files(llmindex: Llmindex, index: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "labels.csv", tmp_path / "map.html"
    ended = llmindex("cluster", "-i", index, "--min-cluster-size", "10", "-o", out, "--plot", page)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split()[:3] == ["cluster", "size", "keywords"]
    assert any("striker" in line for line in lines)
    assert "of 120 documents; noise " in ended.out
    assert 'kept as "default"' in ended.out
    assert lines[-2:] == [f"Wrote {out}", f"Wrote {page}"]
    assert page.read_text(encoding="utf-8").startswith("<!")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"doc-{number}" for number in range(120)]
    assert {"id", "row", "label", "probability"} <= set(rows[0])


def test_the_summary_says_how_many_followed_their_neighbours(llmindex: Llmindex, index: Path) -> None:
    options = ("-q", "cluster", "-i", index, "--min-samples", "10")
    alone = llmindex(*options, "--no-assign-noise").out
    noise = re.search(r"; noise (\d+) documents \((.+%)\); ", alone)
    assert noise
    assert "placed" not in alone
    everyone = llmindex(*options, "--assign-distance", "2").out
    assert f"; noise 0 documents (0.0%), {noise[1]} more ({noise[2]}) placed by their neighbours; " in everyone


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_json(suffix: str, llmindex: Llmindex, index: Path, tmp_path: Path) -> None:
    out = tmp_path / f"labels{suffix}"
    ended = llmindex("-q", "cluster", "-i", index, "--name", "mine", "-o", out, "--json", "--selection", "leaf")
    assert (ended.code, ended.err) == (0, "")
    summary = json.loads(ended.out)
    assert list(summary) == ["documents", "clusters", "noise_share", "name", "file", "seconds"]
    for label, cluster in enumerate(summary["clusters"]):
        assert (cluster["label"], len(cluster["central_ids"])) == (label, min(3, cluster["size"]))
        assert cluster["keywords"]
    assert (summary["documents"], summary["name"], summary["file"]) == (120, "mine", str(out))
    stored = pq.read_table(index / "clusters" / "mine.parquet").to_pylist()
    written = (
        pq.read_table(out).to_pylist()
        if suffix == ".parquet"
        else [json.loads(line) for line in out.read_text().splitlines()]
    )
    assert written == stored
    assert summary["noise_share"] == pytest.approx(sum(row["label"] == -1 for row in stored) / 120)
    assert [each["size"] for each in summary["clusters"]] == [
        sum(row["label"] == label for row in stored) for label in range(len(summary["clusters"]))
    ]
    again = json.loads(llmindex("-q", "cluster", "-i", index, "--json").out)
    assert again["file"] == str(index / "clusters" / "default.parquet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "labels.xlsx"], "'labels.xlsx' does not end in .parquet or .csv or .jsonl"),
        (["--plot", "map.svg"], "'map.svg' does not end in .html or .png"),
        (["--plot", "nowhere/map.png"], "there is no folder 'nowhere'"),
        (["--min-cluster-size", "1"], "1 is not in the range x>=2"),
        (["--reduce", "tsne"], "'tsne' is not one of 'none', 'pca', 'umap'"),
        (["--assign-distance", "nan"], "nan is not a finite number"),
        (["--assign-distance", "0.5", "--no-assign-noise"], "--assign-distance is for --assign-noise"),
        (["--name", "../escape"], "../escape"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, llmindex: Llmindex, index: Path) -> None:
    ended = llmindex("cluster", "-i", index, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not (index / "clusters").exists()


def test_a_png_needs_matplotlib(llmindex: Llmindex, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = llmindex("cluster", "-i", index, "--plot", "map.png")
    assert ended.code == 1
    assert "pip install matplotlib" in ended.err
    assert not (index / "clusters").exists()


def test_no_cluster_at_all(llmindex: Llmindex, index: Path) -> None:
    ended = llmindex("cluster", "-i", index, "--min-cluster-size", "60")
    assert ended.out.startswith("0 clusters of 120 documents; noise 120 documents (100.0%); ")
    none_found = "No 60 documents are dense enough to be a cluster: try a smaller --min-cluster-size"
    assert ended.err.endswith(f"{none_found}.\n")
    again = llmindex("cluster", "-i", index, "--min-cluster-size", "60", "--json")
    assert json.loads(again.out)["clusters"] == []
    lost = 'the clustering "default" that was there is replaced (--name keeps both)'
    assert again.err.endswith(f"{none_found}; {lost}.\n")


@pytest.mark.parametrize(
    ("documents", "options", "said"),
    [
        (1, (), "Clusters take 4 documents at least."),
        (3, ("--min-cluster-size", "2"), "Clusters take 4 documents at least."),
        (5, (), "Clusters of 3 take 6 documents at least: try a smaller --min-cluster-size."),
        (5, ("--min-cluster-size", "2"), "No 2 documents are dense enough to be a cluster."),
    ],
)
def test_what_is_advised_can_be_done(
    documents: int, options: tuple[str, ...], said: str, llmindex: Llmindex, tmp_path: Path
) -> None:
    make_store(tmp_path / "few", np.eye(8, dtype=np.float32)[:documents])
    ended = llmindex("cluster", "-i", tmp_path / "few", *options)
    assert (ended.code, ended.err) == (0, f"{said}\n")
