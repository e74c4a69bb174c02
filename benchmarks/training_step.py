"""A training step here against the loop that the paper published: tokens per second, and peak memory.

Both take the same batch through the same backbone, LoRA and dtype. The published loop is rewritten from its
description (Roth et al., arXiv 2507.22729, and its code's habits): the language-model head over the whole vocabulary
and the states of all layers are computed, micro-batches of 12 pairs come padded in the order of arrival, gradients add
up over the micro-batches, and only the pairs of one micro-batch are each other's negatives. Ours is the step of
`llmindex train`: no head, mini-batches sorted by length, gradient caching, negatives from the whole batch.

Each measurement is a process of its own, the two in turn.

    python benchmarks/training_step.py pairs.parquet [--pairs 120] [--rounds 5] [--set optim.gradient_caching=false]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from llmindex_training import adapter, pairs, step
from llmindex_training import recipe as recipes
from llmindex_training.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "training_step.json"
MICRO_BATCH = 12
WARM_UP = 4


def ours(recipe: Recipe) -> Callable[[pa.Table], int]:
    """Our step: takes rows, adds gradients, returns how many tokens it saw."""
    encoder = adapter.load_base(recipe, "cpu")
    adapter.attach(encoder, recipe).train()
    return lambda rows: step.backward(encoder, recipe, rows).tokens


def published(recipe: Recipe) -> Callable[[pa.Table], int]:
    """The published loop's step; counts the tokens that are not padding."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    encoder = adapter.load_base(recipe, "cpu")
    base: Any = AutoModelForCausalLM.from_pretrained(
        encoder.backbone.model.config.name_or_path, dtype=encoder.placement.dtype
    )
    options = recipe.model
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
    )
    model = get_peft_model(base, config).train()

    def embed(texts: list[str]) -> tuple[torch.Tensor, int]:
        tokens = encoder.tokenize(texts)
        lengths = torch.from_numpy(tokens.lengths).long()
        ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        ids[mask] = torch.from_numpy(tokens.ids).long()
        output = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        states = output.hidden_states[-1]
        return states[torch.arange(len(texts)), lengths - 1].float(), int(lengths.sum())

    def run(rows: pa.Table) -> int:
        seen = 0
        for start in range(0, len(rows), MICRO_BATCH):
            part = rows.slice(start, MICRO_BATCH)
            (texts, first), (partners, second) = (embed(part[side].to_pylist()) for side in ("text", "text_pair"))
            scores = torch.nn.functional.cosine_similarity(texts[:, None], partners[None], dim=-1)
            loss = torch.nn.functional.cross_entropy(scores / recipe.loss.temperature, torch.arange(len(part)))
            torch.autograd.backward(loss * len(part) / len(rows))
            seen += first + second
        return seen

    return run


LOOPS = {"published": published, "ours": ours}


def measure(loop: str, file: str, count: int, settings: list[str]) -> dict[str, float]:
    """One step in this process."""
    recipe = recipes.load("paper", settings)
    rows = pairs.read([file]).table
    rows = rows.take(pairs.deal(pairs.read([file]), recipe.data, count, 1).steps[0])
    run = LOOPS[loop](recipe)
    run(rows.slice(0, WARM_UP))
    started = time.perf_counter()
    tokens = run(rows)
    seconds = time.perf_counter() - started
    return {
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main() -> None:
    """Measure both loops in turn, print the medians and save all rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--loop", choices=list(LOOPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps(measure(arguments.loop, arguments.file, arguments.pairs, arguments.settings)))
        return
    rounds: dict[str, list[dict[str, float]]] = {loop: [] for loop in LOOPS}
    for _ in range(arguments.rounds):
        for loop, measured in rounds.items():
            done = subprocess.run(
                [sys.executable, *sys.argv, "--loop", loop], check=True, stdout=subprocess.PIPE, text=True
            )
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            print(loop, measured[-1], flush=True)
    speeds = {loop: statistics.median(each["tokens_per_s"] for each in measured) for loop, measured in rounds.items()}
    ratio = round(speeds["ours"] / speeds["published"], 2)
    print(f"medians: {speeds}; ours is {ratio} times as fast")
    result = {"pairs": arguments.pairs, "settings": arguments.settings, "ratio": ratio, "rounds": rounds}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
