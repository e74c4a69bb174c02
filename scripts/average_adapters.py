"""Write the mean of several adapters of one shape, which began with the same factors.

It is an encoder, and a base to train further: that of the last one named, which must not be whitened, for a whitening
suits no other vectors. With ``--pairs`` one is fitted on texts of that file, for a single adapter, too.

    python scripts/average_adapters.py out/ runs/a/adapter runs/b/adapter ... [--pairs natural.parquet [--dim 384]]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmindex import Encoder
from llmindex.encode import adapter as adapters
from llmindex.encode.whitening import Whitening
from llmindex_training import adapter, pairs
from llmindex_training.sweep import save_spec

TEXTS = 2_048
MAX_TOKENS = 128  # of a text that the whitening is fitted on


def main() -> None:
    """Average, fit the whitening, and write the encoder beside the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    folder, parts = arguments.folder, arguments.adapters
    read = adapters.read_spec(parts[-1] / adapters.SPEC_NAME)
    if read.whitened:
        raise SystemExit(f"{parts[-1]} is whitened; train with model.whitening=0 what is to be averaged")
    adapter.average(parts, folder)
    (folder / adapters.WHITENING_NAME).unlink(missing_ok=True)
    spec = replace(read, adapter=str(folder.resolve()), adapter_sha256=adapters.read(folder).sha256)
    if arguments.pairs:
        table = pairs.read([arguments.pairs]).table
        rows = np.random.default_rng(0).permutation(len(table))[: TEXTS // 2]
        sides = [table.take(rows)[side].to_pylist() for side in (pairs.TEXT, pairs.PAIR)]
        vectors = Encoder.from_spec(replace(spec, max_tokens=MAX_TOKENS)).encode([*sides[0], *sides[1]])
        whitening = Whitening.fit(vectors, arguments.dim)
        whitening.save(folder / adapters.WHITENING_NAME)
        spec = replace(spec, dim=whitening.dim, whitened=True, adapter_sha256=adapters.read(folder).sha256)
    save_spec(spec, folder / adapters.SPEC_NAME)  # last: by this file the folder is known to be whole


if __name__ == "__main__":
    main()
