"""Put a trained adapter into the package, as the one that ``--model default`` means.

The weights are rounded to float16, half the size; the encoder that comes of it is compared with the trained one.

    python scripts/ship_adapter.py runs/default/adapter
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmindex import Encoder
from llmindex.encode import adapter, models

TEXTS = (
    "How do I read a large file line by line?",
    "Oil prices rise as refineries close",
    "turn the lights off in the kitchen",
)


def main() -> None:
    """Convert, write, compare."""
    trained = Path(sys.argv[1])
    target = models.adapter_path(models.DEFAULT)
    target.mkdir(exist_ok=True)
    shutil.copyfile(trained / adapter.CONFIG_NAME, target / adapter.CONFIG_NAME)
    tensors = load_file(trained / adapter.WEIGHTS_NAME)
    save_file({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, target / adapter.WEIGHTS_NAME)
    (target / adapter.WHITENING_NAME).unlink(missing_ok=True)
    if (trained / adapter.WHITENING_NAME).exists():
        shutil.copyfile(trained / adapter.WHITENING_NAME, target / adapter.WHITENING_NAME)
    config = json.loads((target / adapter.CONFIG_NAME).read_text())
    # A path of the machine that trained it says nothing to others.
    (target / adapter.CONFIG_NAME).write_text(
        json.dumps(config | {"base_model_name_or_path": models.BASE}, indent=2, sort_keys=True) + "\n"
    )
    spec = replace(
        adapter.read_spec(trained / adapter.SPEC_NAME),
        backbone=models.BASE,
        adapter=models.DEFAULT,
        adapter_sha256=adapter.read(target).sha256,
    )
    (target / adapter.SPEC_NAME).write_text(json.dumps(spec.to_json(), indent=1, ensure_ascii=False) + "\n")
    (target / adapter.WEIGHTS_NAME).chmod(0o644)
    before, after = (Encoder.load(name, dtype="float32").encode(TEXTS) for name in (str(trained), models.DEFAULT))
    print(f"cosine to the trained encoder: {np.sum(before * after, axis=1).min():.6f}")


if __name__ == "__main__":
    main()
