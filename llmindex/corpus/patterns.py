"""What a pattern with wildcards stands for: as glob of the standard library has it, without going in circles.

There ``**`` follows every link to a folder, so that two that lead to a folder above them never come to an end.
"""

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


def is_pattern(source: str) -> bool:
    """Whether there is a wildcard in it."""
    return glob.has_magic(source)


def before_wildcards(pattern: Path) -> Path:
    """The folder that all matches are below."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def expand(pattern: str) -> list[Path]:
    """The files and folders that match, sorted; of a final ``**`` only folders, below which all the others are."""
    return [Path(match) for match in sorted(set(_expand(pattern)))]


def _expand(pattern: str) -> Iterator[str]:
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.glob(pattern)  # noqa: PTH207  (pathlib takes no absolute patterns)
        return
    place = parts.index("**")
    head, tail = "".join(f"{part}/" for part in parts[:place]), "/".join(parts[place + 1 :])
    for top in glob.glob(head) if head else [""]:  # noqa: PTH207
        for folder in _folders(top):
            yield from _expand(glob.escape(folder) + tail) if tail else [folder]


def _folders(top: str) -> Iterator[str]:
    """A folder and those below it, hidden ones left out; each real folder once. ``""`` is the one we are in."""
    entered = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            found = os.stat(folder or ".")  # noqa: PTH116  (of strings, since glob makes more of them)
            with os.scandir(folder or ".") as entries:
                inside = sorted(entry.name for entry in entries if _is_visible_folder(entry))
        except OSError:  # passed over, as glob does with what it may not read
            continue
        if (found.st_dev, found.st_ino) not in entered:
            entered.add((found.st_dev, found.st_ino))
            yield folder
            waiting += [f"{folder}{name}/" for name in reversed(inside)]


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry.path).is_dir())
