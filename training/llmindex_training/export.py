"""Export: an encoder as a folder for other tools, with the adapter merged and the prompts inside.

Nothing is called done before it is proved: what was written is loaded again by the tool that it is for, and has to give
the vectors that the encoder gives, for queries and for documents, long ones included. The folder appears by one rename
when it has passed.
"""

import fcntl
import glob
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llmindex.encode import models
from llmindex.encode.adapter import WHITENING_NAME
from llmindex.encode.backbone import no_progress_bar
from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.models import one_line
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.wrapping import Wrapping
from llmindex.errors import LlmindexError, MissingPackage, ModelError, UsageError
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Vectors
from llmindex.store.files import check_name, make_folder, refused, storage_error, sync, sync_names
from llmindex_training import export_card
from llmindex_training.export_modules import OWN_POOLING, write_json, write_modules
from llmindex_training.export_parity import ROLES, TEXTS, with_sentence_transformers, with_transformers
from llmindex_training.export_tokenizer import conversational, templated

logger = logging.getLogger(__name__)

Target = Literal["sentence-transformers", "transformers"]
TARGETS: tuple[Target, ...] = get_args(Target)

PARITY = 0.9999

# Characters that mkdtemp adds to a prefix.
_RANDOM = 8
# Seconds after which a folder that nobody holds is nobody's.
_SETTLED = 60


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        folder: where.
        to: which tool it is for.
        dim: length of the vectors.
        dtype: of the weights.
        bytes: size of the folder.
        texts: texts that were compared, each as query and as document.
        cosine: the lowest cosine between a vector of the encoder and of the folder, both computed in float32.
        seconds: of the whole call.
    """

    folder: Path
    to: Target
    dim: int
    dtype: str
    bytes: int
    texts: int
    cosine: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"folder": str(self.folder)}


def export(
    options: EncoderOptions,
    folder: str | Path,
    to: Target = "sentence-transformers",
    *,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> ExportReport:
    """Write an encoder as a folder that another tool loads, and prove that it gives the same vectors.

    Args:
        options: the encoder. Its dtype is that of the weights that are written; "auto" is float32 here.
        folder: made by this call.
        to: "sentence-transformers", with prompts and pooling, for ``SentenceTransformer(folder)``; or "transformers",
            the merged decoder and tokenizers that add the prompts, with the pooling written down in its README.md.
        overwrite: replace an export that is there already.
        on_progress: called with the stage "export", in steps.

    Raises:
        UsageError: there is such a folder already, the encoder lies in it, or has no form that the tool could load.
        ModelError: the encoder cannot be loaded, or the folder gave other vectors; nothing is left of it.
        MissingPackage: sentence-transformers is not installed.
        StorageError: the disk refused.
    """
    started = time.perf_counter()
    path = Path(folder)
    if to not in TARGETS:
        raise UsageError(f'unknown target "{to}"; one of {", ".join(TARGETS)}')
    check_name(path)
    if to == "sentence-transformers":
        _require_sentence_transformers()
    _check_apart(path, options)
    _check_free(path, overwrite=overwrite)
    step = _steps(on_progress)
    step()
    dtype = "float32" if options.dtype == "auto" else options.dtype
    encoder = Encoder.from_options(replace(options, dtype=dtype, engine="transformers"))
    _check_native(encoder)
    if to == "sentence-transformers":
        _check_expressible(encoder)
    step()
    with _appearing(path, overwrite=overwrite) as made:
        _write(encoder, made, to)
        step()
        texts = [*TEXTS, "many words, " * encoder.spec.max_tokens]
        worst = _check_parity(encoder, made, to, texts)
        size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    step()
    seconds = time.perf_counter() - started
    return ExportReport(path, to, encoder.spec.dim, dtype, size, len(texts), worst, seconds)


def _require_sentence_transformers() -> None:
    import importlib.util

    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingPackage(
            "an export for sentence-transformers is checked by loading it: pip install sentence-transformers, or "
            "export --to transformers"
        )


def _check_apart(folder: Path, options: EncoderOptions) -> None:
    """Refuse to write over what is exported."""
    for source in (options.model, options.adapter):
        if source and Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{source}, which is to be exported, lies at {folder}: name another folder with -o")


def _check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything; with ``overwrite`` over anything but an earlier export."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{folder} is there already: name another folder, or replace it with --overwrite")
    if not (folder / models.EXPORT_RECORD).is_file():
        raise UsageError(
            f"{folder} is no earlier export (it has no {models.EXPORT_RECORD}): --overwrite does not replace it"
        )


def _check_native(encoder: Encoder) -> None:
    """Refuse a model that is code of its own: an export holds weights and settings alone."""
    kind = type(encoder.backbone.model)
    if not kind.__module__.startswith("transformers."):
        raise ModelError(
            f'model "{encoder.spec.backbone}" ({kind.__name__}) runs Python code of its own, which an export does not '
            "carry; only models that transformers itself knows can be exported"
        )


def _check_expressible(encoder: Encoder) -> None:
    """Refuse poolings that no module of sentence-transformers computes."""
    spec = encoder.spec
    if spec.pooling == "last_mean":
        raise UsageError(
            "sentence-transformers cannot express the pooling last_mean: it joins poolings without bringing each to "
            "unit length first; export --to transformers, or adapt with another pooling"
        )
    query, document = (encoder.wrapping(role) for role in ROLES)
    lengths = {(len(wrapping.before), len(wrapping.after)) for wrapping in (query, document)}
    if spec.pooling == OWN_POOLING and len(lengths) > 1:
        raise UsageError(
            f"sentence-transformers cannot express the pooling {spec.pooling} with prompts of different lengths for "
            "queries and documents; export --to transformers, or take one prompt for both"
        )
    wrapped = any(wrapping.tokens for wrapping in (query, document))
    if spec.pooling == "mean_text" and wrapped:
        raise UsageError(
            "sentence-transformers cannot express the pooling mean_text with a prompt: it cannot leave out the tokens "
            "behind a text; export --to transformers, or adapt with --pooling mean"
        )


def _write(encoder: Encoder, folder: Path, to: Target) -> None:
    from transformers import AutoTokenizer

    spec = encoder.spec
    whole = encoder
    if spec.layer != -1:
        # This encoder has dropped the layers above, without which no other tool gives this one's states.
        whole = Encoder.from_spec(
            replace(spec, layer=-1),
            device_name=str(encoder.placement.device),
            dtype=encoder.dtype,
            engine="transformers",
        )
    with no_progress_bar():
        whole.backbone.model.save_pretrained(folder)
    source = AutoTokenizer.from_pretrained(str(models.locate(spec.backbone, spec.revision).folder))
    wrappings: dict[Role, Wrapping] = {role: encoder.wrapping(role) for role in ROLES}
    same = wrappings["query"] == wrappings["document"]
    if to == "transformers":
        _save_tokenizer(templated(source, encoder, "document"), folder)
        if not same:
            _save_tokenizer(templated(source, encoder, "query"), folder / "query")
        if encoder.whitening is not None:
            encoder.whitening.save(folder / WHITENING_NAME)
    else:
        made = templated(source, encoder, "document") if same else conversational(source, encoder)
        _save_tokenizer(made, folder)
        write_modules(encoder, wrappings, folder, same=same)
    shown = {key: value for key, value in spec.to_json().items() if key not in ("backbone", "adapter")}
    record = {"to": to, "dtype": encoder.dtype, "fingerprint": spec.fingerprint(), "encoder": shown}
    write_json(folder / models.EXPORT_RECORD, record)
    card = export_card.card(spec, wrappings, to)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    # The name that older versions of transformers know as well.
    config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    write_json(file, config)


def _check_parity(encoder: Encoder, folder: Path, to: Target, texts: Sequence[str]) -> float:
    """The lowest cosine between what the encoder and the folder give, both in float32.

    Raises:
        ModelError: it is too low, or the folder cannot be loaded.
    """
    encoder.backbone.model.float()  # the weights keep their rounding; what is compared is the computation
    load: Callable[[Path, Encoder], Callable[[Sequence[str], Role], Vectors]] = (
        with_sentence_transformers if to == "sentence-transformers" else with_transformers
    )
    worst, where = 2.0, ""
    try:
        with no_progress_bar():
            embed = load(folder, encoder)
        for role in ROLES:
            made, wanted = embed(texts, role), encoder.encode(texts, role=role)
            if made.shape != wanted.shape:
                raise ModelError(f"{to} gives vectors of {made.shape[1]:,} values, not {wanted.shape[1]:,}")
            norms = np.linalg.norm(made, axis=1) * np.linalg.norm(wanted, axis=1)
            cosines = (made * wanted).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
            row = int(np.nan_to_num(cosines, nan=-1.0).argmin())
            if not cosines[row] >= worst:
                worst, where = float(cosines[row]), f'the {role} "{" ".join(texts[row].split())[:60]}"'
    except LlmindexError:
        raise
    except Exception as error:  # whatever another library makes of files that it does not understand
        raise ModelError(f"{to} cannot use what was written; nothing was kept: {one_line(error)}") from error
    if not worst >= PARITY:
        raise ModelError(
            f"{to} gives other vectors than this encoder: cosine {worst:.5f} for {where}, below {PARITY}; nothing was "
            f"kept{_way_out(encoder, to)}"
        )
    return min(worst, 1.0)


def _way_out(encoder: Encoder, to: Target) -> str:
    if to == "sentence-transformers" and encoder.wrapping("query") != encoder.wrapping("document"):
        return (
            "; with this model's tokenizer it cannot part two different prompts from the text: export --to "
            "transformers, or take one prompt for queries and documents"
        )
    return ": it does not tokenise or attend as this model needs it"


@contextmanager
def _appearing(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Lend a folder beside the place; it is renamed there when the block ends well, else removed.

    Of two at once the later one finds the place taken, as if it had begun after the other.
    """
    fresh = [parent for parent in folder.parents if not parent.exists()]
    make_folder(folder.parent)
    prefix = f".{folder.name}.making-"
    _remove_leftovers(folder.parent, prefix)
    try:
        making = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        held = _hold(making)
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        yield making
        making.chmod(0o755)
        for file in making.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                sync(file)
        _check_free(folder, overwrite=overwrite)
        _replace(folder, making)
    except Exception as error:
        if refused(error) is None:
            raise
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
        os.close(held)
        with suppress(OSError):  # the first that is not empty
            for parent in fresh:
                parent.rmdir()


def _hold(folder: Path) -> int:
    """Lock a folder until the descriptor is closed or the process ends.

    Raises:
        OSError: another process has it, or the disk refused.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove what exports to this place left when they were killed: nobody holds it."""
    for leftover in parent.glob(f"{glob.escape(prefix)}{'?' * _RANDOM}"):
        with suppress(OSError):
            held = _hold(leftover)
            # One that has just been made may be about to be held.
            if time.time() - leftover.stat().st_mtime > _SETTLED:
                shutil.rmtree(leftover, ignore_errors=True)
            os.close(held)


def _replace(folder: Path, made: Path) -> None:
    old = made.with_name(f"{made.name}-old")
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
    sync_names(folder.parent)


def _steps(on_progress: ProgressCallback | None) -> Callable[[], None]:
    done = -1

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress("export", done, 3, "steps"))

    return step
