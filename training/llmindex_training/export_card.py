"""The README.md of an export: what it is, and code that gives its vectors as it stands."""

import json
from collections.abc import Mapping
from typing import Final

from llmindex.encode import embedded, models
from llmindex.encode.encoder import Role
from llmindex.encode.spec import EncoderSpec, Pooling
from llmindex.encode.wrapping import Wrapping
from llmindex_training.export_modules import OWN_POOLING

_SENTENCE_TRANSFORMERS: Final = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}"{trusted})
documents = model.encode_document(["a document", "another one"])
queries = model.encode_query(["a question"])
print(model.similarity(queries, documents))
```
"""

_TRANSFORMERS: Final = """\
```python
{imported}import torch
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{folder}").eval()
document_tokenizer = AutoTokenizer.from_pretrained("{folder}")
query_tokenizer = {query_tokenizer}
{loaded}

@torch.inference_mode()
def embed(texts, tokenizer, gap, before, after):
    batch = tokenizer([gap + text for text in texts], padding=True, truncation=True, return_tensors="pt")
    states = model(**batch{more}).{states}.float()
    mask = batch["attention_mask"]
    length = mask.sum(dim=1, keepdim=True)
{pooling}
{cut}    return torch.nn.functional.normalize(vectors, dim=1)


def embed_documents(texts):
    return embed(texts, document_tokenizer, {document})


def embed_queries(texts):
    return embed(texts, query_tokenizer, {query})
```
"""

_LOADED = 'whitening = safetensors.torch.load_file("{folder}/whitening.safetensors")\n'
_WHITENED = (
    "    vectors = torch.nn.functional.normalize(vectors, dim=1)\n"
    '    vectors = (vectors - whitening["mean"]) @ whitening["matrix"].T\n'
)
_LAST = "states[torch.arange(len(texts)), length[:, 0] - 1]"
_MEAN = "(states * mask[..., None]).sum(dim=1) / length"
_POOLING: Final[Mapping[Pooling, str]] = {
    "last": f"vectors = {_LAST}",
    "eos": f"vectors = {_LAST}  # the tokenizer has put the EOS token there",
    "first": "vectors = states[:, 0]",
    "mean": f"vectors = {_MEAN}",
    "max": 'vectors = states.masked_fill(mask[..., None] == 0, float("-inf")).amax(dim=1)',
    "weighted_mean": (
        "weights = mask * mask.cumsum(dim=1)\n"
        "vectors = (states * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)"
    ),
    "suffix_mean": (
        "closing = torch.where(length > before + after, max(after, 1), 1)\n"
        "weights = (mask.cumsum(dim=1) - (length - closing)).clamp(min=0) * mask\n"
        "vectors = (states * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)"
    ),
    "mean_text": (
        "position = torch.arange(mask.shape[1])\n"
        "text = (position >= before) & (position < length - after)\n"
        "vectors = (states * text[..., None]).sum(dim=1) / text.sum(dim=1, keepdim=True)"
    ),
    "last_mean": (
        f"halves = ({_LAST}, {_MEAN})\n"
        "vectors = torch.cat([torch.nn.functional.normalize(half, dim=1) for half in halves], dim=1)"
    ),
}


def card(spec: EncoderSpec, wrappings: Mapping[Role, Wrapping], to: str) -> str:
    """The text of the README.

    Args:
        spec: the encoder.
        wrappings: what its prompts put around texts.
        to: "sentence-transformers" or "transformers".
    """
    own = to == "sentence-transformers" and spec.pooling == OWN_POOLING
    code = _SENTENCE_TRANSFORMERS if to == "sentence-transformers" else _transformers(spec, wrappings)
    code = code.replace("{trusted}", ", trust_remote_code=True" if own else "")
    tags = "tags:\n- sentence-similarity\n- feature-extraction\n"
    return (
        f"---\nlibrary_name: {to}\npipeline_tag: sentence-similarity\n{tags}---\n\n"
        "# Text embeddings from a decoder-only LLM\n\n"
        f"Exported with `llmindex export`. Vectors have {spec.dim:,} values"
        + (" and unit length.\n\n" if spec.normalize else ".\n\n")
        + f"{code.replace('{folder}', 'this-folder')}\n"
        + f"{_facts(spec)}\n{_note(spec, wrappings, to)}"
    )


def _facts(spec: EncoderSpec) -> str:
    adapted = " with a LoRA adapter merged into it" if spec.adapter else ""
    layer = "the last" if spec.layer == -1 else f"{spec.layer}"
    lines = {
        "Backbone": f"{_name(spec.backbone)}{adapted}",
        "Prompt of documents": f"`{json.dumps(spec.prompt, ensure_ascii=False)}`",
        "Prompt of queries": f"`{json.dumps(spec.query_prompt, ensure_ascii=False)}`",
        "Pooling": f"{spec.pooling}, layer: {layer}, attention: {spec.attention}"
        + (", followed by a linear map (whitening)" if spec.whitened else ""),
        "Length": f"{spec.max_tokens:,} tokens of a text are kept; the prompt comes on top of them",
    }
    return "".join(f"- {name}: {value}\n" for name, value in lines.items())


def _name(backbone: str) -> str:
    """A hub name as it is; of a folder its last part, for where it lay concerns nobody."""
    if backbone.startswith(models.DEFAULT):
        return embedded.NAME
    return backbone if backbone.count("/") < 2 and not backbone.startswith((".", "/")) else backbone.split("/")[-1]


def _note(spec: EncoderSpec, wrappings: Mapping[Role, Wrapping], to: str) -> str:
    same = wrappings["query"] == wrappings["document"]
    if to == "transformers":
        note = "The tokenizers put the prompts around each text by themselves"
    elif same:
        note = "The tokenizer puts the prompt around each text by itself"
    else:
        note = (
            "The chat template puts the prompt around each text by itself, that of queries for `encode_query`, that of "
            "documents otherwise"
        )
    note += ", and only the text is ever cut: do not add a prompt again."
    if to == "sentence-transformers" and spec.pooling == OWN_POOLING:
        note += (
            f" `trust_remote_code` lets it run llmindex_pooling.py beside this file: the pooling {OWN_POOLING}, which "
            "sentence-transformers has no module for."
        )
    if to == "sentence-transformers" and not (same and spec.layer == -1):
        note += " This needs sentence-transformers 6.2 or newer."
    return f"{note}\n"


def _transformers(spec: EncoderSpec, wrappings: Mapping[Role, Wrapping]) -> str:
    same = wrappings["query"] == wrappings["document"]
    last = spec.layer == -1
    filled = {
        "query_tokenizer": "document_tokenizer"
        if same
        else 'AutoTokenizer.from_pretrained("{folder}", subfolder="query")',
        "imported": "import safetensors.torch\n" if spec.whitened else "",
        "more": "" if last else ", output_hidden_states=True",
        "states": "last_hidden_state" if last else f"hidden_states[{spec.layer}]",
        "pooling": "".join(f"    {line}\n" for line in _POOLING[spec.pooling].splitlines()).rstrip(),
        "loaded": _LOADED if spec.whitened else "",
        "cut": (_WHITENED if spec.whitened else "") + f"    vectors = vectors[:, : {spec.dim}]\n",
        "document": _numbers(wrappings["document"]),
        "query": _numbers(wrappings["query"]),
    }
    text = _TRANSFORMERS
    for name, value in filled.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _numbers(wrapping: Wrapping) -> str:
    return f"gap={json.dumps(wrapping.gap)}, before={len(wrapping.before)}, after={len(wrapping.after)}"
