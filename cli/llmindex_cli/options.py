"""Options that several commands share, each defined once, and how help shows them.

Decorators here only parse and check what can be checked without a model: whatever needs torch, pyarrow or the index
itself is the library's to refuse.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from llmindex.errors import IndexNotFound

INDEX_SUFFIX = ".llmindex"

CommandFunction = Callable[..., None]
Decorator = Callable[[CommandFunction], CommandFunction]
NamedOption = tuple[str, Decorator]


class Command(click.Command):
    """A command whose help shows options by section and ends with examples.

    Args:
        examples: pairs of what for and the command line; an empty what-for continues the pair above.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an argument too many, which may be an index without its -i, comes before an index that is missing."""
        try:
            return super().parse_args(ctx, args.copy())
        except IndexNotFound:
            _, rest, _ = self.make_parser(ctx).parse_args(args)
            if rest:
                ctx.fail(f"Got unexpected extra argument ({rest[0]}).")
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their sections' titles; ``--help`` stays with the first."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Arguments are in the usage line; newer click lists them here as well.
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if not self.examples:
            return
        with formatter.section("Examples"):
            for purpose, line in self.examples:
                if purpose:
                    formatter.write_text(f"{purpose}:")
                formatter.write(f"{'':>{formatter.current_indent + 2}}{line}\n")


class SectionOption(click.Option):
    """An option that help lists under a title of its own."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.section = section


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Parse, and refuse nan and inf, which pass every comparison or none."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


_LEAST_SIZE = 10**6


class Size(click.ParamType[int]):
    """An amount of memory, such as ``2GB`` or ``512 MiB``, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Parse; kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024."""
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([kmgt])(i?)b?", str(value), re.IGNORECASE)
        if not found or not float(found[1]):
            self.fail(f"'{value}' is not a size such as 2GB or 512MB.", param, ctx)
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** ("kmgt".index(found[2].lower()) + 1))
        if size < _LEAST_SIZE:
            self.fail(f"'{value}' is less than 1MB.", param, ctx)
        return size


class DeviceType(click.ParamType[str]):
    """A device as torch names it, or "auto"."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Check the form; whether there is such a device is for torch to say."""
        if not re.fullmatch(r"auto|mps|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*", value):
            self.fail(f"'{value}' is none of auto, cpu, cuda, cuda:1, mps.", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The usual devices."""
        return [CompletionItem(name) for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


class ModelType(click.ParamType[str]):
    """``default``, ``default-base``, a hub name, a local folder or an encoder.json."""

    name = "name|folder"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The names of the embedded model, else files and folders."""
        names = [name for name in ("default", "default-base") if incomplete and name.startswith(incomplete)]
        return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


class IndexType(click.ParamType[Path]):
    """An index folder."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        """A path; whether it holds an index is for the library to say."""
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Index folders beside each other, else any folder."""
        parent, prefix = os.path.split(incomplete)
        found = [os.path.join(parent, path.name) for path in _indexes(Path(parent)) if path.name.startswith(prefix)]  # noqa: PTH118
        return [CompletionItem(path) for path in found] or [CompletionItem(incomplete, type="dir")]


# Whether it can be read is for the library to say, which has the same words for it wherever it happens.
SOURCE = click.Path(allow_dash=True, readable=False)
FILE = click.Path(path_type=Path, readable=False)


def _indexes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{INDEX_SUFFIX}") if path.is_dir())


def find_index(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """The index named by -i or $LLMINDEX_INDEX, else the only one in the current directory."""
    if value is not None or ctx.resilient_parsing:
        return value
    found = _indexes(Path())
    if not found:
        raise IndexNotFound(
            f"no *{INDEX_SUFFIX} folder in {Path.cwd()}: name an index with -i or $LLMINDEX_INDEX, "
            "or make one with `llmindex build CORPUS`"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise click.UsageError(f"Several indexes here: {names}. Choose one with -i or $LLMINDEX_INDEX.", ctx)
    return found[0]


def index_option(command: CommandFunction) -> CommandFunction:
    """``-i/--index``, resolved to a path."""
    return click.option(
        "-i",
        "--index",
        type=IndexType(),
        envvar="LLMINDEX_INDEX",
        callback=find_index,
        help=f"The index folder. [default: $LLMINDEX_INDEX, else the only *{INDEX_SUFFIX} here]",
    )(command)


def recall_options(command: CommandFunction) -> CommandFunction:
    """``--factory``, ``--recall`` and ``--memory``: what a FAISS index is to be."""
    return _apply(
        command,
        click.option("--factory", metavar="FAISS", help="FAISS factory string, instead of the planner's choice."),
        click.option(
            "--recall",
            type=Number(0, 1, min_open=True),
            metavar="SHARE",
            default=0.95,
            show_default=True,
            help="Recall@10 against exact search that the FAISS index is tuned to.",
        ),
        click.option(
            "--memory",
            type=Size(),
            metavar="SIZE",
            help="The most that building and searching the FAISS index may take, besides the model: 2GB, 600MB.",
        ),
    )


seeds_option = click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="k-means runs that are averaged.",
)
"""Of those who cluster to score: evaluate and sweep."""


def hits_options(command: CommandFunction) -> CommandFunction:
    """``-k``, ``--min-score`` and ``--where``."""
    return _apply(
        command,
        click.option(
            "-k", "k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="How many hits."
        ),
        click.option(
            "--min-score",
            type=Number(-1, 1),
            metavar="SCORE",
            help="Leave out hits with a lower score (inner product of unit vectors, at most 1).",
        ),
        click.option(
            "--where",
            metavar="SQL",
            help="Search only among the documents for which this is true: an SQL expression over the index's columns "
            "(`llmindex info` lists them), such as \"year >= 2020 AND lang = 'en'\". Needs duckdb.",
        ),
    )


def json_option(what: str) -> Decorator:
    """``--json``.

    Args:
        what: what is written, for the help: "one object a hit".
    """
    return click.option("--json", "as_json", is_flag=True, help=f"Write JSON: {what}.")


def corpus_options(command: CommandFunction) -> CommandFunction:
    """How documents are read from the sources' rows."""
    section = functools.partial(_option, "Corpus options")
    return _apply(
        command,
        section(
            "--text-column",
            "text_columns",
            multiple=True,
            metavar="NAME",
            help="Column with the text; several are joined. [default: found by name]",
        ),
        section("--id-column", metavar="NAME", help="Column with the ids. [default: id, else the row's number]"),
        section(
            "--on-bad-row",
            type=click.Choice(["skip", "fail"]),
            default="skip",
            show_default=True,
            help="Rows that are empty, null, not UTF-8 or have an id twice: count and skip them, or stop.",
        ),
    )


def runtime_options(command: CommandFunction) -> CommandFunction:
    """Where and how an index's own encoder runs, which does not change it; the command gets a dict, ``runtime``."""
    return gather(command, "runtime", RUNTIME_OPTIONS)


def gather(command: CommandFunction, parameter: str, options: Sequence[NamedOption]) -> CommandFunction:
    """Give a command several options, whose values it gets as one dict."""

    @functools.wraps(command)
    def gathered(**kwargs: Any) -> None:  # noqa: ANN401
        gathered_values = {name: kwargs.pop(name) for name, _ in options}
        command(**{parameter: gathered_values}, **kwargs)

    return _apply(gathered, *(option for _, option in options))


def output_option(*names: str, suffixes: Sequence[str], **attributes: Any) -> Decorator:  # noqa: ANN401
    """A file to write; one of another kind, or where none can be written, is refused before any work is done."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ANN401
        from llmindex.store.files import check_writable

        for path in value if isinstance(value, tuple) else [value] if value else []:
            if path.suffix not in suffixes:
                raise click.BadParameter(f"'{path}' does not end in {' or '.join(suffixes)}.", ctx, param)
            if not path.parent.is_dir():
                raise click.BadParameter(f"there is no folder '{path.parent}'.", ctx, param)
            if not ctx.resilient_parsing:
                check_writable(path)
        return value

    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(*names, type=kind, callback=check, **attributes)


def role_option(command: CommandFunction) -> CommandFunction:
    """``--role``."""
    return click.option(
        "--role",
        type=click.Choice(["document", "query"]),
        default="document",
        show_default=True,
        help="Whose prompt is put around the texts.",
    )(command)


def _option(section: str, *declarations: str, **attributes: Any) -> Decorator:  # noqa: ANN401
    return click.option(*declarations, cls=SectionOption, section=section, **attributes)


def _apply(command: CommandFunction, *decorators: Decorator) -> CommandFunction:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def encoder_option(name: str, **attributes: Any) -> NamedOption:  # noqa: ANN401
    """An option of the encoder's, with the name of its value."""
    return name, _option("Encoder options", f"--{name.replace('_', '-')}", **attributes)


RUNTIME_OPTIONS: list[NamedOption] = [
    encoder_option(
        "dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="What the model computes in.",
    ),
    encoder_option(
        "device",
        type=DeviceType(),
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where the model runs; a build takes several, cuda:0,cuda:1.",
    ),
    encoder_option("trust_remote_code", is_flag=True, help="Run Python code that comes with the model."),
]
