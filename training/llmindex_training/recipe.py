"""Recipe: everything that decides a training run beside its pairs.

A recipe is a TOML file of four tables, [data], [model], [loss] and [optim]; the fields below are their keys, with the
defaults of the published method (Roth et al., arXiv 2507.22729). An unknown key is an error, never ignored: a typing
mistake would otherwise train something else than its author thinks.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llmindex.encode import prompts
from llmindex.encode.spec import Attention, Pooling
from llmindex.errors import RecipeError, UsageError, unreadable

Schedule = Literal["linear", "cosine", "constant"]
Batches = Literal["mixed", "source"]

_MOST = 2**40
"""Whole numbers stay below; beyond lies no run that could end."""
_MOST_STEPS = 1_000_000
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Data:
    """Which pairs make a batch.

    Attributes:
        max_tokens: tokens of each text that are trained on; the prompt comes on top of them.
        max_per_source: at most so many pairs of one source, drawn at random; 0 for all.
        batches: "mixed" draws from all sources; "source" makes each batch of one source, whose in-batch negatives
            are harder (Nussbaum et al., arXiv 2402.01613, section 3.2).
        query_prompt: wrap ``text`` in the query prompt, which the model has to have, instead of the documents'.
        held_out: pairs that are kept from training to score the checkpoints with.
        seed: of the drawing, the adapter's first weights and dropout.
    """

    max_tokens: int = 100
    max_per_source: int = 0
    batches: Batches = "mixed"
    query_prompt: bool = False
    held_out: int = 256
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """The encoder that is trained, and the size of its adapter.

    Attributes:
        base: what training starts from. A backbone ("default-base", a hub name or a model folder) gets a fresh adapter;
            an adapter ("default", or its folder) is trained further, with its own rank, alpha and targets.
        revision: of a hub backbone.
        prompt: name or template for documents.
        query_prompt: the same for queries; empty for that of the documents.
        pooling: how token states become one vector.
        attention: "causal" or "bidirectional".
        max_tokens: of the finished encoder.
        lora_rank: r of Hu et al. (arXiv 2106.09685).
        lora_alpha: the change of a weight is scaled by alpha / rank.
        lora_dropout: share of inputs to the adapter that is dropped in training.
        lora_targets: names of the linear layers that are adapted.
        whitening: values of the finished encoder's vectors, after a linear map that is fitted when training is done;
            0 for none (:mod:`llmindex.encode.whitening`).
        quantize: hold the backbone in 4 bits while training (QLoRA, arXiv 2305.14314); needs a CUDA GPU.
    """

    base: str = "default-base"
    revision: str = ""
    prompt: str = "cluster"
    query_prompt: str = ""
    pooling: Pooling = "last"
    attention: Attention = "causal"
    max_tokens: int = 512
    lora_rank: int = 64
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    whitening: int = 0
    quantize: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """InfoNCE over cosine similarities (van den Oord et al., arXiv 1807.03748).

    Attributes:
        temperature: what similarities are divided by.
        margin: subtracted from the positive's similarity.
        symmetric: average the losses of both directions.
        false_negative_margin: leave out negatives that score higher than the positive plus this; 2 leaves in all.
        matryoshka: average the losses of the vectors cut to these lengths as well (arXiv 2205.13147).
    """

    temperature: float = 0.2
    margin: float = 0.0
    symmetric: bool = False
    false_negative_margin: float = 2.0
    matryoshka: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Optim:
    """AdamW and its schedule.

    Attributes:
        batch_size: pairs that are each other's negatives in a step, over all processes.
        steps: 0 for one pass over the pairs.
        learning_rate: at its highest.
        warmup_steps: from 0 to there.
        schedule: how it falls afterwards.
        weight_decay: of AdamW.
        max_grad_norm: longer gradients are cut to this length.
        evaluate_every: steps from one evaluation and checkpoint to the next; the best checkpoint is kept.
        average: keep the mean of the weights of so many checkpoints, the last ones, instead (Izmailov et al., arXiv
            1803.05407); 0 for the best.
        dtype: what the backbone computes in; the adapter stays float32.
        device: where.
        token_budget: padded tokens of a mini-batch; 0 for half of what the device encodes at a time.
        gradient_caching: hold the activations of one mini-batch at a time, and embed each batch twice (Gao et al.,
            arXiv 2101.06983); without it those of the whole batch are held, some 2 MB a token for 135 million weights.
        gradient_checkpointing: compute activations twice instead of keeping them.
    """

    batch_size: int = 120
    steps: int = 0
    learning_rate: float = 5e-5
    warmup_steps: int = 100
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    evaluate_every: int = 25
    average: int = 0
    dtype: str = "auto"
    device: str = "auto"
    token_budget: int = 0
    gradient_caching: bool = True
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """The four tables."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)

    def to_toml(self) -> str:
        """The recipe as TOML, every key written out."""
        lines: list[str] = []
        for section, values in asdict(self).items():
            lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
        return "\n".join(lines)


def names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files("llmindex_training") / "recipes"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, and change single keys of it.

    Args:
        name: one of :func:`names`, or a TOML file.
        settings: ``section.key=value`` each, the value as in TOML; a bare word is a string.

    Raises:
        RecipeError: the file is not there or no TOML, a key is unknown, or a value impossible.
    """
    if name in names():
        text = (resources.files("llmindex_training") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = _read(Path(name))
    else:
        raise RecipeError(f'no recipe "{name}": not a file, nor one of {", ".join(names())}')
    try:
        values = tomllib.loads(text)
        for setting in settings:
            section, key, value = _parse(setting)
            table = values.setdefault(section, {})
            if isinstance(table, dict):
                table[key] = value
        return from_values(values, name)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"recipe {name}: a value is nested too deeply; no key takes more than a list") from error
    except ValueError as error:  # Python neither reads nor writes a number of thousands of digits
        raise RecipeError(f"recipe {name}: a number must be up to {_MOST}, not one of thousands of digits") from error


def from_values(values: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from nested tables, checked.

    Raises:
        RecipeError: a key is unknown, or a value has another type or is out of range.
    """
    tables = {entry.name: entry for entry in fields(Recipe)}
    _check_known(name, "", values, tables)
    made: dict[str, Any] = {}
    for section, entry in tables.items():
        kind: Any = entry.default_factory
        table = values.get(section, {})
        if not isinstance(table, Mapping):
            raise RecipeError(f"recipe {name}: {section} must be a table")
        hints = get_type_hints(kind)
        _check_known(name, f"{section}.", table, hints)
        made[section] = kind(**{key: _typed(name, f"{section}.{key}", table[key], hints[key]) for key in table})
    recipe = Recipe(**made)
    _check_ranges(name, recipe)
    return recipe


def checked(recipe: Recipe) -> Recipe:
    """A recipe that was put together in Python, as its own file gives it back.

    Raises:
        RecipeError: it is none, or :func:`from_values` would refuse it.
    """
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"a recipe is what recipe.load gives, not {type(recipe).__name__}")
    return from_values(asdict(recipe), "of this call")


def changes(old: Recipe, new: Recipe) -> list[str]:
    """What differs, as ``section.key was OLD, now NEW``."""
    before, after = asdict(old), asdict(new)
    return [
        f"{section}.{key} was {_toml(value)}, now {_toml(after[section][key])}"
        for section, table in before.items()
        for key, value in table.items()
        if value != after[section][key]
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8: {error}") from error


def _parse(setting: str) -> tuple[str, str, Any]:
    place, equals, text = setting.partition("=")
    section, dot, key = place.strip().partition(".")
    if not (equals and dot and section and key):
        raise RecipeError(f'--set "{setting}" must have the form section.key=value, such as optim.steps=200')
    try:
        read = tomllib.loads(f"value = {text}")
    except ValueError:  # no TOML, or a number of thousands of digits
        read = {"value": text.strip()}
    if len(read) > 1:
        raise RecipeError(f"--set {section}.{key}: its value goes on in a second line with another key; repeat --set")
    return section, key, read["value"]


def _check_known(name: str, prefix: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            meant = f'; did you mean "{prefix}{nearest[0]}"?' if nearest else f"; known are {', '.join(known)}"
            raise RecipeError(f'recipe {name} has an unknown key "{prefix}{key}"{meant}')


def _typed(name: str, place: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    """The value as its field wants it; whole numbers pass for floats, lists for tuples, NumPy's for Python's."""
    value = _plain(value)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            told = f"{place} is {_shown(value)}, not one of {', '.join(get_args(hint))}"
            raise RecipeError(f"recipe {name}: {told}")
        return value
    if origin is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise RecipeError(f"recipe {name}: {place} must be a list, not {_toml(value)}")
        return tuple(_typed(name, place, item, inner) for item in value)
    if type(value) is int and abs(value) > _MOST:
        raise RecipeError(f"recipe {name}: {place} must be a number up to {_MOST}, not a larger one")
    if hint is float and type(value) is int:
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[hint]
        raise RecipeError(f"recipe {name}: {place} must be {wanted}, not {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"recipe {name}: {place} must be a finite number, not {value}")
    if isinstance(value, str) and not _is_utf8(value):
        raise RecipeError(f"recipe {name}: {place} must be UTF-8, not {value!a}")
    return value


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A number of NumPy's as Python's."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_prompt(name: str, key: str, prompt: str) -> None:
    try:
        prompts.resolve(prompt)
    except UsageError as error:
        raise RecipeError(f"recipe {name}: {key}: {error}") from error


def _check_ranges(name: str, recipe: Recipe) -> None:
    data, model, loss, optim = recipe.data, recipe.model, recipe.loss, recipe.optim
    _check_prompt(name, "model.prompt", model.prompt)
    if model.query_prompt:
        _check_prompt(name, "model.query_prompt", model.query_prompt)
    rules = {
        "data.max_tokens must be at least 1": data.max_tokens >= 1,
        "data.max_per_source must not be negative": data.max_per_source >= 0,
        "data.query_prompt must be false where model.query_prompt is empty": bool(model.query_prompt)
        or not data.query_prompt,
        "data.held_out must not be negative": data.held_out >= 0,
        "data.seed must be from 0 to 4294967295": 0 <= data.seed < 2**32,
        "model.base must name a model": bool(model.base),
        "model.max_tokens must be at least 1": model.max_tokens >= 1,
        "model.lora_rank must be from 1 to 65536": 1 <= model.lora_rank <= 2**16,
        "model.lora_alpha must be above 0": model.lora_alpha > 0,
        "model.lora_dropout must be at least 0 and below 1": 0 <= model.lora_dropout < 1,
        "model.lora_targets must not be empty": bool(model.lora_targets),
        "model.whitening must not be negative": model.whitening >= 0,
        "loss.temperature must be at least 0.001": loss.temperature >= 0.001,
        "loss.margin must be at least 0 and below 2": 0 <= loss.margin < 2,
        "loss.false_negative_margin must be from -2 to 2": -2 <= loss.false_negative_margin <= 2,
        "loss.matryoshka must be lengths of at least 1": all(dim >= 1 for dim in loss.matryoshka),
        "optim.batch_size must be at least 2, for each pair needs a negative": optim.batch_size >= 2,
        "optim.steps must not be negative": optim.steps >= 0,
        f"optim.steps must be at most {_MOST_STEPS}": optim.steps <= _MOST_STEPS,
        "optim.learning_rate must be above 0": optim.learning_rate > 0,
        "optim.warmup_steps must not be negative": optim.warmup_steps >= 0,
        "optim.weight_decay must not be negative": optim.weight_decay >= 0,
        "optim.max_grad_norm must be above 0": optim.max_grad_norm > 0,
        "optim.evaluate_every must be at least 1": optim.evaluate_every >= 1,
        "optim.average must not be negative": optim.average >= 0,
        "optim.token_budget must not be negative": optim.token_budget >= 0,
    }
    for rule, holds in rules.items():
        if not holds:
            section, key = rule.split(" ")[0].split(".")
            raise RecipeError(f"recipe {name}: {rule}, not {_toml(getattr(getattr(recipe, section), key))}")
    if optim.weight_decay * optim.learning_rate >= 1:
        raise RecipeError(
            f"recipe {name}: optim.weight_decay must be below {1 / optim.learning_rate:,g}, one divided by "
            f"optim.learning_rate, not {_toml(optim.weight_decay)}: a step would take away the whole weight"
        )


def _shown(value: Any) -> str:  # noqa: ANN401
    text = _toml(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _toml(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return str(value)
