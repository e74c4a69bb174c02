"""The manifest: an index folder's table of contents, and the only authority on what exists.

It is replaced atomically, always last: a file that it does not name is a leftover, and a file that it names
was complete on the disk before. Reading is strict, since everything else trusts what is read here: names of
files cannot leave the folder, numbers are in range, the encoder's fingerprint fits its spec.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from llmindex.encode.spec import ATTENTIONS, POOLINGS, EncoderSpec
from llmindex.errors import IndexNotFound, ManifestError, UsageError, unreadable
from llmindex.folder import MANIFEST_NAME, SHARD_FILE, is_index, open_regular
from llmindex.store.files import replacing

FORMAT_VERSION: Final = 1
"""Raised whenever an older llmindex would misread the folder."""

METRIC: Final = "inner_product"

VectorDtype = Literal["float16", "float32"]
VECTOR_DTYPES: tuple[VectorDtype, ...] = get_args(VectorDtype)

_INDEX_FILE = re.compile(r"faiss/[A-Za-z0-9][A-Za-z0-9._-]*\.faiss")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ANY = re.compile(r".*", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One Parquet file of vectors and columns.

    Attributes:
        file: path below the index folder.
        rows: documents in it.
        bytes: its size.
        sha256: hash of its bytes.
    """

    file: str
    rows: int
    bytes: int
    sha256: str

    @property
    def partial(self) -> bool:
        """Whether a fuller file is to take its place."""
        return ".partial-" in self.file


@dataclass(frozen=True, slots=True)
class CorpusRecord:
    """What was read, how far, and what was left out.

    Attributes:
        identity: what the sources were (JSON values); a resumed build compares it with its own.
        source_rows: rows of the sources consumed by the stored documents, bad rows included; where to go on.
        bad_rows: rows left out so far, by kind.
        complete: whether the sources were read to their end.
        truncated: stored documents whose text was cut to the encoder's max_tokens.
        tokens: model tokens of the stored documents.
    """

    identity: Mapping[str, Any]
    source_rows: int = 0
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    complete: bool = False
    truncated: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The encoder that made the vectors.

    Attributes:
        spec: what decides its vectors.
        dtype: what the model computed in.
        self_check: cosine of one text encoded alone to itself in a batch; None before the first batch.
    """

    spec: EncoderSpec
    dtype: str
    self_check: float | None = None


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """The FAISS index, derived from the vectors.

    Attributes:
        file: path below the index folder.
        sha256: hash of its bytes.
        bytes: its size.
        factory: FAISS factory string.
        parameters: search parameters as FAISS's ParameterSpace takes them, such as "nprobe=16"; "" for none.
        built_from: the ``vectors_id`` it was built from; the index is stale if the store's differs.
        recall_target: the recall@10 that was asked for.
        recall_at_10: the recall@10 measured against exact search.
    """

    file: str
    sha256: str
    bytes: int
    factory: str
    parameters: str
    built_from: str
    recall_target: float
    recall_at_10: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything in an index folder that counts."""

    created_at: str
    encoder: EncoderRecord
    corpus: CorpusRecord
    vector_dtype: VectorDtype = "float16"
    shards: tuple[ShardRecord, ...] = ()
    index: IndexRecord | None = None
    tombstones: tuple[str, ...] = ()
    metric: str = METRIC
    format_version: int = FORMAT_VERSION

    @property
    def count(self) -> int:
        """Documents in the store."""
        return sum(shard.rows for shard in self.shards)

    @property
    def vectors_id(self) -> str:
        """Identity of the stored rows, 64 hex digits: whatever is derived from them names it."""
        parts = [self.vector_dtype, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @classmethod
    def new(cls, encoder: EncoderRecord, corpus: CorpusRecord, vector_dtype: VectorDtype) -> "Manifest":
        """A manifest of no documents yet, made now."""
        if vector_dtype not in VECTOR_DTYPES:
            raise UsageError(f'vector dtype "{vector_dtype}" is unknown; choose from {", ".join(VECTOR_DTYPES)}')
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), encoder, corpus, vector_dtype)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = asdict(self)
        values["encoder"]["fingerprint"] = self.encoder.spec.fingerprint()
        return values

    def save(self, folder: Path) -> None:
        """Replace the folder's manifest, durably.

        Raises:
            StorageError: the disk refused; the old manifest stands.
        """
        # Sorted keys: the order in which kinds of bad rows turned up must not show. ASCII: names of files may
        # hold what UTF-8 cannot.
        text = json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False)
        with replacing(folder / MANIFEST_NAME) as temporary:
            temporary.write_text(text + "\n", encoding="ascii")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and check the folder's manifest.

        Raises:
            IndexNotFound: there is no such folder, or it has no manifest of ours.
            ManifestError: the manifest is damaged, cannot be read, or is of a newer format.
        """
        content = _read(folder)
        try:
            return _parse(_Section.of_file(folder / MANIFEST_NAME, content))
        except ManifestError:
            if is_index(folder):
                raise
            raise _not_found(folder, f"its {MANIFEST_NAME} is something else's") from None


def _read(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    try:
        with open_regular(path) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise _not_found(folder, f"it has no {MANIFEST_NAME}" if folder.exists() else "no such folder") from error
    except OSError as error:
        raise ManifestError(unreadable(path, error)) from error


def _not_found(folder: Path, why: str) -> IndexNotFound:
    return IndexNotFound(f"no index at {folder}: {why}; `llmindex build` makes one, -i names another")


@dataclass(frozen=True, slots=True)
class _Section:
    """A JSON object of the manifest that knows its place, so that every complaint can name the key."""

    path: Path
    where: str
    values: Mapping[str, Any]

    @classmethod
    def of_file(cls, path: Path, content: bytes) -> "_Section":
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path} is not JSON ({error}); it is damaged: build the index again") from error
        section = cls(path, "", {})
        section.check(isinstance(values, dict), "the file", "is not a JSON object")
        return cls(path, "", values)

    def check(self, good: bool, key: str, fault: str) -> None:
        """Raise, naming the key, unless good."""
        if not good:
            raise ManifestError(
                f"{self.path}: {self.where}{key} {fault}; the manifest is damaged: build the index again"
            )

    def get(self, key: str, *kinds: type[T]) -> T:
        """The value of a key that must be there and of one of these types."""
        self.check(key in self.values, key, "is missing")
        value = self.values[key]
        # bool is an int to Python, but not to JSON.
        good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        self.check(good, key, f"has the wrong type ({type(value).__name__})")
        return value  # type: ignore[no-any-return]

    def section(self, key: str) -> "_Section":
        return _Section(self.path, f"{self.where}{key}.", self.get(key, dict))

    def sections(self, key: str) -> list["_Section"]:
        items = self.get(key, list)
        for number, item in enumerate(items):
            self.check(isinstance(item, dict), f"{key}[{number}]", "is not a JSON object")
        return [_Section(self.path, f"{self.where}{key}[{n}].", item) for n, item in enumerate(items)]

    def text(self, key: str, pattern: re.Pattern[str] = _ANY) -> str:
        value = self.get(key, str)
        self.check(bool(pattern.fullmatch(value)), key, f"is {value[:80]!r}, which cannot be")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.get(key, str)
        self.check(value in choices, key, f"is {value[:80]!r}, not one of {', '.join(choices)}")
        return value

    def count(self, key: str, least: int = 0) -> int:
        value = self.get(key, int)
        self.check(least <= value < 1 << 62, key, f"is {value}, which cannot be")
        return value

    def share(self, key: str) -> float:
        value = self.get(key, int, float)
        self.check(0 <= value <= 1, key, f"is {str(value)[:80]}, not between 0 and 1")
        return float(value)


def _parse(top: _Section) -> Manifest:
    version = top.count("format_version", 1)
    if version > FORMAT_VERSION:
        raise ManifestError(
            f"{top.path} has format version {version} and this llmindex reads up to {FORMAT_VERSION}; upgrade llmindex"
        )
    if top.get("tombstones", list):
        raise ManifestError(
            f"{top.path} lists deleted documents, which this llmindex cannot leave out; upgrade llmindex"
        )
    top.choice("metric", (METRIC,))
    manifest = Manifest(
        created_at=top.text("created_at"),
        encoder=_parse_encoder(top.section("encoder")),
        corpus=_parse_corpus(top.section("corpus")),
        vector_dtype=top.choice("vector_dtype", VECTOR_DTYPES),  # type: ignore[arg-type]
        shards=tuple(_parse_shard(item) for item in top.sections("shards")),
        index=None if top.get("index", dict, type(None)) is None else _parse_index(top.section("index")),
    )
    for number, shard in enumerate(manifest.shards):
        expected = f"vectors/part-{number:05d}."
        good = shard.file.startswith(expected) and not (shard.partial and shard is not manifest.shards[-1])
        top.check(good, f"shards[{number}].file", f"is {shard.file!r}, out of order")
        # Each takes a byte at least; what is planned by the number of rows need not allow for any number.
        top.check(shard.rows <= shard.bytes, f"shards[{number}].rows", f"is {shard.rows}, more than so many bytes hold")
    return manifest


def _parse_shard(section: _Section) -> ShardRecord:
    return ShardRecord(
        file=section.text("file", SHARD_FILE),
        rows=section.count("rows", 1),
        bytes=section.count("bytes", 1),
        sha256=section.text("sha256", _SHA256),
    )


def _parse_corpus(section: _Section) -> CorpusRecord:
    bad_rows = section.section("bad_rows")
    return CorpusRecord(
        identity=section.get("identity", dict),
        source_rows=section.count("source_rows"),
        bad_rows={kind: bad_rows.count(kind) for kind in bad_rows.values},
        complete=section.get("complete", bool),
        truncated=section.count("truncated"),
        tokens=section.count("tokens"),
    )


def _parse_encoder(section: _Section) -> EncoderRecord:
    spec = _parse_spec(section.section("spec"))
    fingerprint = section.text("fingerprint")
    section.check(fingerprint == spec.fingerprint(), "fingerprint", "does not fit the spec")
    self_check = section.get("self_check", int, float, type(None))
    good = self_check is None or -2 < self_check < 2  # rounding may take a cosine beyond 1
    section.check(good, "self_check", f"is {str(self_check)[:80]}, which is no cosine")
    return EncoderRecord(spec, section.text("dtype"), None if self_check is None else float(self_check))


def _parse_spec(section: _Section) -> EncoderSpec:
    for key in ("backbone", "backbone_sha256", "prompt", "query_prompt"):
        section.text(key)
    section.get("revision", str, type(None))
    section.choice("pooling", POOLINGS)
    section.choice("attention", ATTENTIONS)
    section.get("layer", int)
    section.count("max_tokens", 1)
    section.count("dim", 1)
    section.get("normalize", bool)
    try:
        return EncoderSpec.from_json(section.values)
    except UsageError as error:
        raise ManifestError(f"{section.path}: {error}; upgrade llmindex, or build the index again") from error


def _parse_index(section: _Section) -> IndexRecord:
    return IndexRecord(
        file=section.text("file", _INDEX_FILE),
        sha256=section.text("sha256", _SHA256),
        bytes=section.count("bytes", 1),
        factory=section.text("factory"),
        parameters=section.text("parameters"),
        built_from=section.text("built_from", _SHA256),
        recall_target=section.share("recall_target"),
        recall_at_10=section.share("recall_at_10"),
    )
