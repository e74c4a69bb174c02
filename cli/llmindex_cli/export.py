"""``llmindex export``: an encoder as a folder for other tools."""

from pathlib import Path
from typing import Any

import click

from llmindex_cli.console import note, plain, print_json, say, size
from llmindex_cli.options import Command, ModelType, json_option, runtime_options
from llmindex_cli.progress import progress

TARGETS = ("sentence-transformers", "transformers")


@click.command(
    "export",
    cls=Command,
    examples=(
        ("An adapted encoder for SentenceTransformer(...)", "llmindex export runs/mine/adapter -o mine"),
        ("Half the size", "llmindex export runs/mine/adapter -o mine --dtype bfloat16"),
        ("Merged weights and tokenizers for transformers", "llmindex export encoder.json -o mine --to transformers"),
    ),
)
@click.argument("model", type=ModelType())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="The folder to make.",
)
@click.option(
    "--to",
    type=click.Choice(TARGETS),
    default=TARGETS[0],
    show_default=True,
    help="The tool that is to load it.",
)
@click.option("--overwrite", is_flag=True, help="Replace an export that is there already.")
@json_option("one object")
@runtime_options
def command(model: str, output: Path, to: Any, overwrite: bool, as_json: bool, runtime: dict[str, Any]) -> None:  # noqa: ANN401
    """Write MODEL, an adapter's folder, an encoder.json or a model's name, as a folder for other tools.

    Weights are merged; prompts and pooling go along. Before it is called done, the folder is loaded by the tool that
    it is for and has to give the same vectors. --dtype is that of the weights; auto writes float32.
    """
    with progress() as on_progress:
        # Here, as torch takes seconds to load: the terminal has a sign of life meanwhile.
        from llmindex.encode.settings import EncoderOptions
        from llmindex_training.export import export

        report = export(EncoderOptions(model, **runtime), output, to, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        print_json(report.to_json())
    else:
        say(
            f"{plain(str(output))}: for {report.to}, vectors of {report.dim:,} values, {report.dtype}, "
            f"{size(report.bytes)}; cosine to this encoder at least {report.cosine:.6f} on {report.texts} texts"
        )
        note(f"The lines of Python that load it are in {plain(str(output / 'README.md'))}.")
