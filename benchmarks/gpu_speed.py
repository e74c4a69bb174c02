"""How near to a GPU's limit do encoding, a build and a training step come?

For each length of text, tokens a second of llmindex and of sentence-transformers at its best batch size, in turn, and
what share of the device's best square matrix product llmindex reaches; a token takes two operations for each weight of
the linear maps. "mixed" are agnews, newsgroups20 and stackoverflow, cut at 512 tokens. A build of these from Parquet is
compared with its forward passes alone: for what share of the time the device computes. Training steps of the recipe
`paper`, with gradient caching: tokens a second and the device's memory at its peak.

The model is the embedded default, or one of a shape with random weights: a folder with config.json and a tokenizer.

    python benchmarks/gpu_speed.py [--shape FOLDER] [--device cuda] [--dtype bfloat16] [--texts 4096] [--rounds 5]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch import nn

import llmindex
from llmindex import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex_training import adapter, step
from llmindex_training import recipe as recipes
from llmindex_training.export import export
from shared_data import clustering_set

RESULTS = Path(__file__).parent / "results"
SETS = ("agnews", "newsgroups20", "stackoverflow")
CUT = 512  # where mixed texts are cut
BATCH_SIZES = (8, 32, 128, 512)
BATCHES = (120, 1024)
TRAINED_TOKENS = 64


def random_model(shape: Path, folder: Path) -> str:
    """A model with random weights, in the folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(shape)
    transformers.AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(shape).save_pretrained(folder)
    return str(folder)


def texts_of(length: int | None, count: int) -> list[str]:
    """Real texts of mixed lengths, or put together until each has at least so many tokens."""
    mixed = [text for name in SETS for text in clustering_set(name, -(-count // len(SETS))).texts]
    if length is None:
        return mixed[:count]
    endless = cycle(" ".join(mixed).split())
    return [" ".join(islice(endless, length)) for _ in range(count)]  # a word has a token or more


def settled(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long some work takes."""
    started = settled(device)
    work()
    return settled(device) - started


def peak(encoder: Encoder) -> float:
    """The most operations a second that a square product of matrices reached on the encoder's device."""
    device = encoder.placement.device
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(encoder.placement.dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def linear_operations(model: str) -> int:
    """Operations that a token takes in the linear maps."""
    encoder = Encoder.load(model, device="cpu", engine="transformers")
    maps = [module for module in encoder.backbone.model.modules() if isinstance(module, nn.Linear)]
    return 2 * sum(module.weight.numel() for module in maps)


def sentence_transformers(options: EncoderOptions, texts: Sequence[str]) -> Callable[[], Any]:
    """The exported model, at its best batch size for these texts."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        export(options, exported)
        model = SentenceTransformer(
            str(exported),
            device=options.device,
            model_kwargs={"dtype": getattr(torch, options.dtype)},
            trust_remote_code=True,  # the export's own pooling
        )
    device = torch.device(options.device)
    sizes = {size: partial(model.encode, list(texts), batch_size=size) for size in BATCH_SIZES}
    best = min(sizes, key=lambda size: seconds(sizes[size], device))
    print(f"sentence-transformers is fastest in batches of {best}", flush=True)
    return sizes[best]


def encoding(options: EncoderOptions, texts: list[str], rounds: int, operations: int) -> dict[str, Any]:
    """Tokens a second of both, in turn, and the share of the peak."""
    encoder = Encoder.from_options(options)
    device = encoder.placement.device
    tokens = int(encoder.tokenize(texts).lengths.sum())
    ways: dict[str, Callable[[], Any]] = {
        "sentence-transformers": sentence_transformers(options, texts),
        "llmindex": partial(encoder.encode, texts),
    }
    ways["llmindex"]()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    for _ in range(rounds):
        peaks.append(peak(encoder))
        for name, way in ways.items():
            taken[name].append(seconds(way, device))
    speeds = {name: tokens / statistics.median(each) for name, each in taken.items()}
    return {
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_s": {name: round(speed) for name, speed in speeds.items()},
        "times_sentence_transformers": round(speeds["llmindex"] / speeds["sentence-transformers"], 2),
        "share_of_peak": round(speeds["llmindex"] * operations / statistics.median(peaks), 3),
        "seconds": taken,
    }


def building(options: EncoderOptions, count: int) -> dict[str, Any]:
    """A build from Parquet, less its FAISS index, and the forward passes of its texts alone."""
    encoder, texts = Encoder.from_options(options), texts_of(None, count)
    window = 4096
    tokens = [encoder.tokenize(texts[start : start + window]) for start in range(0, count, window)]
    encoder.forward(tokens[0])
    computed = seconds(lambda: [encoder.forward(each) for each in tokens], encoder.placement.device)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.parquet"
        pq.write_table(pa.table({"text": texts}), corpus)
        report = llmindex.build(corpus, Path(folder) / "index", encoder=encoder, factory="Flat")
    taken = report.seconds["total"] - report.seconds["index"]
    return {"seconds": round(taken, 2), "of_these_computed": round(computed, 2), "busy": round(computed / taken, 3)}


def training(model: str, device: str, dtype: str, pairs: int, rounds: int) -> dict[str, Any]:
    """Steps of so many pairs."""
    recipe = recipes.load(
        "paper", [f"model.base='{model}'", f"optim.dtype={dtype}", f"data.max_tokens={TRAINED_TOKENS}"]
    )
    encoder = adapter.load_base(recipe, device)
    wrapped = adapter.attach(encoder, recipe).train()
    texts = texts_of(TRAINED_TOKENS, 2 * pairs)
    rows = pa.table({"text": texts[:pairs], "text_pair": texts[pairs:], "negative": pa.nulls(pairs, pa.string())})

    def work() -> int:
        wrapped.zero_grad()
        return step.backward(encoder, recipe, rows).tokens

    tokens, place = work(), encoder.placement.device
    taken = statistics.median(seconds(work, place) for _ in range(rounds))
    memory = round(torch.cuda.max_memory_allocated(place) / 1e9, 2) if place.type == "cuda" else None
    return {"tokens": tokens, "tokens_per_s": round(tokens / taken), "peak_gb": memory}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=Path, help="a folder with config.json and a tokenizer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--length", nargs="*", default=["32", "128", "512", "mixed"], help="tokens, or mixed")
    parser.add_argument("--pairs", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device, dtype, name = arguments.device, arguments.dtype, arguments.shape.name if arguments.shape else "default"
    on_gpu = torch.device(device).type == "cuda"
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "dtype": dtype,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(arguments.shape, Path(folder)) if arguments.shape else "default"
        operations = linear_operations(model)
        for kind in arguments.length:
            length = None if kind == "mixed" else int(kind)
            options = EncoderOptions(model, device=device, dtype=dtype, max_tokens=length or CUT)
            result[kind] = encoding(options, texts_of(length, arguments.texts), arguments.rounds, operations)
            print(kind, {key: value for key, value in result[kind].items() if key != "seconds"}, flush=True)
        options = EncoderOptions(model, device=device, dtype=dtype, max_tokens=CUT)
        result["build"] = building(options, arguments.texts)
        print("build", result["build"], flush=True)
        base = model if arguments.shape else "default-base"
        for pairs in arguments.pairs:
            result[f"step of {pairs} pairs"] = training(base, device, dtype, pairs, arguments.rounds)
            print(f"step of {pairs} pairs", result[f"step of {pairs} pairs"], flush=True)
    (RESULTS / f"gpu_speed_{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
