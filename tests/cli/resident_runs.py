"""How the tests run a resident searcher: each in a runtime folder of its own, and ended when they are done."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmindex_cli.resident.folder import SOCKET

from .conftest import Ended, start

PATIENCE = 120.0


@dataclass(frozen=True)
class Resident:
    """A runtime folder, and the commands that use it."""

    runtime: Path

    @property
    def env(self) -> dict[str, str]:
        """The variables of a command that may use the resident searcher."""
        return {"XDG_RUNTIME_DIR": str(self.runtime), "LLMINDEX_NO_DAEMON": "0"}

    @property
    def socket(self) -> Path:
        """Where the searcher listens."""
        return self.runtime / "llmindex" / SOCKET

    def run(self, *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None, **env: str) -> Ended:
        """Run a command line to its end."""
        running = start(*arguments, cwd=cwd or self.runtime, env=self.env | env, stdin=-1)
        out, err = running.communicate(stdin, timeout=PATIENCE)
        return Ended(running.returncode, out.decode(), err.decode())

    def pids(self) -> list[int]:
        """All searchers of this folder that are alive."""
        return [int(process.name) for process in Path("/proc").iterdir() if self._is_ours(process)]

    def _is_ours(self, process: Path) -> bool:
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
            dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return False
        ours = f"XDG_RUNTIME_DIR={self.runtime}".encode() in variables
        return b"llmindex_cli.resident.server" in words and ours and not dead

    def end(self) -> None:
        """Leave nothing behind."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.pids())


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for something that will happen; the limit is only there against hanging."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
