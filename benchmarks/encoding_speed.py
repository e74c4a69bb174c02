"""Encoding here against the published embedder and sentence-transformers: tokens per second on the same texts.

Texts of mixed lengths (agnews, newsgroups20, stackoverflow in equal parts, in random order), the embedded default
model, one dtype. The published embedder is rewritten from its description (Roth et al., arXiv 2507.22729, and the
habits of its code): texts are cut, decoded, wrapped and tokenised again; batches of 32 come padded in the order of
arrival; the language-model head over the whole vocabulary and the states of all layers are computed.
"llmindex by transformers" packs its batches as llmindex does, into the layers of transformers.
sentence-transformers runs the folder that `llmindex export` writes, at whichever of several batch sizes is its best.

All run in turn in one process, whose tokens (prompt included, padding not) are counted the same. The peak is the best
of some square matrix products; a token takes two operations for each weight of the linear maps. On a machine with other
work, `--clock cpu` counts the processor's seconds, of all threads, in place of the wall's.

    python benchmarks/encoding_speed.py [--texts 300] [--rounds 5] [--dtype bfloat16] [--clock cpu]
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from llmindex import Encoder
from llmindex.encode import models
from llmindex.encode.settings import EncoderOptions, Engine
from llmindex_training.export import export
from shared_data import clustering_set

RESULTS = Path(__file__).parent / "results" / "encoding_speed.json"
SETS = ("agnews", "newsgroups20", "stackoverflow")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
MAX_TOKENS = 512
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Embed = Callable[[list[str]], Any]


def ours(dtype: str, engine: Engine = "auto") -> Embed:
    """The encoder of a build, or as transformers computes it."""
    encoder = Encoder.load(models.DEFAULT, dtype=dtype, engine=engine)
    return encoder.encode


def sentence_transformers(dtype: str, texts: Sequence[str], clock: str) -> Embed:
    """The exported default, at its best batch size for these texts."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "default"
        export(EncoderOptions(models.DEFAULT), exported)
        model = SentenceTransformer(
            str(exported),
            device="cpu",
            model_kwargs={"dtype": getattr(torch, dtype)},
            trust_remote_code=True,  # the export's own pooling
        )
    timed = {size: seconds(partial(model.encode, batch_size=size), texts, clock) for size in BATCH_SIZES}
    best = min(timed, key=lambda size: timed[size])
    print(f"sentence-transformers by batch size: {timed}; takes {best}", flush=True)
    return partial(model.encode, batch_size=best)


def published(dtype: str) -> Embed:
    """The published embedder, on the backbone alone: an adapter that is not merged would make it slower still."""
    found = models.find(models.BASE)
    folder = str(found.local.folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> None:
        for start in range(0, len(texts), 32):
            cut = tokenizer(texts[start : start + 32], truncation=True, max_length=MAX_TOKENS)["input_ids"]
            decoded = tokenizer.batch_decode(cut, skip_special_tokens=True)
            wrapped = [f'This sentence: "{text}" belongs to the following cluster:' for text in decoded]
            inputs = tokenizer(wrapped, padding=True, return_tensors="pt")
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
            ends = inputs["attention_mask"].sum(dim=1) - 1
            nn.functional.normalize(states[torch.arange(len(ends)), ends].float(), dim=1)

    return embed


def seconds(embed: Embed, texts: Sequence[str], clock: str) -> float:
    """Time by one of the clocks."""
    started = CLOCKS[clock]()
    embed(list(texts))
    return round(CLOCKS[clock]() - started, 2)


def peak(dtype: str, clock: str, size: int = 2048) -> float:
    """The most operations a second that a square product of matrices reached here."""
    left, right = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = CLOCKS[clock]()
        left @ right
        best = max(best, 2 * size**3 / (CLOCKS[clock]() - started))
    return best


def main() -> None:
    """Measure in turn, print the medians and save all rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    texts = [text for name in SETS for text in clustering_set(name, arguments.texts // len(SETS)).texts]
    random.Random(0).shuffle(texts)
    encoder = Encoder.load(models.DEFAULT, dtype=arguments.dtype, engine="transformers")
    tokens = int(encoder.tokenize(texts).lengths.sum())
    linear = [module for module in encoder.backbone.model.modules() if isinstance(module, nn.Linear)]
    work = 2 * sum(module.weight.numel() for module in linear)
    embedders = {
        "published": published(arguments.dtype),
        "sentence-transformers": sentence_transformers(arguments.dtype, texts, arguments.clock),
        "llmindex by transformers": ours(arguments.dtype, "transformers"),
        "llmindex": ours(arguments.dtype),
    }
    rounds: dict[str, list[float]] = {name: [] for name in embedders}
    peaks = []
    for _ in range(arguments.rounds):
        peaks.append(peak(arguments.dtype, arguments.clock))
        for name, embed in embedders.items():
            rounds[name].append(seconds(embed, texts, arguments.clock))
            print(name, rounds[name][-1], "s", flush=True)
    speeds = {name: tokens / statistics.median(taken) for name, taken in rounds.items()}
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "texts": len(texts),
        "tokens": tokens,
        "seconds": rounds,
        "tokens_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "times_published": round(speeds["llmindex"] / speeds["published"], 2),
        "times_sentence_transformers": round(speeds["llmindex"] / speeds["sentence-transformers"], 2),
        "share_of_peak": round(speeds["llmindex"] * work / statistics.median(peaks), 3),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "seconds"}, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
