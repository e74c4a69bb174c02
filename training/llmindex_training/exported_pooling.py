"""The pooling suffix_mean for sentence-transformers, which has no module for it; a copy goes into exports that need it.

So this file stands alone: it imports nothing of llmindex.
"""

from typing import Any

import torch

try:
    from sentence_transformers.base.modules import Module
except ImportError:  # before version 6
    from sentence_transformers.models import Module  # type: ignore[import-not-found, no-redef]


class SuffixMean(Module):
    """Mean with weights 1, 2, 3, ... over the prompt's tokens after the text; the last token if there are none.

    Args:
        width: length of a token's state.
        before: tokens that the prompt puts before a text.
        after: tokens that it puts after it.
    """

    config_keys = ["width", "before", "after"]  # noqa: RUF012 - as its base declares it

    def __init__(self, width: int, before: int, after: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.before, self.after = width, before, after

    def forward(self, features: dict[str, Any], **kwargs: object) -> dict[str, Any]:
        """Add ``sentence_embedding (B, width)`` to what the decoder gave."""
        mask_BT = features["attention_mask"].long()
        length_B1 = mask_BT.sum(dim=1, keepdim=True)
        after_B1 = torch.where(length_B1 > self.before + self.after, max(self.after, 1), 1)
        weight_BT = ((mask_BT.cumsum(dim=1) - (length_B1 - after_B1)).clamp(min=0) * mask_BT).float()
        total_BD = torch.einsum("btd,bt->bd", features["token_embeddings"].float(), weight_BT)
        mean_BD = total_BD / weight_BT.sum(dim=1, keepdim=True)
        # The modules after it have the dtype of the model.
        return features | {"sentence_embedding": mean_BD.to(features["token_embeddings"].dtype)}

    def get_embedding_dimension(self) -> int:
        """Length of the vectors."""
        return self.width

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Write the configuration."""
        self.save_config(output_path)
