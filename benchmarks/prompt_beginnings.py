"""What does it save to compute a prompt's beginning once, not with each text?

The bundled model, titles of stackoverflow, prompts whose beginnings are short and long, vectors of the last token. The
same encoder with the beginning and without, in turn; tokens are counted whole in both.

    python benchmarks/prompt_beginnings.py [--texts 200] [--rounds 5] [--clock cpu]   # → results/prompt_beginnings.json
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from llmindex import Encoder
from llmindex.encode import llama, models
from shared_data import clustering_set

RESULTS = Path(__file__).parent / "results" / "prompt_beginnings.json"
PROMPTS = ("cluster", "pcot", "knowledge", "emotion")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def load(prompt: str, *, shared: bool) -> Encoder:
    """An encoder that keeps its prompt's beginning, or computes it each time."""
    least = llama._LEAST_SHARED
    if not shared:
        llama._LEAST_SHARED = 1 << 30
    try:
        return Encoder.load(models.BASE, prompt=prompt, pooling="last")
    finally:
        llama._LEAST_SHARED = least


def main() -> None:
    """Measure in turn, print and save the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    asked = parser.parse_args()
    clock = CLOCKS[asked.clock]
    texts = list(clustering_set("stackoverflow", asked.texts).texts)
    figures = {}
    for prompt in PROMPTS:
        encoders = {"shared": load(prompt, shared=True), "anew": load(prompt, shared=False)}
        vectors = {name: encoder.encode(texts) for name, encoder in encoders.items()}
        taken: dict[str, list[float]] = {name: [] for name in encoders}
        for _ in range(asked.rounds):
            for name, encoder in encoders.items():
                started = clock()
                encoder.encode(texts)
                taken[name].append(round(clock() - started, 3))
        medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
        figures[prompt] = {
            "tokens_a_text": round(float(encoders["anew"].tokenize(texts).lengths.mean()), 1),
            "tokens_before_it": int(encoders["anew"].tokenize(texts[:1]).text_spans[0, 0]),
            "seconds": taken,
            "times_as_fast": round(medians["anew"] / medians["shared"], 2),
            "lowest_cosine": round(float(np.einsum("ij,ij->i", vectors["shared"], vectors["anew"]).min()), 5),
        }
        print(prompt, figures[prompt], flush=True)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "clock": asked.clock,
        "texts": len(texts),
        "prompts": figures,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
