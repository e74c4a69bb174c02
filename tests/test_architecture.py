"""Imports run one way, files stay short, and nothing heavy loads before it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "llmindex"
TRAINING = LIBRARY.parent / "training" / "llmindex_training"
COMMAND_LINE = LIBRARY.parent / "cli"
MAX_LINES = 400

# Folder and files of each layer, from the ground up: a file imports only what stands before it. Enter new files here.
LAYERS = (
    ("", "errors folder records progress metrics"),
    ("corpus", "source lines column_types arrow_tables csv_rows json_lines plain_text formats patterns discovery"),
    ("corpus", "columns checks window corpus __init__"),
    (
        "encode",
        "__init__ spec prompts batching pooling embedded device adapter whitening models settings tokenizer wrapping "
        "pack ragged packing decoder family llama backbone loading encoder helpers",
    ),
    ("store", "files manifest shard pages reader where values writer verify"),
    ("index", "footprint planner neighbors recall rescore filtered faiss_index effort lists building forecast search"),
    ("", "pipeline resuming builder"),
    (
        "cluster",
        "options workers distinct sampling cells lookup neighbors edge_order components boruvka forest spanning_tree",
    ),
    ("cluster", "hdbscan_tree noise reduce plan groups result saved"),
    ("cluster", "central assign membership keywords clustering layout map"),
    ("", "api __init__"),
)
# The training package in the same way; its files stand on all of the library.
TRAINING_LAYERS = (
    "text_columns noise structure instructions translate filters instruct methods pairs_report augment",
    "recipe pairs loss gradcache distributed random_states step run_folder reporting lora",
    "evaluation_data evaluate evaluate_clustering evaluate_retrieval evaluate_sts readings sweep mteb_model",
    "quantize adapter scoring trainer mining",
    "attention attention_plot",
    "exported_pooling export_tokenizer export_modules export_card export_parity export",
)
TRAINING_ORDER = [f"training/{name}" for names in TRAINING_LAYERS for name in names.split()]
ORDER = [f"{folder}/{name}".lstrip("/") for folder, names in LAYERS for name in names.split()]
# What these may not import, though it stands before them.
STRANGERS = {
    "encode/": ("corpus/",),
    "store/": ("corpus/", *(name for name in ORDER if name.startswith("encode/") and name != "encode/spec")),
    "index/": ("corpus/",),
    "cluster/": ("corpus/", "encode/", "pipeline", "resuming", "builder"),
}
FORBIDDEN = {"click", "llmindex_cli", "rich"}
HEAVY = {"duckdb", "faiss", "hdbscan", "matplotlib", "sklearn", "torch", "transformers", "umap"}
# What anything may import at any time.
LIGHT_FILES = (
    *("errors", "records", "progress", "encode/spec", "encode/prompts", "index/footprint", "index/planner", "resuming"),
    "builder",
)
LIGHT = ("corpus/", "store/", *LIGHT_FILES)


def imports(path: Path) -> Iterator[str]:
    """What a file imports, inside functions too: our files as in ORDER, other packages by their names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the module's whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, *parts = name.split(".")
            if top == "llmindex_training":
                yield f"training/{file_of(TRAINING, parts)}"
            else:
                yield file_of(LIBRARY, parts) if top == "llmindex" else top


def file_of(package: Path, parts: list[str]) -> str:
    """The file that a dotted name of a package, or the name of something in it, comes from."""
    for length in range(len(parts), -1, -1):
        for name in ("/".join(parts[:length]), "/".join([*parts[:length], "__init__"])):
            if (package / f"{name}.py").is_file():
                return name
    raise AssertionError(f"no such module: {package.name}.{'.'.join(parts)}")


FILES = [
    path.relative_to(LIBRARY).with_suffix("").as_posix()
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name != "__init__.py" or any(imports(path))
]


def test_every_file_has_its_place() -> None:
    assert sorted(ORDER) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    before = ORDER[: ORDER.index(name)]
    strangers = next((whom for who, whom in STRANGERS.items() if name.startswith(who)), ())
    for used in imports(LIBRARY / f"{name}.py"):
        assert used not in FORBIDDEN
        assert not used.startswith("training/")
        if used in FILES:
            assert used in before
            assert not used.startswith(strangers)


def test_every_file_of_the_training_has_its_place() -> None:
    files = [f"training/{path.stem}" for path in TRAINING.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(TRAINING_ORDER) == sorted(files)


@pytest.mark.parametrize("name", TRAINING_ORDER)
def test_imports_of_the_training_run_one_way(name: str) -> None:
    before = TRAINING_ORDER[: TRAINING_ORDER.index(name)]
    for used in imports(TRAINING.parent / f"{name.replace('training/', 'llmindex_training/')}.py"):
        assert used not in FORBIDDEN
        assert used in before or not used.startswith("training/")


def test_files_are_short() -> None:
    for path in [*LIBRARY.rglob("*.py"), *TRAINING.rglob("*.py"), *COMMAND_LINE.rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES, path


@pytest.mark.parametrize("what", ["llmindex", "llmindex_cli.main", "light modules"])
def test_an_import_loads_nothing_heavy(what: str) -> None:
    light = [f"llmindex.{name.removesuffix('/__init__').replace('/', '.')}" for name in FILES if name.startswith(LIGHT)]
    names = light if what == "light modules" else [what]
    program = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert set(names) <= set(loaded)
    assert not HEAVY & set(loaded)
