"""The names in an index's folder that llmindex gives, and by them whether a folder is an index at all."""

import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

MANIFEST_NAME: Final = "manifest.json"
LOCK_NAME: Final = "lock"
CLUSTERS: Final = "clusters"

# What every manifest has, of older and newer formats, too; web apps and others have a file of its name without.
_ALWAYS_THERE = frozenset({"format_version", "encoder", "corpus", "shards"})

SHARD_FILE = re.compile(r"vectors/part-\d{5,9}(\.partial-\d{5,9})?\.parquet")
_WRITTEN_INDEX_FILE = re.compile(r"faiss/(written|[0-9a-f]{16}-[0-9a-f]{16})\.faiss")


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, damaged or not: its manifest says so, or else what lies beside that."""
    try:
        with open_regular(folder / MANIFEST_NAME) as file:
            values = json.load(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except (OSError, ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and values.keys() >= _ALWAYS_THERE:
        return True
    shards = (path for path in (folder / "vectors").glob("*") if is_given(f"vectors/{path.name}"))
    begun = all((folder / name).is_dir() for name in ("vectors", "faiss")) and (folder / LOCK_NAME).is_file()
    return begun or any(shards)


def open_regular(path: Path) -> BufferedReader:
    """Open a file to be read; a device or a pipe in its place may have no end, and is none.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def is_given(file: str) -> bool:
    """Whether a path below an index folder has a name that llmindex gives, to a shard or a FAISS index."""
    return bool(SHARD_FILE.fullmatch(file) or _WRITTEN_INDEX_FILE.fullmatch(file))
