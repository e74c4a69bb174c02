"""Indexes that stay open between searches, and the encoder that they share.

One model at a time: a resident searcher never needs more memory than one search in a process of its own, and an index
of another model takes the place of all before it.
"""

import gc
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmindex.errors import LlmindexError
from llmindex_cli.console import json_safe
from llmindex_cli.indexes import unfinished
from llmindex_cli.loading import loading
from llmindex_cli.resident.identity import index_identity
from llmindex_cli.resident.protocol import Message, ResidentHit

if TYPE_CHECKING:
    from llmindex.encode.encoder import Encoder
    from llmindex.encode.spec import EncoderSpec
    from llmindex.index.search import Searcher
    from llmindex.records import Hit
    from llmindex.store.reader import VectorStore

logger = logging.getLogger(__name__)

# Open indexes are mapped files: they cost address space and file descriptors, little memory.
_MOST = 8


class _Open:
    """An open index.

    Attributes:
        manifest: the bytes of its manifest when it was opened; whatever changes the index replaces the manifest.
        store: its documents.
    """

    def __init__(self, manifest: bytes, store: "VectorStore", load_encoder: "Callable[[], Encoder]") -> None:
        self.manifest = manifest
        self.store = store
        self._load_encoder = load_encoder

    @cached_property
    def searcher(self) -> "Searcher":
        """What answers from it; not before it is wanted, as it may be all that is missing."""
        from llmindex.index.search import Searcher

        return Searcher(self.store, self._load_encoder)


class OpenIndexes:
    """Answers requests, one at a time.

    Every open index has the model of the moment; ``runtime`` says where and how that runs, as ``llmindex.open`` does.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}  # by working directory and path as typed; the last used is last
        self._spec: EncoderSpec | None = None
        self._runtime: dict[str, Any] = {}
        self._encoder: Encoder | None = None

    def answer(self, request: Message) -> Message:
        """The last reply to a request "search" or "warm"; whatever happens, there is one."""
        reply: Message = {}
        try:
            manifest, seen = _manifest_of(Path(request["cwd"], request["index"]))
            if seen != request["manifest"]:
                return {"elsewhere": True}
            # Paths are the client's, as typed: messages then name them as its own would.
            os.chdir(request["cwd"])
            with loading():
                opened = self._at_hand((request["cwd"], request["index"]), manifest, request["runtime"])
                reply["unfinished"] = unfinished(opened.store)
                reply |= self._answer(request, opened.searcher)
        except LlmindexError as error:
            reply["error"] = {"kind": type(error).__name__, "message": str(error)}
        except Exception as error:
            logger.error("a request failed: %s: %s", type(error).__name__, error)
            reply["failed"] = True
        finally:
            os.chdir("/")
        return reply

    def status(self) -> Message:
        """What is resident, as JSON values."""
        loaded = self._spec is not None and self._encoder is not None
        return {
            "model": self._spec.adapter or self._spec.backbone if self._spec and loaded else None,
            "device": str(self._encoder.placement) if self._encoder else None,
            "indexes": list(dict.fromkeys(os.path.normpath(Path(cwd, index)) for cwd, index in list(self._open))),
        }

    def _answer(self, request: Message, searcher: "Searcher") -> Message:
        if request["do"] == "warm":
            searcher.search(["warm"], k=1)
            return {"status": self.status()}
        found = searcher.search(request["queries"], request["k"], request["min_score"], request["where"])
        return {"hits": [[_as_json(hit) for hit in hits] for hits in found]}

    def _at_hand(self, name: tuple[str, str], manifest: bytes, runtime: dict[str, Any]) -> _Open:
        """The index as its manifest now has it, opened again where that has changed."""
        known = self._open.pop(name, None)
        if known is None or known.manifest != manifest or self._runtime != runtime:
            known = self._open_now(name[1], manifest, runtime)
        self._open[name] = known
        while len(self._open) > _MOST:
            del self._open[next(iter(self._open))]
        return known

    def _open_now(self, index: str, manifest: bytes, runtime: dict[str, Any]) -> _Open:
        from llmindex.store.reader import VectorStore

        store = VectorStore.open(index)
        spec = store.manifest.encoder.spec
        if (spec, runtime) != (self._spec, self._runtime):
            self._open.clear()
            self._spec, self._runtime, self._encoder = spec, runtime, None
            gc.collect()  # the old model's memory, before there is a new model
        return _Open(manifest, store, self._load_encoder)

    def _load_encoder(self) -> "Encoder":
        from llmindex.encode.encoder import Encoder

        if self._encoder is None:
            assert self._spec is not None
            runtime = dict(self._runtime)
            self._encoder = Encoder.from_spec(self._spec, device_name=runtime.pop("device"), **runtime)
        return self._encoder


def _manifest_of(index: Path) -> tuple[bytes, list[int] | None]:
    """The manifest's bytes, and whose they are; none where it cannot be read, which opening the index will explain."""
    try:
        with (index / "manifest.json").open("rb") as file:
            return file.read(), index_identity(os.fstat(file.fileno()))
    except OSError:
        return b"", None


def _as_json(hit: "Hit") -> Message:
    return {name: json_safe(getattr(hit, name)) for name in ResidentHit._fields}
