"""What a resident searcher is a stand-in for: this llmindex and interpreter, these settings, this very index."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import llmindex
import llmindex_cli

# Variables that decide which model is found, where it runs and on how many threads.
_SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HOME",
    "LLMINDEX_CACHE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "XDG_CACHE_HOME",
)


def identity() -> list[Any]:
    """What two processes share only if one may answer in the other's place, as JSON values.

    Not a hash of it: importing hashlib takes a client longer than sending 15 kB.

    Raises:
        OSError: llmindex is being replaced at this moment.
    """
    ours = [Path(package.__file__).parent for package in (llmindex, llmindex_cli) if package.__file__]
    # Whatever pip installs or removes, torch or transformers for one, changes the folder of the packages. click is in
    # it, and is not imported for that: it takes as long as all else here.
    click = PathFinder.find_spec("click")
    packages = Path(str(click and click.origin)).parents[1]
    return [
        llmindex.__version__,
        sys.version,
        sys.prefix,
        [os.environ.get(name) for name in _SETTINGS],
        packages.stat().st_mtime_ns,
        *(_files(folder) for folder in ours),
    ]


def index_identity(manifest: os.stat_result) -> list[int]:
    """What tells an index from any other at the same path, and from itself before a change, as JSON values.

    Processes that reach each other need not see the same files: containers may share no more than a runtime folder.

    Args:
        manifest: the status of its manifest, which whatever changes the index replaces.
    """
    return [manifest.st_dev, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns]


def _files(folder: Path) -> list[list[str | int]]:
    """Path, size and time of each file of a package, in order."""
    found: list[list[str | int]] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for path in (f"{root}{os.sep}{name}" for name in sorted(names)):
            of_file = _stat(path)
            found.append([path, of_file.st_size, of_file.st_mtime_ns])
    return found


def _stat(path: str) -> os.stat_result:
    # A Path for each of a hundred files costs more than the rest.
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return os.lstat(path)  # a link that leads nowhere, as editors leave one beside a file that is being changed
