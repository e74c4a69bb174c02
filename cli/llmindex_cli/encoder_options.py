"""The options of commands that embed, apart from the others: what they may be is the encoder's to say."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from llmindex.encode.prompts import PROMPTS, resolve
from llmindex.encode.spec import ATTENTIONS, POOLINGS
from llmindex.errors import UsageError
from llmindex_cli.options import RUNTIME_OPTIONS, CommandFunction, ModelType, NamedOption, encoder_option, gather


class PromptType(click.ParamType[str]):
    """A prompt's name, or a template that contains ``{text}``."""

    name = "name|template"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Check now what would otherwise fail after the model has been loaded."""
        try:
            resolve(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The named prompts."""
        return [CompletionItem(name, help=PROMPTS[name]) for name in PROMPTS if name.startswith(incomplete)]


def encoder_options(command: CommandFunction) -> CommandFunction:
    """The options of every command that embeds; it gets them as ``encoder``, a dict of EncoderOptions' fields."""
    return gather(command, "encoder", _ENCODER_OPTIONS)


def fixed_options(command: CommandFunction) -> CommandFunction:
    """The same without prompts, pooling and layer, for a command that tries several of these."""
    return gather(command, "encoder", [option for option in _ENCODER_OPTIONS if option[0] not in TRIED])


TRIED = {"prompt", "query_prompt", "pooling", "layer"}

_ENCODER_OPTIONS: list[NamedOption] = [
    encoder_option(
        "model",
        type=ModelType(),
        default="default",
        show_default=True,
        help="default, default-base (without its adapter), a hub name, the folder of a model or an adapter, or an "
        "encoder.json.",
    ),
    encoder_option("revision", metavar="REV", help="Branch, tag or commit of a hub model."),
    encoder_option("adapter", metavar="FOLDER", help="LoRA adapter to merge into the model."),
    encoder_option(
        "prompt", type=PromptType(), help="Prompt around each document: a name (see `llmindex prompts`) or a template."
    ),
    encoder_option(
        "query_prompt", type=PromptType(), help="Prompt around each query. [default: that of the documents if given]"
    ),
    encoder_option("pooling", type=click.Choice(POOLINGS), help="How token states become one vector."),
    encoder_option(
        "layer", type=int, metavar="N", help="Layer whose states are pooled: -1 the last, 0 the embeddings."
    ),
    encoder_option("attention", type=click.Choice(ATTENTIONS), help="Causal as pre-trained, or bidirectional."),
    encoder_option("max_tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of each text that are kept."),
    encoder_option("dim", type=click.IntRange(min=1), metavar="N", help="Cut the vectors to their first N values."),
    *RUNTIME_OPTIONS,
]
