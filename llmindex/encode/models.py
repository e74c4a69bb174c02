"""From the name of a model to a local folder of safetensors, and to that folder's identity.

``default`` is the embedded backbone with the adapter that comes with the package, ``default-base`` that backbone
alone. A path is a local folder; anything else is a name on the Hugging Face hub, of which only configuration, tokenizer
and safetensors are fetched, never pickles, and Python files only where the caller trusts them. The identity is what the
manifest keeps, so that a changed model is noticed before it answers a query. An adapter, or the encoder.json of an
encoder, can be named in place of a model: it leads to its backbone.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llmindex.encode import adapter, embedded
from llmindex.encode.adapter import Adapter
from llmindex.encode.spec import EncoderSpec
from llmindex.errors import AdapterError, ModelError, unreadable

DEFAULT = "default"
BASE = "default-base"
EXPORT_RECORD = "llmindex.json"
"""Lies in a folder that `llmindex export` wrote."""

_SHIPPED = Path(__file__).parent / "default_adapter"

_FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What a file of these names says does not change a vector, or changes from version to version of its writer.
_VOLATILE_CONFIG = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
_TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOLATILE_TOKENIZER_CONFIG = {
    *("name_or_path", "tokenizer_file", "special_tokens_map_file", "transformers_version", "backend"),
    *("is_local", "local_files_only", "chat_template", "processor_class", "model_input_names"),
    *("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces"),
}
_SAMPLE_BYTES = 4096
# As safetensors itself bounds them.
_LARGEST_HEADER = 100_000_000
_MOST_LAYERS = 10_000
_SHOWN = 200
_SAYS_ITSELF = "says itself which backbone it was made for"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A backbone on this machine.

    Attributes:
        folder: holds config.json, tokenizer and safetensors.
        sha256: identity of what the folder computes, wherever it lies.
    """

    folder: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a name led to.

    Attributes:
        backbone: the backbone's name, valid from any working directory.
        revision: of a hub backbone.
        local: the backbone on this machine.
        adapter: what is to be merged into it, or None.
        spec: the encoder that was named, or that the adapter was trained as; None where nothing says.
    """

    backbone: str
    revision: str | None
    local: LocalModel
    adapter: Adapter | None = None
    spec: EncoderSpec | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A line for the list of models at hand.

    Attributes:
        name: what ``--model`` takes.
        installed: whether it can be used without a download.
        where: its folder, or how to get it.
        note: what it is.
    """

    name: str
    installed: bool
    where: str
    note: str


def find(
    name: str, revision: str | None = None, adapter_folder: str | None = None, *, trust_remote_code: bool = False
) -> Found:
    """What ``--model`` and ``--adapter`` name: a backbone, an adapter on its own backbone or on another, an encoder.

    Args:
        name: "default", a hub name, a model folder, an adapter's folder, or an encoder.json.
        revision: branch, tag or commit of a hub model.
        adapter_folder: an adapter for the backbone of that name.
        trust_remote_code: fetch the Python files of a hub model as well.

    Raises:
        ModelError: the backbone cannot be found or fetched.
        AdapterError: the adapter cannot be read, or was trained on another backbone.
    """
    if adapter_folder is None:
        path = adapter_path(name) if name == DEFAULT else Path(name)
        if path.suffix == ".json" and path.is_file():
            return _of_spec(path, revision, trust_remote_code)
        if adapter.is_adapter(path):
            return _of_adapter(path.resolve(), None, revision, trust_remote_code)
        local = locate(name, revision, trust_remote_code=trust_remote_code)
        return Found(_lasting_name(name, local), revision, local)
    folder = adapter_path(adapter_folder).resolve()
    if not adapter.is_adapter(folder):
        raise AdapterError(f'no adapter "{adapter_folder}": not a folder with {adapter.CONFIG_NAME}')
    return _of_adapter(folder, name, revision, trust_remote_code)


def adapter_path(name: str) -> Path:
    """Folder of an adapter: "default" is the one that comes with the package."""
    return _SHIPPED if name == DEFAULT else Path(name)


def adapter_name(found: Adapter) -> str:
    """What :func:`adapter_path` takes, valid from any working directory and in any environment."""
    return DEFAULT if found.folder == _SHIPPED.resolve() else str(found.folder)


def _of_spec(file: Path, revision: str | None, trust_remote_code: bool) -> Found:
    spec = adapter.read_spec(file)
    _check_unneeded(revision, file, _SAYS_ITSELF)
    found = find(spec.backbone, spec.revision, spec.adapter, trust_remote_code=trust_remote_code)
    _check_same(found.local, found.adapter, spec, file)
    return replace(found, spec=spec)


def _of_adapter(folder: Path, base: str | None, revision: str | None, trust_remote_code: bool) -> Found:
    """An adapter on a backbone, by default on the one that it was trained on."""
    made = adapter.read(folder)
    trained_as = folder / adapter.SPEC_NAME
    trained = adapter.read_spec(trained_as) if trained_as.is_file() else None
    if trained is None and (folder / adapter.WHITENING_NAME).is_file():
        raise AdapterError(
            f"{trained_as} is gone: it says with what prompt, pooling and whitening the adapter beside it was trained; "
            "put it back, or train anew"
        )
    if base is None and trained is not None:
        _check_unneeded(revision, folder, _SAYS_ITSELF)
        base, revision = trained.backbone, trained.revision
    elif base is None:
        base = made.base
    if not base:
        raise AdapterError(
            f'adapter "{folder}" does not say what it was trained on: write that into its {adapter.CONFIG_NAME}, as '
            "base_model_name_or_path"
        )
    local = locate(base, revision, trust_remote_code=trust_remote_code)
    if trained is not None:
        _check_same(local, made, trained, trained_as)
    return Found(_lasting_name(base, local), revision, local, made, trained)


def _check_same(local: LocalModel, made: Adapter | None, spec: EncoderSpec, file: str | Path) -> None:
    """Refuse an encoder whose backbone or adapter is not the one that its encoder.json was written for."""
    if local.sha256 != spec.backbone_sha256:
        raise AdapterError(
            f'{file} was made for another backbone (fingerprint {spec.backbone_sha256[:16]}) than "{local.folder}" '
            f"({local.sha256[:16]})"
        )
    if (made.sha256 if made else None) != spec.adapter_sha256:
        raise AdapterError(
            f"{file} was written for other adapter weights than those there: they are damaged or mixed up"
        )


def _lasting_name(name: str, local: LocalModel) -> str:
    """A local folder by its absolute path, so that an index can be used from any working directory."""
    return str(local.folder) if Path(name).is_dir() and name not in (DEFAULT, BASE) else name


def locate(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> LocalModel:
    """Find a backbone by name, fetching it from the hub where it is a hub name.

    Raises:
        ModelError: it cannot be found or fetched, has no safetensors, or is an export for other tools.
        StorageError: the cache folder cannot be written.
    """
    if not name:
        raise ModelError(f'the model\'s name is empty; the embedded one is "{DEFAULT}"')
    if name in (DEFAULT, BASE):
        _check_unneeded(revision, name, "comes with this package")
        folder = embedded.folder()
        return LocalModel(folder, embedded.identity(folder))
    if Path(name).is_dir():
        folder = Path(name).resolve()
        _check_unneeded(revision, name, "is a folder")
    elif _HUB_NAME.fullmatch(name) and not Path(name).exists():
        folder = _fetch(name, revision, trust_remote_code)
    else:
        raise _unknown(name, f'neither "{DEFAULT}", nor a folder here, nor of the form of a hub name (owner/name)')
    if (folder / EXPORT_RECORD).is_file():
        # Its prompts, pooling and whitening are written for the other tool; as a backbone it would do without them.
        raise ModelError(
            f'"{name}" is an export for other tools ({EXPORT_RECORD}), not a backbone: name the adapter, encoder.json '
            "or model that it was made of"
        )
    return LocalModel(folder, _identity(folder))


def _check_unneeded(revision: str | None, name: str | Path, why: str) -> None:
    if revision is not None:
        raise ModelError(f'--revision "{revision}" is for models of the hub; "{name}" {why}')


def available() -> list[ModelInfo]:
    """The embedded default and the hub models that this machine has cached."""
    gguf = embedded.find_gguf()
    where = str(gguf) if gguf else embedded.INSTALL
    infos = [
        ModelInfo(DEFAULT, gguf is not None, where, f"{embedded.NAME} for embedding (Apache-2.0)"),
        ModelInfo(BASE, gguf is not None, where, f"{embedded.NAME} as it is"),
    ]
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return infos
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        names = {file.file_name for revision in repo.revisions for file in revision.files}
        if repo.repo_type == "model" and any(name.endswith(".safetensors") for name in names):
            note = f"from the hub, {repo.size_on_disk / 1e9:.1f} GB"
            infos.append(ModelInfo(repo.repo_id, True, str(repo.repo_path), note))
    return infos


def _fetch(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = _FETCHED + (["*.py"] if trust_remote_code else [])
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelError(
            f'model "{name}" is gated: accept its terms at https://huggingface.co/{name}, then log in with '
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f'model "{name}" has no revision "{revision}"') from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _unknown(name, "neither a folder here nor on the hub (private ones need HF_TOKEN)") from error
    except LocalEntryNotFoundError as error:
        why = "neither a folder here nor in the hub's cache, and the hub cannot be reached (offline?)"
        raise _unknown(name, why) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f'cannot fetch model "{name}": {one_line(error)}') from error


def _unknown(name: str, why: str) -> ModelError:
    return ModelError(f'no model "{name}": {why}; `llmindex models` lists what is at hand')


def _identity(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer, how that is set up, and a sample of every tensor.

    Reading all of a 14 GB model at each start would take as long as loading it; the first bytes of each tensor change
    with any training step, and sizes, names and shapes are compared whole.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(f'"{folder}" is not a model folder: it has no config.json{_what_was_meant(folder)}')
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f'model "{folder}" has no safetensors weights (other formats can run code and are not read)')
    try:
        _check_files(folder)
        config = _read_object(config_file)
        _check_config(config)
        digest = hashlib.sha256(_lasting(config, _VOLATILE_CONFIG))
        for piece in chain(_tokenizer_parts(folder), *map(_tensor_samples, weights)):
            digest.update(piece)
    except OSError as error:  # a disk that fails while it is read does not say of which file
        raise ModelError(unreadable(error.filename or folder, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f'model "{folder}" is damaged: {one_line(error)}') from error
    return digest.hexdigest()


def _lasting(config: dict[str, Any], volatile: set[str]) -> bytes:
    return json.dumps({key: value for key, value in config.items() if key not in volatile}, sort_keys=True).encode()


def _tokenizer_parts(folder: Path) -> Iterator[bytes]:
    """What decides into which tokens a text falls: the tokenizer's files, and how it is set up."""
    for file in map(folder.joinpath, _TOKENIZER_FILES):
        if file.is_file():
            yield file.read_bytes()
    for file in map(folder.joinpath, _TOKENIZER_CONFIGS):
        if file.is_file():
            yield _lasting(_read_object(file), _VOLATILE_TOKENIZER_CONFIG)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return values


def _check_files(folder: Path) -> None:
    """Refuse a pipe, which would be waited for, and a device, which may have no end."""
    for path in (path for kind in _FETCHED for path in folder.glob(kind)):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is not a regular file")


def _check_config(config: dict[str, Any]) -> None:
    """Refuse layers without end: they are made first, and their weights looked for then."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        layers = part.get("num_hidden_layers")
        if isinstance(layers, int) and layers > _MOST_LAYERS:
            raise ValueError(f"config.json asks for {layers} layers")


def _what_was_meant(folder: Path) -> str:
    """What a folder without a config.json is instead, where that can be told; else empty."""
    if (folder / adapter.WEIGHTS_NAME).is_file():
        return f"; it is an adapter's that has lost its {adapter.CONFIG_NAME}"
    if adapter.is_adapter(folder / "adapter"):
        return f'; name the adapter in it, "{folder / "adapter"}"'
    return ""


def _tensor_samples(file: Path) -> Iterator[bytes]:
    """Header of a safetensors file, then the first bytes of each of its tensors."""
    with file.open("rb") as handle:
        start = handle.read(8)
        header_size = int.from_bytes(start, "little")
        if len(start) < 8 or header_size > min(file.stat().st_size, _LARGEST_HEADER):
            raise ValueError(f"{file.name} is cut short")
        header = json.loads(handle.read(header_size))
        header.pop("__metadata__", None)
        yield json.dumps(header, sort_keys=True).encode()
        for _, entry in sorted(header.items()):
            start, end = entry["data_offsets"]
            handle.seek(8 + header_size + start)
            wanted = min(_SAMPLE_BYTES, end - start)
            if len(piece := handle.read(wanted)) < wanted:
                raise ValueError(f"{file.name} is cut short")
            yield piece


def one_line(error: BaseException) -> str:
    """What an error of another library says, short enough to be part of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
