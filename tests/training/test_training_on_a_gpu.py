"""What is trained and generated on a GPU, on one that is pretended: the same as on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from llmindex.encode import device
from llmindex.encode.settings import EncoderOptions
from llmindex_training import attention, instruct, trainer
from llmindex_training.instruct import Generator, Request
from tests.pretend_gpu import pretend_gpu
from tests.tiny_instruct import make_tiny_instruct
from tests.training_runs import tiny_recipe, write_pairs


def losses(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text("utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_it_learns_what_a_cpu_learns(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet")
    options = (f"model.attention={kind}", "model.lora_dropout=0", "model.whitening=16")
    trainer.train([pairs], tmp_path / "cpu", tiny_recipe(tiny_model, *options))
    with pretend_gpu(half=False) as gpu:
        recipe = tiny_recipe(tiny_model, *options, "optim.device=auto")
        trainer.train([pairs], tmp_path / "gpu", recipe)
        assert device.resolve(recipe.optim.device).device == torch.device("cuda")
    assert gpu.waits
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_it_answers_as_a_cpu_does(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruct, "TOP_K", 1)  # no chance
    model = str(make_tiny_instruct(tiny_model, tmp_path / "tiny-instruct"))
    requests = [Request(row, text, "detail") for row, text in enumerate(["The dog sleeps.", "Goals", "A house " * 20])]
    expected = Generator(model, device="cpu", dtype="float32").reword(requests, 1)
    with pretend_gpu(half=False):
        generator = Generator(model, device="auto", dtype="float32")
        assert generator.placement.device.type == "cuda"
        assert generator.reword(requests, 1) == expected


def test_it_attends_as_a_cpu_does(tiny_model: Path) -> None:
    def paid(place: str) -> list[float]:
        options = EncoderOptions(str(tiny_model), prompt="cluster", dtype="float32", device=place)
        return [token.base for token in attention.of_text(options, "The dog sleeps.").tokens or ()]

    expected = paid("cpu")
    with pretend_gpu(half=False):
        assert paid("cuda") == pytest.approx(expected, abs=1e-6)
    assert expected
