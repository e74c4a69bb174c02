"""How long does a search from the shell take, with and without the resident searcher?

In each round, one after the other: ``llmindex --version``, which is Python and click alone; a search in a process of
its own; the search that finds no resident searcher and starts one; and a search that finds it. Wall and CPU seconds,
the searcher's included; medians. Linux, as it reads /proc.

    make demo
    python benchmarks/search_latency.py [INDEX] [--rounds 5]                  # → results/search_latency.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "search_latency.json"
QUERY = "open a web page in the browser"
KINDS = ("version", "cold", "first", "second")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command cost, in seconds.

    Attributes:
        wall: from its start to its end.
        client: CPU of the command itself and of what it waited for.
        searcher: CPU of the resident searcher meanwhile.
    """

    wall: float
    client: float
    searcher: float = 0.0


def run(arguments: list[str], env: Mapping[str, str]) -> tuple[Cost, str]:
    """Run a command line; what it cost, and what it wrote."""
    start, before = time.perf_counter(), os.times()
    command = [str(Path(sys.executable).with_name("llmindex")), *arguments]
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.perf_counter() - start, os.times()
    client = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, client), out


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(index: str, runtime: str) -> dict[str, Cost]:
    """One round."""
    env = {name: value for name, value in os.environ.items() if name != "LLMINDEX_NO_DAEMON"}
    env["XDG_RUNTIME_DIR"] = runtime
    search = ["search", QUERY, "-i", index, "-k", "3"]
    about_version, _ = run(["--version"], env)
    cold, expected = run([*search, "--no-daemon"], env)
    try:
        first, answer = run(search, env)
        assert answer == expected
        pid = json.loads(run(["warm", "-i", index, "--json"], env)[1])["pid"]
        started = cpu_seconds(pid)
        second, answer = run(search, env)
        assert answer == expected
        meanwhile = cpu_seconds(pid) - started
    finally:
        run(["warm", "--stop"], env)
    return {
        "version": about_version,
        "cold": cold,
        "first": Cost(first.wall, first.client, started),
        "second": Cost(second.wall, second.client, meanwhile),
    }


def main() -> None:
    """Measure, print a table and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", nargs="?", default="demo/stdlib.llmindex")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as runtime:
        rounds = [measure(asked.index, runtime) for _ in range(asked.rounds)]
    medians = {}
    print(f"{'':8}{'wall':>8}{'client CPU':>12}{'searcher CPU':>14}")
    for kind in KINDS:
        costs = [of_round[kind] for of_round in rounds]
        seconds = {name: statistics.median(getattr(cost, name) for cost in costs) for name in Cost.__slots__}
        medians[kind] = {name: round(value, 3) for name, value in seconds.items()}
        print(f"{kind:8}{seconds['wall']:8.3f}{seconds['client']:12.3f}{seconds['searcher']:14.3f}")
    machine = {"platform": platform.platform(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    versions = {name: version(name) for name in ("torch", "transformers", "faiss-cpu", "pyarrow", "click")}
    figures = {
        "machine": machine | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"python": platform.python_version(), **versions},
        "rounds": asked.rounds,
        "median_seconds": medians,
    }
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
