"""llmindex: turn a decoder-only LLM into a text embedder; search and cluster documents with it.

Public names are loaded when they are first used, so that ``import llmindex`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmindex.api import Index as Index
    from llmindex.api import open as open
    from llmindex.builder import BuildReport as BuildReport
    from llmindex.builder import build as build
    from llmindex.builder import plan as plan
    from llmindex.cluster.clustering import Clustering as Clustering
    from llmindex.cluster.clustering import ClusterOptions as ClusterOptions
    from llmindex.corpus import CorpusOptions as CorpusOptions
    from llmindex.encode.encoder import Encoder as Encoder
    from llmindex.encode.settings import EncoderOptions as EncoderOptions
    from llmindex.encode.spec import EncoderSpec as EncoderSpec
    from llmindex.errors import LlmindexError as LlmindexError
    from llmindex.progress import Progress as Progress
    from llmindex.records import Hit as Hit

__version__ = "0.1.0"

_PLACES = {
    "BuildReport": "llmindex.builder",
    "ClusterOptions": "llmindex.cluster.clustering",
    "Clustering": "llmindex.cluster.clustering",
    "CorpusOptions": "llmindex.corpus",
    "Encoder": "llmindex.encode.encoder",
    "EncoderOptions": "llmindex.encode.settings",
    "EncoderSpec": "llmindex.encode.spec",
    "Hit": "llmindex.records",
    "Index": "llmindex.api",
    "LlmindexError": "llmindex.errors",
    "Progress": "llmindex.progress",
    "build": "llmindex.builder",
    "open": "llmindex.api",
    "plan": "llmindex.builder",
}

__all__ = [*_PLACES, "__version__"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _PLACES:
        raise AttributeError(f"module 'llmindex' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
