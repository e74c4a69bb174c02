"""The pairs that the default adapter is trained on: rows whose licence lets anyone use and pass on what comes of them.

Public domain, CC0, CC BY, MIT, Apache 2.0 and the WordNet licence; share-alike, research-only and non-commercial
sources are left out. Titles with abstracts, questions with answers, words with definitions as they are; of documents
without a natural partner, two neighbouring spans. A second file has pairs that share a topic and no more: a paragraph
and the next or next but one, and some of the first file's once more beside them. A third has short single texts, for
`llmindex pairs` to generate partners for. A fourth has long texts beside as many short ones, for
`scripts/weigh_beginnings.py`. Whichever are named are written.

    python benchmarks/default_adapter_pairs.py natural.parquet topics.parquet texts.parquet lengths.parquet
"""

import random
import re
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from llmindex_training.structure import two_spans
from shared_data import data_folder

# File -> source -> the most pairs that are drawn of it.
PAIRS = {
    "arxiv_title_abstract": {"arxiv": 12_000},  # CC0
    "news_public_pages": {"digital.gov": 2_778, "ethereum-eips": 547},  # public domain; CC0
    "questions_answers": {"medquad": 6_000, "qamr": 3_546},  # CC BY 4.0; MIT
    "science_summaries": {"scitldr": 4_360, "pubmedqa": 1_000},  # Apache 2.0; MIT
    "wordnet_definitions": {"open-english-wordnet": 4_000, "open-english-wordnet-example": 4_000},  # CC BY 4.0
}
TEXTS = {
    "books_speeches": {"standard-ebooks": 3_000, "us-state-of-the-union": 2_500, "us-inaugural": 500},  # CC0; public
    "docs_public_pages": {
        "digital.gov": 4_000,  # public domain
        "microsoft-cpp-docs": 3_000,  # CC BY 4.0
        "microsoft-powershell-docs": 3_000,  # CC BY 4.0
        "python-peps": 3_000,  # public domain
        "rust-rfcs": 3_000,  # Apache 2.0 / MIT
        "ethereum-eips": 1_000,  # CC0
    },
    "encyclopaedic_questions": {"qamr-wiki": 3_000},  # MIT
    "law": {"dc-code": 2_000},  # law is in the public domain
    "novels": {"english-novels": 1_500},  # public domain
}

# Files whose rows are paragraphs in the order of their documents.
PARAGRAPHS = {
    "docs_public_pages": ("digital.gov", "python-peps", "rust-rfcs", "ethereum-eips"),
    "books_speeches": ("us-state-of-the-union", "us-inaugural"),
}
PARAGRAPHS_EACH = 900
ONCE_MORE = ("arxiv", "digital.gov", "medquad", "scitldr", "open-english-wordnet", "qamr")
ONCE_MORE_IN_ALL = 4_000

# Source of a pair -> the most short texts that are taken of it.
SHORT_TEXTS = {
    "arxiv": 250,
    "medquad": 200,
    "qamr": 200,
    "digital.gov": 250,
    "open-english-wordnet-example": 150,
    "scitldr": 150,
    "pubmedqa": 100,
    "spans:python-peps": 120,
    "spans:microsoft-cpp-docs": 120,
    "spans:microsoft-powershell-docs": 120,
    "spans:us-state-of-the-union": 150,
    "spans:standard-ebooks": 150,
    "spans:english-novels": 80,
    "spans:dc-code": 80,
    "spans:digital.gov": 150,
    "spans:rust-rfcs": 80,
}
CHARACTERS = range(30, 181)

# Beside the pairs' longer sides, the long texts of whole files: file -> how many.
LONG_TEXTS = {"docs_public_pages": 2_500, "books_speeches": 900, "law": 900, "novels": 900}
LONG = range(600, 2_401)  # characters
SHORT = 300
LENGTHS_EACH = 1_760


def natural_pairs(chance: random.Random) -> list[dict[str, str]]:
    """Pairs as they are."""
    rows = []
    for name, sources in PAIRS.items():
        every = pq.read_table(data_folder() / "pairs" / f"{name}.parquet").to_pylist()
        for source, most in sources.items():
            own = [row for row in every if row["source"] == source]
            rows += chance.sample(own, min(most, len(own)))
    return rows


def span_pairs(chance: random.Random) -> list[dict[str, str]]:
    """Two neighbouring spans of texts that are long enough."""
    rows = []
    for name, sources in TEXTS.items():
        every = pq.read_table(data_folder() / "text" / f"{name}.parquet").to_pylist()
        for source, most in sources.items():
            texts = [row["text"] for row in every if row["source"] == source]
            chance.shuffle(texts)
            spans = (span for text in texts if (span := two_spans(text, chance)))
            rows += [
                {"text": first, "text_pair": second, "source": f"spans:{source}"}
                for _, (first, second) in zip(range(most), spans, strict=False)
            ]
    return rows


def topic_pairs(chance: random.Random, natural: list[dict[str, str]]) -> list[dict[str, str]]:
    """Paragraphs near each other, and a part of the natural pairs."""
    rows = []
    for name, sources in PARAGRAPHS.items():
        every = pq.read_table(data_folder() / "text" / f"{name}.parquet").to_pylist()
        for source in sources:
            texts = [row["text"] for row in every if row["source"] == source]
            for first in chance.sample(range(len(texts) - 2), min(PARAGRAPHS_EACH, len(texts) - 2)):
                pair = texts[first + chance.choice((1, 2))]
                rows.append({"text": texts[first], "text_pair": pair, "source": f"near:{source}"})
    return rows + chance.sample([row for row in natural if row["source"] in ONCE_MORE], ONCE_MORE_IN_ALL)


def short_texts(natural: list[dict[str, str]]) -> list[dict[str, str]]:
    """Titles, questions, and first sentences of spans."""
    rows = natural.copy()
    random.Random(11).shuffle(rows)
    left = SHORT_TEXTS.copy()
    texts = []
    for row in rows:
        source = row["source"]
        sides = (row["text"], row["text_pair"]) if source in ("qamr", "digital.gov") else (row["text"],)
        for side in sides:
            text = re.split(r"(?<=[.!?]) ", side)[0] if source.startswith("spans") else side
            if left.get(source, 0) and len(text) in CHARACTERS:
                texts.append({"text": text, "source": source})
                left[source] -= 1
    random.Random(1).shuffle(texts)
    return texts


def lengths(chance: random.Random, natural: list[dict[str, str]]) -> list[dict[str, str]]:
    """Long texts and short ones, in equal numbers."""
    texts = [
        row["text_pair"] for row in natural if len(row["text_pair"]) in LONG and not row["source"].startswith("spans")
    ]
    for name, most in LONG_TEXTS.items():
        every = pq.read_table(data_folder() / "text" / f"{name}.parquet")["text"].to_pylist()
        texts += chance.sample([text for text in every if len(text) in LONG], most)
    rows = [{"text": text, "source": "long"} for text in chance.sample(texts, LENGTHS_EACH)]
    return rows + [
        {"text": row[chance.choice(("text", "text_pair"))][:SHORT], "source": "short"}
        for row in chance.sample(natural, LENGTHS_EACH)
    ]


def main() -> None:
    """Write the files and say what is in them."""
    chance = random.Random(0)
    natural = natural_pairs(chance) + span_pairs(chance)
    made = (
        natural,
        topic_pairs(random.Random(3), natural),
        short_texts(natural),
        lengths(random.Random(3), natural),
    )
    for file, rows in zip(sys.argv[1:], made, strict=False):
        pq.write_table(pa.Table.from_pylist(rows), file)
        print(f"{file}: {len(rows):,} rows")
        for source, count in Counter(row["source"] for row in rows).most_common():
            print(f"{count:7,}  {source}")


if __name__ == "__main__":
    main()
