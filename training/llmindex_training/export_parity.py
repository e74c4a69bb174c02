"""The other tools' side of an export's proof: each loads the folder as its own users would and embeds texts."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.pooling import POOLERS
from llmindex.encode.whitening import Whitening
from llmindex.encode.wrapping import Wrapping
from llmindex.records import Vectors
from llmindex_training.export_modules import OWN_POOLING

ROLES: tuple[Role, ...] = ("query", "document")

# What goes wrong at the seam between prompt and text: quotes, full stops, white space, other scripts, line ends.
TEXTS = (
    "A plain sentence about the weather in spring.",
    "word",
    '"Quoted from its first to its last letter."',
    "  white space before and after  ",
    "Two lines.\n\nThe second one is after an empty line:\n",
    "Größe, naïve façade, 東京タワー, привет, 🙂",
    "def sort(items: list[int]) -> None:\n    items.sort(key=lambda x: -x)  # {text}",
    "1234567890 3.14 %$#@!",
    "?!... and so on (in brackets)",
    "The committee met twice in March to discuss the budget. It agreed on nothing, and met again in April, when half "
    "of its members were away; what was decided then was reversed in May.",
)

Embed = Callable[[Sequence[str], Role], Vectors]
"""Texts of a role to ``(n, dim) float32`` vectors; the first text alone, since a batch without padding is a case of its
own, the others in batches."""

_BATCH = 4


def with_sentence_transformers(folder: Path, encoder: Encoder) -> Embed:
    """The folder as ``SentenceTransformer`` loads it, in float32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder),
        device=str(encoder.placement.device),
        model_kwargs={"dtype": torch.float32},
        local_files_only=True,
        trust_remote_code=encoder.spec.pooling == OWN_POOLING,
    )

    def embed(texts: Sequence[str], role: Role) -> Vectors:
        encode = model.encode_query if role == "query" else model.encode_document
        parts = (list(texts[:1]), list(texts[1:]))
        vectors = [encode(part, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True) for part in parts]
        return np.concatenate(vectors).astype(np.float32)

    return embed


def with_transformers(folder: Path, encoder: Encoder) -> Embed:
    """The folder as ``AutoModel`` and ``AutoTokenizer`` load it, in float32, pooled as its README says."""
    from transformers import AutoModel, AutoTokenizer

    spec = encoder.spec
    device = encoder.placement.device
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).to(device).eval()
    document = AutoTokenizer.from_pretrained(str(folder))
    own = folder / "query"
    tokenizers = {"document": document, "query": AutoTokenizer.from_pretrained(str(own)) if own.is_dir() else document}
    wrappings = {role: encoder.wrapping(role) for role in ROLES}
    whitening = Whitening.load(folder, encoder.backbone.hidden_size).to(device) if spec.whitened else None

    def span(mask_BT: Tensor, wrapping: Wrapping) -> Tensor:
        positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        ends_B1 = mask_BT.sum(dim=1, keepdim=True) - len(wrapping.after)
        return ((positions_T >= len(wrapping.before)) & (positions_T < ends_B1)).long()

    @torch.inference_mode()
    def embed_batch(texts: Sequence[str], role: Role) -> Tensor:
        wrapping = wrappings[role]
        batch = tokenizers[role](
            [wrapping.gap + text for text in texts], padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        output = model(**batch, output_hidden_states=spec.layer != -1, use_cache=False)
        states_BTD = output.last_hidden_state if spec.layer == -1 else output.hidden_states[spec.layer]
        mask_BT = batch["attention_mask"]
        pooled_BD = POOLERS[spec.pooling](states_BTD, mask_BT, span(mask_BT, wrapping))
        cut_BD = (whitening(pooled_BD) if whitening else pooled_BD)[:, : spec.dim]
        return torch.nn.functional.normalize(cut_BD, dim=1) if spec.normalize else cut_BD

    def embed(texts: Sequence[str], role: Role) -> Vectors:
        starts = [0, *range(1, len(texts), _BATCH), len(texts)]
        parts = [embed_batch(texts[start:stop], role) for start, stop in pairwise(starts)]
        vectors: Vectors = torch.cat(parts).cpu().numpy()
        return vectors

    return embed
