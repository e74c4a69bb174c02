"""A file is there whole or not at all, whoever writes it at the same time."""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.errors import IndexLocked, StorageError, UsageError
from llmindex.store import files
from llmindex.store.files import check_folder, check_writable, lock, make_folder, replacing


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with replacing(path) as temporary:
        temporary.write_text("first")
        with (
            pytest.raises(StorageError, match="out is being written by another process; wait for it or stop it"),
            replacing(path),
        ):
            raise AssertionError("both write")
        assert temporary.read_text() == "first"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").write_text("a part")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("all")
    assert (tmp_path / "out").read_text() == "all"


@pytest.mark.parametrize("other_waits", [False, True])
def test_a_lock_that_is_removed_while_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_waits: bool
) -> None:
    others: list[BinaryIO] = []

    def removed(file: BinaryIO, operation: int) -> None:
        monkeypatch.undo()
        (tmp_path / "lock").unlink()
        if other_waits:
            others.append(lock(tmp_path))
        fcntl.flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed)
    if other_waits:
        with pytest.raises(IndexLocked, match=f"is being written by process {os.getpid()}; wait for it or stop it$"):
            lock(tmp_path)
        others.pop().close()
    with lock(tmp_path), pytest.raises(IndexLocked):
        lock(tmp_path)


def test_whether_a_file_can_be_written_is_seen_without_writing_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("kept")
    check_writable(path)
    assert path.read_text() == "kept"
    with replacing(path) as temporary:
        temporary.write_text("more")
        with pytest.raises(StorageError, match="out is being written by another process"):
            check_writable(path)
        assert temporary.read_text() == "more"
    with pytest.raises(StorageError, match="out/in: Not a directory"):
        check_writable(path / "in")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_refused_before_and_leaves_none_above_it(tmp_path: Path) -> None:
    check_folder(tmp_path / "a/b/c")
    check_folder(tmp_path)
    (tmp_path / "file").touch()
    for folder, why in (("c" * 300, "File name too long"), ("file/c", "Not a directory")):
        for refusing in (check_folder, make_folder):
            with pytest.raises(StorageError, match=rf"^cannot write .*{why}$"):
                refusing(tmp_path / folder)
    with pytest.raises(UsageError, match="file is a file; choose another path"):
        check_folder(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    make_folder(tmp_path / "a")
    with pytest.raises(StorageError, match="File name too long"):
        make_folder(tmp_path / f"a/b/{'c' * 300}")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_is_made_durably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure could take away the folder, and with it whatever had been synced in it."""
    (tmp_path / "there").mkdir()
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    make_folder(tmp_path / "there/a/b")
    assert sorted(synced) == [tmp_path / "there", tmp_path / "there/a"]
    make_folder(tmp_path / "there/a/b")
    assert len(synced) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.EIO])
def test_a_folder_that_may_not_be_read_or_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """What was written there is there; it cannot be waited for."""
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="error") if number == errno.EIO else nullcontext():
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("all")
    assert (tmp_path / "out").read_text() == "all"


def test_no_link_is_followed_to_be_written(tmp_path: Path) -> None:
    """In a stranger's folder it may lead to any file of the user's, or to where none should be made."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".out.tmp").symlink_to(precious)
    (tmp_path / ".new.tmp").symlink_to(tmp_path / "made")
    (tmp_path / "lock").symlink_to(precious)
    with pytest.raises(
        StorageError, match=r"\.out\.tmp is a link, and what it leads to would be written over: remove it"
    ):
        check_writable(tmp_path / "out")
    with pytest.raises(StorageError, match=r"\.new\.tmp is a link"), replacing(tmp_path / "new"):
        raise AssertionError("it was lent")
    with pytest.raises(StorageError, match="lock is a link"):
        lock(tmp_path)
    assert precious.read_text() == "mine"
    assert not (tmp_path / "made").exists()


def test_a_file_of_another_name_is_not_written_over(tmp_path: Path) -> None:
    """A hard link is what a stranger may be able to make where a symbolic one is not followed."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".out.tmp").hardlink_to(precious)
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("all")
    assert precious.read_text() == "mine"
    assert (tmp_path / "out").read_text() == "all"


@pytest.mark.parametrize(("make", "why"), [(os.mkdir, "Is a directory"), (os.mkfifo, "No such device or address")])
def test_what_is_in_the_way_is_named(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    make(tmp_path / ".out.tmp")
    with pytest.raises(StorageError, match=rf"cannot write .*/out: {why}; .*/\.out\.tmp is in the way: remove it$"):
        check_writable(tmp_path / "out")


def test_nobody_is_told_to_remove_what_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what a killed writer left in a folder that may not be written to any more."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / ".out.tmp").touch()
    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(StorageError, match=r"cannot write .*/out: Permission denied$"):
        check_writable(tmp_path / "out")
    monkeypatch.undo()


def test_a_disk_that_becomes_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with (
        pytest.raises(StorageError, match=r"cannot write .*/out: Read-only file system$"),
        replacing(tmp_path / "out"),
    ):
        pass
    monkeypatch.undo()


def test_nobody_waits_for_a_pipe_to_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StorageError, match=r"cannot write .*lock: No such device"):
        lock(tmp_path)


@given(st.lists(st.integers(1, 2_000), min_size=2, max_size=6))
def test_many_writers_never_mix(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("files") / "out"
    written: list[bytes] = []

    def write(content: bytes) -> None:
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                for start in range(0, len(content), 100):
                    file.write(content[start : start + 100])
                    file.flush()
            written.append(content)
        except StorageError:
            pass

    threads = [threading.Thread(target=write, args=(bytes([65 + i]) * size,)) for i, size in enumerate(sizes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in written
    assert list(path.parent.iterdir()) == [path]
