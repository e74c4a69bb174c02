import importlib
import importlib.metadata
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.errors import MissingPackage, UsageError
from llmindex.index import planner
from llmindex.index.planner import check_factory, check_least, faiss_reason, plan, require_faiss


@pytest.mark.parametrize(
    ("count", "factory", "train"),
    [
        (0, "Flat", 0),
        (1, "Flat", 0),
        (49_999, "Flat", 0),
        (50_000, "IVF1024,SQfp16", 32_768),
        (200_000, "IVF2048,SQfp16", 65_536),
        (1_000_000, "IVF4096,SQfp16", 131_072),
        (10_000_000, "IVF16384,SQfp16", 524_288),
    ],
)
def test_the_plan_for_so_many_vectors(count: int, factory: str, train: int) -> None:
    planned = plan(count, 384)
    assert (planned.factory, planned.train_vectors) == (factory, train)


@given(st.integers(50_000, 10**9))
def test_kmeans_always_has_enough_to_train_on(count: int) -> None:
    planned = plan(count, 16)
    nlist = planned.train_vectors // 32
    assert planned.factory == f"IVF{nlist},SQfp16"
    assert nlist & (nlist - 1) == 0
    assert 32 * nlist == planned.train_vectors <= count
    assert 0.5 < nlist / (4 * count**0.5) < 2


@pytest.mark.parametrize(
    ("count", "recall", "megabytes", "factory"),
    [
        (1_000_000, 0.95, 1_200, "IVF4096,SQfp16"),
        (1_000_000, 0.95, 800, "IVF4096,SQ8"),
        (3_000_000, 0.95, 2_000, "IVF8192,SQ8"),
        (3_000_000, 0.99, 3_000, "IVF8192,SQfp16"),
        (20_000, 0.95, 10_000, "Flat"),
        (40_000, 0.95, 350, "Flat"),
        (40_000, 0.95, 305, "IVF1024,SQfp16"),
    ],
)
def test_the_plan_for_so_much_memory(count: int, recall: float, megabytes: int, factory: str) -> None:
    planned = plan(count, 384, recall=recall, memory=megabytes * 10**6)
    assert planned.factory == factory
    assert planned.footprint.peak <= megabytes * 10**6


@settings(deadline=None)
@given(
    count=st.integers(1, 10**8),
    dim=st.integers(1, 4_096),
    recall=st.floats(0.5, 1),
    memory=st.integers(10**8, 10**11),
)
def test_a_plan_keeps_within_memory_or_names_what_would_do(count: int, dim: int, recall: float, memory: int) -> None:
    try:
        planned = plan(count, dim, recall=recall, memory=memory)
    except UsageError as error:
        said = re.fullmatch(
            r"[\d,]+ vectors of length \d+ cannot be indexed for recall [\d.]+ in [\d,]+ MB; "
            r"--memory (\d+)MB would do(?:, or --recall ([\d.]+))?",
            str(error),
        )
        assert said
        enough = int(said[1]) * 10**6
        assert plan(count, dim, recall=recall, memory=enough).footprint.peak <= enough
        if said[2]:
            assert float(said[2]) < recall
            assert plan(count, dim, recall=float(said[2]), memory=memory).footprint.peak <= memory
    else:
        assert planned.footprint.peak <= memory


def test_more_memory_is_never_worse() -> None:
    planned = [plan(1_000_000, 384, memory=megabytes * 10**6) for megabytes in (700, 800, 1_000, 1_100, 2_000)]
    assert [each.footprint.file for each in planned] == sorted(each.footprint.file for each in planned)
    assert planned[-1] == plan(1_000_000, 384)


def test_memory_and_a_factory() -> None:
    with pytest.raises(UsageError, match="--memory chooses the index, and so does --factory: leave one of them out"):
        plan(100, 32, "Flat", memory=10**9)


def test_memory_that_no_index_fits_into() -> None:
    with pytest.raises(
        UsageError, match=r"no index can be built in 50 MB, .*; --memory takes at least \d+MB"
    ) as caught:
        check_least(50 * 10**6)
    said = re.search(r"least (\d+)MB", str(caught.value))
    assert said
    least = int(said[1]) * 10**6
    check_least(least)
    check_least(None)
    assert plan(1, 384, memory=least).factory == "Flat"
    with pytest.raises(UsageError):
        plan(1, 384, memory=least - 10**6)


def test_a_factory_of_ones_own() -> None:
    planned = plan(1_000_000, 64, "OPQ16,IVF4096,PQ16")
    assert (planned.factory, planned.train_vectors) == ("OPQ16,IVF4096,PQ16", 131_072)
    assert plan(500, 64, "HNSW32").train_vectors == 500


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF16,SQfp16", "HNSW16", "PQ8", "IVF16,RaBitQ", "OPQ8,IVF16,PQ8x4fs", "IVF16,PQ8,RFlat", "SQ8"]
)
def test_factories_that_work(factory: str) -> None:
    check_factory(factory, 32)
    assert plan(10_000, 32, factory).factory == factory


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Foo", 'unknown FAISS factory string "Foo": could not parse index string Foo'),
        ("", 'unknown FAISS factory string ""'),
        ("IVF-3,Flat", 'unknown FAISS factory string "IVF-3,Flat": could not parse'),
        ("IVF16,SQ9", 'unknown FAISS factory string "IVF16,SQ9": could not parse code description SQ9'),
        ("IVF4,PQ7", '"IVF4,PQ7": The dimension of the vector .* should be a multiple of the number of subquantizers'),
        ("LSH", 'unknown FAISS factory string "LSH": .*metric == METRIC_L2'),
        ("IDMap,Flat", "leave IDMap out"),
        ("IVF99999999999999999999999,Flat", "asks for too much"),
        ("IVF100000000,Flat", "asks for too much"),
        ("(" * 100_000, "asks for too much"),
        ("IVF5000,Flat", r'"IVF5000,Flat" needs at least 5,000 vectors to train on and there are 1,000'),
        ("PQ4x12", r'"PQ4x12" needs at least 4,096 vectors to train on and there are 1,000'),
        ("PCA8,IVF16,PQ4x11", r"needs at least 2,048 vectors to train on"),
    ],
)
def test_factories_that_do_not_work(factory: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        plan(1_000, 32, factory)
    assert "\n" not in str(caught.value)
    assert "/faiss/" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_plan_checks_the_factory() -> None:
    with pytest.raises(UsageError, match="needs at least 4,096 vectors"):
        plan(100, 32, "IVF4096,Flat")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Error in void f() at /a/b.cpp:12: Error: 'a < b' failed: too\nsmall", "too small"),
        ("Error in void f() at /a/b.cpp:12: Error: 'a < b' failed", "'a < b' failed"),
        ("Error in f() at a.cpp:1: Error: 'x' failed: could not: Error in g() at b.cpp:2: no", "no"),
        ("out of\n memory", "out of memory"),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_is_one_line(text: str, reason: str) -> None:
    assert faiss_reason(RuntimeError(text)) == reason


def pretend(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    """As if of FAISS's packages these were installed."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    require_faiss.cache_clear()


def test_faiss_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackage, match=r"FAISS is not installed: pip install faiss-cpu \(or"):
        require_faiss()


@pytest.mark.parametrize(
    "error", [ImportError("libgomp.so.1: cannot open"), ModuleNotFoundError("no numpy", name="numpy")]
)
def test_faiss_does_not_load(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    pretend(monkeypatch, "faiss-cpu")

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingPackage, match=f"FAISS does not load: {error}; install it again"):
        require_faiss()


def test_faiss_is_installed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "faiss-cpu", "faiss-gpu-cu12")
    message = (
        "faiss-cpu and faiss-gpu-cu12 are both installed and own the same folder: exactly one may be; pip uninstall"
    )
    with pytest.raises(MissingPackage, match=message):
        require_faiss()


def test_planning_does_not_load_faiss() -> None:
    program = "import sys; from llmindex.index.planner import plan; plan(10**6, 64); print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert planner.EXACT_UP_TO == 50_000


@pytest.mark.parametrize("factory", ["HNSW0", "HNSW1,Flat", "IVF0,Flat", "\udcff", "Flät"])
def test_strings_that_would_crash_faiss_never_reach_it(factory: str) -> None:
    with pytest.raises(UsageError, match="unknown FAISS factory string"):
        check_factory(factory, 8)


def test_no_memory_at_all_is_refused_with_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"cannot be indexed for recall 0.95 in 0 MB; --memory \d+MB would do"):
        plan(10**6, 64, memory=0)
