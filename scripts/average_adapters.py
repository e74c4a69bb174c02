"""Write the mean of several adapters of one shape, which began with the same factors, as an adapter to train further.

    python scripts/average_adapters.py out/ runs/a/adapter runs/b/adapter ...

The encoder is that of the first, without its whitening, which was made for its own vectors.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from llmindex.encode import adapter as adapters
from llmindex_training import adapter


def main() -> None:
    """Average, and write the encoder beside the weights."""
    folder, *parts = map(Path, sys.argv[1:])
    adapter.average(parts, folder)
    spec = adapters.read_spec(parts[0] / adapters.SPEC_NAME)
    if spec.whitened:
        raise SystemExit(f"{parts[0]} is whitened: train with model.whitening=0 what is to be averaged")
    spec = replace(spec, adapter=str(folder.resolve()), adapter_sha256=adapters.read(folder).sha256)
    (folder / adapters.SPEC_NAME).write_text(json.dumps(spec.to_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
