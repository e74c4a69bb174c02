"""How soon does training pay? One long run by the published prompt and pooling, scored at some of its checkpoints.

The prompt is `cluster`; small batches, a constant learning rate. Scored as in
ablations.py, which says where the pairs come from, too.

    python benchmarks/steps_against_score.py run/ natural.parquet synthetic.parquet [--pooling last] [--steps 400]
"""

import argparse
from pathlib import Path

from ablations import MAX_TOKENS, Yardstick, keep, tell
from llmindex import Encoder
from llmindex.encode.spec import POOLINGS
from llmindex_training import recipe as recipes
from llmindex_training import trainer
from llmindex_training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "steps_against_score.json"
STEPS = (25, 50, 100, 200, 400)
EVERY = 25
BATCH_SIZE = 12


def settings_of(pooling: str, steps: int) -> list[str]:
    """The default recipe's changes; the mean of all checkpoints is asked for so that none is removed."""
    return [
        "model.prompt=cluster",
        f"model.pooling={pooling}",
        "model.whitening=0",
        f"data.max_tokens={MAX_TOKENS}",
        "data.held_out=0",
        f"optim.batch_size={BATCH_SIZE}",
        f"optim.steps={steps}",
        f"optim.evaluate_every={EVERY}",
        f"optim.average={steps // EVERY}",
        "optim.schedule=constant",
        "optim.gradient_caching=false",
    ]


def main() -> None:
    """Train, score the checkpoints, print a table and save all scores."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--pooling", default="last", choices=POOLINGS)
    parser.add_argument("--steps", type=int, default=STEPS[-1], choices=STEPS)
    arguments = parser.parse_args()
    pooling = arguments.pooling
    recipe = recipes.load("default", settings_of(pooling, arguments.steps))
    trainer.train(arguments.pairs, arguments.run, recipe, on_progress=tell)
    yardstick = Yardstick.read()
    for step in (step for step in (0, *STEPS) if step <= arguments.steps):
        adapter = str(RunFolder(arguments.run).checkpoint(step)) if step else None
        encoder = Encoder.load(
            "default-base", adapter=adapter, prompt="cluster", pooling=pooling, max_tokens=MAX_TOKENS
        )
        keep(RESULTS, f"{pooling}, step {step}", yardstick.measure(encoder))


if __name__ == "__main__":
    main()
