"""Fixtures that every test folder shares: a tiny random decoder, and the place of the shared evaluation data."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure: how long an example takes decides no test.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test run never asks a model hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nor does it leave a process behind; the tests of the resident searcher have one of their own.
os.environ["LLMINDEX_NO_DAEMON"] = "1"

TRAINING_TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "This sentence belongs to the following cluster: sport, politics, science, business.",
    "A vector index answers which of the stored documents lie nearest to a question.",
    "Ein Satz auf Deutsch mit Umlauten: äöü, und une phrase française: éàè.",
]


def make_tiny_model(folder: Path, seed: int = 0, **config: int) -> Path:
    """Write a random two-layer Llama (hidden size 32) with a byte-level BPE tokenizer; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    model = LlamaModel(LlamaConfig(vocab_size=len(fast), initializer_range=0.2, **(sizes | config)))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama: real code paths, meaningless vectors, milliseconds to run."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of evaluation data; skips where it is absent."""
    folder = Path(os.environ.get("LLMINDEX_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no evaluation data at {folder}; set LLMINDEX_SHARED")
    return folder
