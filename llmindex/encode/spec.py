"""EncoderSpec: everything that decides what vector a text gets.

The spec is stored in the manifest of each index and used again for every query, so that a query can never be
embedded differently from the documents it is compared with. Two encoders with the same fingerprint give the same
vectors, up to the rounding of the dtype and device they run on; neither of those is part of the spec.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llmindex.errors import UsageError

Attention = Literal["causal", "bidirectional"]
Pooling = Literal["last", "eos", "mean", "mean_text", "weighted_mean", "suffix_mean", "max", "first", "last_mean"]

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)

# Where a backbone lies says nothing about what it computes: a moved folder keeps its fingerprint.
_LOCATION_FIELDS = ("backbone", "revision", "adapter")
# Absent from the specs of encoders that were never adapted.
_OPTIONAL_FIELDS = {"adapter", "adapter_sha256", "whitened"}
_SAID = {str: "a string", int: "a whole number", bool: "true or false", type(None): "null"}
_MOST = 2**31
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What decides an encoder's vectors.

    Attributes:
        backbone: "default", a hub name, or a local model folder.
        revision: branch, tag or commit of a hub backbone; None for its main branch.
        backbone_sha256: identity of the backbone's configuration, tokenizer and weights.
        prompt: template wrapped around each document; ``{text}`` marks the place.
        query_prompt: the same for queries.
        pooling: how token states become one vector.
        layer: whose states are pooled: -1 the last layer's (after the final norm), 0 the embeddings,
            k the output of the k-th layer.
        attention: "causal" as pre-trained, or "bidirectional".
        max_tokens: tokens of the text that are kept; the prompt comes on top of them.
        dim: length of the vectors; below that of what is pooled, or whitened, it is a cut before normalising.
        normalize: whether vectors have unit length.
        adapter: folder of the LoRA adapter that is merged into the backbone, or None.
        adapter_sha256: identity of the adapter.
        whitened: whether the adapter's whitening follows the pooling.
    """

    backbone: str
    revision: str | None
    backbone_sha256: str
    prompt: str
    query_prompt: str
    pooling: Pooling
    layer: int
    attention: Attention
    max_tokens: int
    dim: int
    normalize: bool = True
    adapter: str | None = None
    adapter_sha256: str | None = None
    whitened: bool = False

    def fingerprint(self) -> str:
        """Sixteen hex digits that two specs share only if they give the same vectors."""
        identity = {key: value for key, value in self.to_json().items() if key not in _LOCATION_FIELDS}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; without the adapter's where there is none."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _OPTIONAL_FIELDS or value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EncoderSpec":
        """Read what :meth:`to_json` wrote.

        Raises:
            UsageError: a field is missing or unknown, or its value is of another type or impossible.
        """
        if not isinstance(values, Mapping):
            raise UsageError("encoder spec: it is no JSON object")
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(values) - _OPTIONAL_FIELDS):
            raise UsageError(f"encoder spec: missing field {', '.join(missing)}")
        if unknown := sorted(set(values) - names):
            raise UsageError(f"encoder spec: unknown field {', '.join(unknown)}")
        for name, hint in get_type_hints(cls).items():
            if name in values:
                _check_type(name, values[name], hint)
        for name in ("max_tokens", "dim"):
            if not 1 <= values[name] < _MOST:
                raise UsageError(f"encoder spec: {name} must be at least 1, and below {_MOST}, not {values[name]}")
        return cls(**values)


def _check_type(name: str, value: object, hint: Any) -> None:  # noqa: ANN401
    """Refuse a value that its field's type, or those that it may be of, does not have."""
    if get_origin(hint) is Literal:
        fits, wanted = value in get_args(hint), f"one of {', '.join(get_args(hint))}"
    else:
        kinds = get_args(hint) or (hint,)
        fits = type(value) in kinds  # not isinstance: true is no number
        wanted = " or ".join(_SAID[kind] for kind in kinds)
    if not fits:
        raise UsageError(f"encoder spec: {name} must be {wanted}, not {json.dumps(value, default=str)[:_SHOWN]}")
