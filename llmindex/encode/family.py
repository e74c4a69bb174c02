"""Which decoders we compute ourselves, read from a model's config.json.

Llama, Mistral, Qwen2 and Qwen3 are one decoder in four dialects: pre-normed layers of grouped-query attention with
rotary positions (Su et al. 2021, arXiv 2104.09864) and of a SwiGLU (Shazeer 2020, arXiv 2002.05202). Where a
configuration asks for anything else, or leaves something to a default of transformers, transformers computes the model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class OtherModel(Exception):
    """A model that is not of the family, with the reason."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the weights do not tell.

    Attributes:
        vocabulary: the number of tokens.
        layers: their number.
        hidden_size: D, the length of a token state.
        mlp_size: values between the gate and the way back.
        heads: of queries.
        kv_heads: of keys and values.
        head_size: C, the values of a head.
        head_norms: whether each head of queries and keys is normed.
        biases: the projections that have one.
        norm_eps: keeps the norms from dividing by zero.
        max_positions: the most tokens the model was made for.
        frequencies: ``(C / 2,) float32``, radians by which a pair of values turns from one token to the next.
    """

    vocabulary: int
    layers: int
    hidden_size: int
    mlp_size: int
    heads: int
    kv_heads: int
    head_size: int
    head_norms: bool
    biases: tuple[str, ...]
    norm_eps: float
    max_positions: int
    frequencies: Tensor

    @classmethod
    def read(cls, folder: Path) -> "Architecture":
        """The architecture of a model folder.

        Raises:
            OtherModel: it is another than those that we compute, or its config.json cannot be read.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind = config["model_type"]
            _check_plain(config, kind)
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            # The other three have a head size of their own only where the configuration says so.
            head_size = config["head_dim"] if kind == "qwen3" else config.get("head_dim") or hidden // heads
            positions = int(config["max_position_embeddings"])
            return cls(
                vocabulary=int(config["vocab_size"]),
                layers=int(config["num_hidden_layers"]),
                hidden_size=hidden,
                mlp_size=int(config["intermediate_size"]),
                heads=heads,
                kv_heads=int(config["num_key_value_heads"]),
                head_size=int(head_size),
                head_norms=kind == "qwen3",
                biases=_biases(config, kind),
                norm_eps=float(config["rms_norm_eps"]),
                max_positions=positions,
                frequencies=_frequencies(config, int(head_size), positions),
            )
        except KeyError as error:
            raise OtherModel(f"config.json does not say {error}") from error
        except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise OtherModel(f"config.json: {error}") from error

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights."""
        hidden, queries, keys = self.hidden_size, self.heads * self.head_size, self.kv_heads * self.head_size
        projections = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (self.mlp_size, hidden),
            "mlp.up_proj": (self.mlp_size, hidden),
            "mlp.down_proj": (hidden, self.mlp_size),
        }
        layer: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in projections.items()}
        layer |= {f"{name}.bias": projections[name][:1] for name in self.biases}
        layer |= {f"{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        if self.head_norms:
            layer |= {f"self_attn.{name}_norm.weight": (self.head_size,) for name in "qk"}
        every = {f"layers.{number}.{name}": shape for number in range(self.layers) for name, shape in layer.items()}
        return every | {"embed_tokens.weight": (self.vocabulary, hidden), "norm.weight": (hidden,)}


def _biases(config: dict[str, Any], kind: str) -> tuple[str, ...]:
    inputs = tuple(f"self_attn.{name}_proj" for name in "qkv")
    if kind == "qwen2":
        return inputs
    attention = (*inputs, "self_attn.o_proj") if kind != "mistral" and config.get("attention_bias") else ()
    mlp = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
    return (*attention, *mlp) if kind == "llama" and config.get("mlp_bias") else attention


def _check_plain(config: dict[str, Any], kind: object) -> None:
    reasons = {
        f"it is a {kind}": kind not in ("llama", "mistral", "qwen2", "qwen3"),
        "its activation is no SiLU": config.get("hidden_act", "silu") != "silu",
        "it is quantised": "quantization_config" in config,
        "it brings code of its own": "auto_map" in config,
        "it says how to attend": "is_causal" in config,
        "its positions are said twice": bool(config.get("rope_parameters") and config.get("rope_scaling")),
        "it rotates a part of each head": config.get("partial_rotary_factor", 1) != 1,
        "it has windows of attention": (
            bool(config.get("use_sliding_window"))
            or (kind == "mistral" and config["sliding_window"] is not None)
            or any(layer != "full_attention" for layer in config.get("layer_types") or ())
        ),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise OtherModel(found[0])


def _frequencies(config: dict[str, Any], head_size: int, positions: int) -> Tensor:
    """Rotary frequencies ``(C / 2,)``, as configurations before and since transformers 5 have them."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    base = rope.pop("rope_theta", None) or config["rope_theta"]
    frequencies: Tensor = 1.0 / base ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    if kind == "default" and not rope:
        return frequencies
    if kind == "linear" and set(rope) == {"factor"}:
        return frequencies / float(rope["factor"])
    if kind == "llama3":
        trained = int(rope.pop("original_max_position_embeddings", positions))
        return _stretched(frequencies, trained, **rope)
    raise OtherModel(f"its positions are of the kind {kind}")


def _stretched(
    frequencies: Tensor, trained: int, *, factor: float, low_freq_factor: float, high_freq_factor: float
) -> Tensor:
    """Llama 3.1's way to longer texts: slow waves are slowed by ``factor``, fast ones stay, between them it fades."""
    turns = trained * frequencies / (2 * math.pi)
    fast: Tensor = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    stretched: Tensor = frequencies * (fast + (1 - fast) / factor)
    return stretched
