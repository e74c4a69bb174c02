"""Whether a build goes on with the index that is there, starts afresh, or is refused.

What a run would do is compared with what the index folder says before anything is written: another encoder, another
corpus or another vector dtype is refused, never mixed in.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llmindex.corpus import Corpus
from llmindex.errors import CorpusError, LlmindexError, SpecMismatch, UsageError
from llmindex.folder import is_index
from llmindex.progress import ProgressCallback
from llmindex.store.files import check_folder, check_name
from llmindex.store.manifest import CorpusRecord, EncoderRecord, Manifest, VectorDtype
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter, check_replaceable

if TYPE_CHECKING:
    from llmindex.encode.encoder import Encoder

logger = logging.getLogger(__name__)


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a place where :func:`writer` can neither create an index nor open one, before a model is loaded for it.

    Raises:
        UsageError: there is something else.
        StorageError: nothing can be written there.
    """
    check_name(path)
    check_folder(path)
    if overwrite or not is_index(path):
        check_replaceable(path, overwrite)


def writer(path: Path, corpus: Corpus, encoder: "Encoder", vector_dtype: VectorDtype, overwrite: bool) -> VectorWriter:
    """Create the index, or open the one that an earlier run left, if it is of the same making.

    Raises:
        SpecMismatch: it was built with another encoder.
        UsageError: it stores vectors otherwise, or the folder is not free.
        CorpusError: it was built from another corpus.
        LlmindexError: as :meth:`VectorWriter.create` and :meth:`VectorWriter.open`.
    """
    if overwrite or not is_index(path):
        made_by = EncoderRecord(encoder.spec, encoder.dtype)
        return VectorWriter.create(path, made_by, CorpusRecord(corpus.record), vector_dtype, overwrite=overwrite)
    _check_same_making(path, Manifest.load(path), corpus, encoder, vector_dtype)
    opened = VectorWriter.open(path)
    try:
        # Once more under the lock: another process may have replaced the index in between.
        _check_same_making(path, opened.manifest, corpus, encoder, vector_dtype)
    except BaseException:
        opened.close()
        raise
    return opened


def is_begun(
    path: Path, corpus: Corpus, encoder: "Encoder", vector_dtype: VectorDtype, on_progress: ProgressCallback | None
) -> bool:
    """Whether the index is what this very build leaves when it is stopped, which overwriting is not to throw away.

    Who overwrites may suspect damage, or want another precision of the model than before, which a build that resumes
    may mix. So every file is checked, the precision has to be the same, and the log says that it is gone on with.
    """
    try:
        manifest = Manifest.load(path)
        _check_same_making(path, manifest, corpus, encoder, vector_dtype)
    except LlmindexError:
        return False
    finished = manifest.corpus.complete and manifest.index is not None
    if finished or not manifest.count or manifest.encoder.dtype != encoder.dtype or verify(path, on_progress).problems:
        return False
    stored = f"{manifest.count:,} document{'s' * (manifest.count > 1)}"
    logger.warning("%s: going on with %s that this build has stored; to start afresh, delete the folder", path, stored)
    return True


def _check_same_making(
    path: Path, manifest: Manifest, corpus: Corpus, encoder: "Encoder", vector_dtype: VectorDtype
) -> None:
    remedy = "add --overwrite to start afresh, or -o another folder"
    theirs, ours = manifest.encoder.spec, encoder.spec
    if theirs.fingerprint() != ours.fingerprint():
        old, new = theirs.to_json(), ours.to_json()
        named = [key for key in old | new if key not in ("backbone", "revision")]  # an adapter's where there is one
        changed = ", ".join(key for key in named if old.get(key) != new.get(key))
        raise SpecMismatch(
            f"{path} was built with another encoder ({theirs.fingerprint()}, now {ours.fingerprint()}: "
            f"{changed} differ); {remedy}"
        )
    if manifest.vector_dtype != vector_dtype:
        raise UsageError(f"{path} stores vectors as {manifest.vector_dtype}, not {vector_dtype}; {remedy}")
    if dict(manifest.corpus.identity) != corpus.record:
        changed = ", ".join(key for key in corpus.record if manifest.corpus.identity.get(key) != corpus.record[key])
        raise CorpusError(
            f"{path} was built from another corpus, or the files have changed since ({changed}); {remedy}"
        )
