"""A backbone in 4 bits while its adapter is trained (QLoRA: Dettmers et al., arXiv 2305.14314, section 3).

It need not fit into the GPU in full: so it is probed on the CPU, and its weights are then loaded once more, in 4 bits.
"""

import importlib.util
from collections.abc import Callable

from llmindex.encode import device as devices
from llmindex.encode.device import Placement
from llmindex.encode.encoder import Encoder
from llmindex.encode.tokenizer import Tokenizer
from llmindex.errors import MissingPackage, ModelError

# Device types. On CPUs with bfloat16, bitsandbytes repacks the weights when a model is evaluated, and the repacked ones
# let no gradients through.
_DEVICES = ("cuda",)


def load(device: str, dtype: str, in_full: Callable[[str], Encoder]) -> Encoder:
    """An encoder whose backbone computes in 4 bits.

    Args:
        device: where it shall run.
        dtype: what it computes in.
        in_full: loads the encoder as it is, on the device of that name.

    Raises:
        UsageError: there is no such device or dtype.
        ModelError: the device is no CUDA GPU, or the weights do not fit into it.
        MissingPackage: bitsandbytes is not installed.
    """
    placement = devices.resolve(device, dtype)
    if placement.device.type not in _DEVICES:
        raise ModelError("model.quantize needs a CUDA GPU; leave it out to train on this machine")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackage("model.quantize needs bitsandbytes: pip install bitsandbytes")
    encoder = in_full("cpu")
    encoder.backbone.load_again(placement, _four_bits(placement))
    return Encoder(encoder.spec, Tokenizer(encoder.backbone.folder), encoder.backbone, placement)


def _four_bits(placement: Placement) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )
