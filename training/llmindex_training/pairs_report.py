"""What a file of pairs holds and how it came about, gathered from its parts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

_SAMPLES = 2
_SAMPLE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Sample:
    """A candidate to look at, its texts shortened.

    Attributes:
        source: how it was made: "instruct:simpler".
        reason: why it was rejected, one of ``filters.REASONS``; None if it was accepted.
        text: the document, or a part of it.
        text_pair: what was made of it.
    """

    source: str
    reason: str | None
    text: str
    text_pair: str


@dataclass(frozen=True, slots=True)
class PairsReport:
    """What a file of pairs holds and how it came about.

    Attributes:
        path: the file.
        documents: documents that pairs were made of.
        pairs: accepted pairs, the rows of the file.
        added: documents that this run went through; the others were done before.
        complete_before: whether there was nothing left to do.
        bad_rows: rows of the corpus that are no documents, by kind.
        methods: what was used.
        title_column: column that the titles came from, or None.
        accepted: pairs by source.
        rejected: candidates that were left out, by source and reason.
        samples: some of each source and reason.
        seconds: time of this run.
    """

    path: Path
    documents: int
    pairs: int
    added: int
    complete_before: bool
    bad_rows: Mapping[str, int]
    methods: Sequence[str]
    title_column: str | None
    accepted: Mapping[str, int]
    rejected: Mapping[str, Mapping[str, int]]
    samples: Sequence[Sample]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"path": str(self.path)}


@dataclass(slots=True)
class Tally:
    """Counts and samples, gathered from the parts.

    Attributes:
        accepted: pairs by source.
        rejected: candidates that were left out, by source and reason.
        samples: the first few of each source and reason.
    """

    accepted: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def add(self, table: pa.Table) -> None:
        """Count a part: columns text, text_pair, source, reason."""
        shown = Counter((sample.source, sample.reason) for sample in self.samples)
        for row in table.to_pylist():
            source, reason = row["source"], row["reason"]
            if reason is None:
                self.accepted[source] += 1
            else:
                self.rejected.setdefault(source, Counter())[reason] += 1
            if shown[source, reason] < _SAMPLES:
                shown[source, reason] += 1
                texts = (row[name][:_SAMPLE_CHARACTERS] for name in ("text", "text_pair"))
                self.samples.append(Sample(source, reason, *texts))
