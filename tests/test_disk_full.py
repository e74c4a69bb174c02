"""A disk that refuses takes nothing from a store: what is committed is safe, and the writer can go on."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from llmindex.errors import StorageError
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import CORPUS, append, as_stored, make_documents, make_encoder, make_vectors

FILLS_THE_DISK = """
    import sys
    from llmindex.store.writer import VectorWriter
    from llmindex.errors import StorageError
    from tests.samples import append, make_documents, make_vectors

    with VectorWriter.open(sys.argv[1]) as writer:
        {before}
        try:
            for start in range(200, 100_000, 200):
                append(writer, make_documents(start, start + 200), make_vectors(200, 64))
                writer.checkpoint()
        except StorageError as error:
            print(error)
"""


def fill(index: Path, before: str = "pass") -> str:
    """Append in another process until the disk refuses; what it said."""
    with VectorWriter.create(index, make_encoder(64), CORPUS) as w:
        append(w, make_documents(0, 200), make_vectors(200, 64))
        w.checkpoint()
    program = dedent(FILLS_THE_DISK).format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", program, str(index)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


def check_refused(index: Path, message: str, reason: str, remedy: str) -> None:
    """Nothing is lost, nothing is left over, and the writer can go on."""
    store = VectorStore.open(index)
    assert store.count >= 200
    safe = f"{store.count:,} documents are committed and safe"
    assert message.startswith(f"cannot write {index}/")
    assert message.endswith(f": {reason}; {safe}; {remedy} and run the same command again\n")
    assert sorted(path.name for path in index.rglob("*") if path.is_file()) == sorted(
        ["lock", "manifest.json", *(Path(shard.file).name for shard in store.manifest.shards)]
    )
    assert verify(index).problems == ()
    np.testing.assert_array_equal(store.take_vectors(np.arange(200)), as_stored(make_vectors(200, 64), "float16"))


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    index = tmp_path / "index"
    check_refused(index, fill(index, limit), "File too large", "make the folder writable")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    index = small_disk / "index"
    check_refused(index, fill(index), "No space left on device", "free space")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*/file/index: Not a directory"):
        VectorWriter.create(tmp_path / "file" / "index", make_encoder(4), CORPUS)
