"""Write the docstrings of the installed Python standard library as a corpus: real text, at hand everywhere.

The source files are parsed, never imported, so nothing runs and modules of other platforms are read as well.
The same Python gives the same file. Columns: ``id`` (``json.JSONEncoder.default``), ``module`` (``json``),
``name`` (``JSONEncoder.default``; a module's own), ``kind`` (module, class, function or method) and ``text``.
"""

import argparse
import ast
import inspect
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Of the encodings, nearly all docstrings are one generator's line.
SKIPPED = {"dist-packages", "encodings", "idle_test", "idlelib", "site-packages", "test", "tests", "turtledemo"}
MIN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One docstring; the fields are the corpus's columns."""

    id: str
    module: str
    name: str
    kind: str
    text: str


def modules(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """The public modules under a folder, by dotted name, tests left out."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and all(part.isidentifier() and part[0] != "_" and part not in SKIPPED for part in parts):
            yield ".".join(parts), path


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """The (name, kind, docstring) of the public classes and functions in a module or class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):  # a definition for each platform, say
            yield from definitions(child, prefix)
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            is_class = isinstance(child, ast.ClassDef)
            kind = "class" if is_class else "method" if prefix else "function"
            yield prefix + child.name, kind, ast.get_docstring(child, clean=False) or ""
            if is_class:
                yield from definitions(child, f"{prefix}{child.name}.")


def entries(stdlib: Path) -> list[Entry]:
    """All docstrings of some length; of equal ids or equal texts, the first."""
    found: dict[str, Entry] = {}
    texts: set[str] = set()
    for module, path in modules(stdlib):
        with tokenize.open(path) as file:
            tree = ast.parse(file.read())
        own = (module, "module", ast.get_docstring(tree, clean=False) or "")
        for name, kind, docstring in (own, *definitions(tree)):
            key = module if kind == "module" else f"{module}.{name}"
            text = inspect.cleandoc(docstring).strip()
            if len(text) >= MIN_CHARACTERS and text not in texts and key not in found:
                found[key] = Entry(key, module, name, kind, text)
                texts.add(text)
    return list(found.values())


def _depth(row: Entry) -> int:
    """0 for a module, 1 for what it holds, and so on."""
    return 0 if row.kind == "module" else 1 + row.name.count(".")


def spread(rows: list[Entry], limit: int) -> list[Entry]:
    """At most `limit` of the rows, in their order: first every module's first, then the second ones.

    The first of a module is its own docstring; top-level names follow, then methods.
    """
    place: Counter[str] = Counter()
    ranked: list[tuple[int, int]] = []
    for number, row in sorted(enumerate(rows), key=lambda item: _depth(item[1])):
        ranked.append((place[row.module], number))
        place[row.module] += 1
    return [rows[number] for number in sorted(number for _, number in sorted(ranked)[:limit])]


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description="Write the standard library's docstrings as Parquet.")
    parser.add_argument("-o", "--output", type=Path, default=Path("stdlib.parquet"))
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="at most so many, from all modules")
    options = parser.parse_args()
    if options.limit < 1:
        parser.error("--limit must be at least 1")
    stdlib = Path(sysconfig.get_path("stdlib"))
    rows = spread(entries(stdlib), options.limit)
    if not rows:
        sys.exit(f"{stdlib} holds no Python source with docstrings")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_name(f"{options.output.name}.tmp")
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), unfinished)
    unfinished.replace(options.output)
    print(f"{options.output}: {len(rows):,} docstrings of {len({row.module for row in rows}):,} modules")


if __name__ == "__main__":
    main()
