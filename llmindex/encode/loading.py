"""Who computes a model: we, where it is of Llama's family, else transformers."""

import logging
from pathlib import Path

from llmindex.encode.adapter import Adapter
from llmindex.encode.backbone import Backbone
from llmindex.encode.decoder import Decoder
from llmindex.encode.device import Placement
from llmindex.encode.family import OtherModel
from llmindex.encode.llama import Llama
from llmindex.encode.settings import Engine
from llmindex.encode.spec import Attention

logger = logging.getLogger(__name__)


def load_decoder(
    folder: Path,
    placement: Placement,
    *,
    layer: int,
    attention: Attention,
    adapter: Adapter | None,
    trust_remote_code: bool,
    engine: Engine,
) -> Decoder:
    """Load the decoder of a model folder.

    Args:
        folder: local model folder with safetensors.
        placement: device and dtype.
        layer: -1 the last (after the final norm), 0 the embeddings, k the k-th layer's output.
        attention: "causal" or "bidirectional".
        adapter: merged into the weights.
        trust_remote_code: run Python files of the model's folder.
        engine: "transformers" for a :class:`Backbone` in any case.

    Raises:
        ModelError: it cannot be loaded, or does not attend as asked.
        AdapterError: the adapter does not fit, or does not move the output.
        UsageError: it has no such layer.
    """
    if engine == "auto":
        try:
            return Llama(folder, placement, layer=layer, attention=attention, adapter=adapter)
        except OtherModel as why:
            logger.info('model "%s": transformers computes it: %s', folder, why)
    return Backbone(
        folder, placement, layer=layer, attention=attention, adapter=adapter, trust_remote_code=trust_remote_code
    )
