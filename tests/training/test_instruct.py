"""The generator: which models it takes, and that padding and batch mates change nothing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from llmindex.encode import embedded
from llmindex.errors import ModelError
from llmindex_training import instruct
from llmindex_training.filters import REASONS
from llmindex_training.instruct import Generator, Request
from llmindex_training.instructions import INSTRUCTIONS, choose_instructions
from tests.tiny_instruct import make_tiny_instruct

TEXTS = ["The dog sleeps.", "A vector index answers which of the documents lie nearest to a question.", "Goals"]
needs_default = pytest.mark.skipif(embedded.find_gguf() is None, reason=f"default model: {embedded.INSTALL}")


@pytest.fixture(scope="module")
def tiny_instruct(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_instruct(tiny_model, tmp_path_factory.mktemp("models") / "tiny-instruct")


@pytest.fixture(scope="module")
def generator(tiny_instruct: Path) -> Generator:
    return Generator(str(tiny_instruct), device="cpu", dtype="float32")


def requests(texts: Sequence[str] = TEXTS) -> list[Request]:
    return [Request(row, text, name) for row, text in enumerate(texts) for name in INSTRUCTIONS]


def test_the_seed_decides_and_the_callers_own_chance_stays(generator: Generator) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    once, again, other = (generator.reword(requests(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert once == again != other
    assert all(verdict.reason is None or verdict.reason in REASONS for verdict in once)


def test_padding_changes_nothing(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the likeliest token alone there is no chance left: each row must be what it is without batch mates."""
    monkeypatch.setattr(instruct, "TOP_K", 1)
    together = generator.reword(requests(), 0)
    alone = [generator.reword([request], 0)[0] for request in requests()]
    assert together == alone


def test_batches_are_reported_and_a_long_text_is_cut(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    long = "word " * 5000
    generator.reword(requests([long, *TEXTS, *TEXTS]), 0, lambda count, tokens: seen.append((count, tokens)))
    assert [count for count, _ in seen] == [16, 16, 3]
    assert all(tokens < 16 * 2 * instruct.MAX_SOURCE_TOKENS for _, tokens in seen)


def test_a_batch_that_does_not_fit_is_halved(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = generator._sample
    sizes: list[int] = []

    def scarce(prompts: Sequence[instruct._Prompt], seed: int) -> torch.Tensor:
        sizes.append(len(prompts))
        if len(prompts) > 4:
            raise torch.OutOfMemoryError
        return sample(prompts, seed)

    monkeypatch.setattr(generator, "_sample", scarce)
    assert len(generator.reword(requests(), 0)) == 15
    assert sorted(set(sizes), reverse=True) == [15, 8, 7, 4, 3]
    monkeypatch.setattr(generator, "_sample", lambda prompts, seed: scarce([*prompts] * 5, seed))
    with pytest.raises(ModelError, match="smaller --generator"):
        generator.reword(requests()[:1], 0)


def test_instructions_are_drawn_without_repetition() -> None:
    import random

    assert sorted(choose_instructions(list(INSTRUCTIONS), 9, random.Random(0))) == sorted(INSTRUCTIONS)
    drawn = {choose_instructions(list(INSTRUCTIONS), 1, random.Random(seed))[0] for seed in range(60)}
    assert drawn == set(INSTRUCTIONS)


def test_a_model_without_chat_template_is_refused(tiny_instruct: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_instruct, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template.*--generator"):
        Generator(str(folder), device="cpu")


def test_a_model_without_language_head_is_refused(tiny_instruct: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_instruct, tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        shutil.copy(tiny_model / name, folder / name)
    with pytest.raises(ModelError, match="cannot generate text"):
        Generator(str(folder), device="cpu")


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% broken"])
def test_a_template_that_fails_is_one_line(template: str, tiny_instruct: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_instruct, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="chat template") as caught:
        Generator(str(folder), device="cpu").reword(requests(), 0)
    assert "\n" not in str(caught.value)


def test_a_damaged_model_is_one_line(tiny_instruct: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_instruct, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ModelError, match="cannot") as caught:
        Generator(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@needs_default
def test_the_default_model_rewords() -> None:
    text = "The committee postponed its decision on the merger until regulators had reviewed the implications."
    generator = Generator("default", device="cpu")
    wanted = [Request(row, text, name) for row in range(2) for name in ("detail", "simpler")]
    verdicts = generator.reword(wanted, 0)
    assert any(verdict.reason is None and "decision" in verdict.text for verdict in verdicts), verdicts


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_drawn_from_what_transformers_draws_from(spread: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    scores = expected = spread * torch.randn(6, 700)
    for warper in (TemperatureLogitsWarper(0.6), TopKLogitsWarper(50), TopPLogitsWarper(0.9)):
        expected = warper(torch.zeros(6, 1, dtype=torch.long), expected)
    shares, ids = instruct.likeliest(scores)
    whole = torch.zeros_like(scores).scatter_(1, ids, shares)
    torch.testing.assert_close(whole, torch.softmax(expected, dim=-1), rtol=1e-4, atol=1e-7)


def test_a_draw_leaves_one_token_and_follows_the_shares() -> None:
    scores = torch.tensor([3.0, 2.7, -9.0, 0.0]).log_softmax(0).repeat(20_000, 1)
    torch.manual_seed(0)
    left = instruct._draw(torch.zeros(20_000, 1, dtype=torch.long), scores)
    assert torch.equal(torch.isfinite(left).sum(1), torch.ones(20_000, dtype=torch.long))
    shares, ids = instruct.likeliest(scores[:1])
    drawn = torch.bincount(left.argmax(1), minlength=4) / 20_000
    torch.testing.assert_close(drawn[ids[0]], shares[0], rtol=0, atol=0.015)
