"""Tokenizers that wrap a text in the encoder's prompt all by themselves.

sentence-transformers knows prompts that stand before a text, and cuts prompt and text together; an encoder's prompt
goes on behind the text, and only the text is ever cut. Files that every user of ``tokenizers`` reads can say that:

* One prompt: a post-processor puts the prompt's token ids around those of the text, after the text was cut.
* Another prompt for queries: a chat template, of which sentence-transformers says for which role it asks, and whose end
  it restores where a text was cut. A character that no text has parts the prompt from the text, and is removed before
  words are formed, so that no token reaches from one into the other.
"""

import json
from typing import Any

from llmindex.encode import prompts
from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.tokenizer import continuing
from llmindex.encode.wrapping import Wrapping
from llmindex.errors import ModelError

# Of Unicode's private use area: it has no meaning to be lost.
SEAM = "\ue0fe"


def templated(source: Any, encoder: Encoder, role: Role) -> Any:  # noqa: ANN401 - tokenizers of transformers
    """A tokenizer that gives texts of a role, the gap before each, the ids that the encoder gives them."""
    from tokenizers import processors

    wrapping = encoder.wrapping(role)
    backend = _copy_of(source)
    if not wrapping.begins:
        backend = continuing(backend)
    pieces = {"<before>": wrapping.before, "<after>": wrapping.after}
    order = ["<before>", "$A", "<after>"]
    backend.post_processor = processors.TemplateProcessing(
        single=[piece for piece in order if piece == "$A" or pieces[piece]],
        pair=None,
        special_tokens=[
            {"id": name, "ids": list(ids), "tokens": [backend.id_to_token(id_) for id_ in ids]}
            for name, ids in pieces.items()
            if ids
        ],
    )
    return _finished(source, backend, wrapping.tokens + encoder.spec.max_tokens)


def conversational(source: Any, encoder: Encoder) -> Any:  # noqa: ANN401
    """A tokenizer whose chat template wraps a message as the task that it is told asks for, else as a document."""
    from tokenizers import pre_tokenizers, processors

    backend = _copy_of(source)
    parting = pre_tokenizers.Split(SEAM, behavior="removed")
    rest = backend.pre_tokenizer
    backend.pre_tokenizer = parting if rest is None else pre_tokenizers.Sequence([parting, rest])
    backend.post_processor = processors.TemplateProcessing(single=["$A"], pair=None, special_tokens=[])
    wrapping = encoder.wrapping("document")
    made = _finished(source, backend, wrapping.tokens + encoder.spec.max_tokens)
    start, end = _ends(source, encoder, wrapping)
    query, document = (_message(template, start, end) for template in (encoder.spec.query_prompt, encoder.spec.prompt))
    made.chat_template = (
        "{%- if messages | length != 1 -%}"
        "{{- raise_exception('this encoder has prompts of its own and takes no other') -}}"
        "{%- endif -%}"
        "{%- if task is defined and task == 'query' -%}" + query + "{%- else -%}" + document + "{%- endif -%}"
    )
    return made


def _message(template: str, start: str, end: str) -> str:
    parts = prompts.split(template)
    before, after = start + parts.prefix + SEAM + parts.gap, SEAM + parts.suffix + end
    return f"{{{{- {_literal(before)} + messages[0]['content'] + {_literal(after)} -}}}}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _ends(source: Any, encoder: Encoder, wrapping: Wrapping) -> tuple[str, str]:  # noqa: ANN401
    """BOS and EOS as they are written, where the encoder puts them."""
    bos = source.bos_token if wrapping.before[:1] == [source.bos_token_id] else ""
    return bos or "", source.eos_token if encoder.spec.pooling == "eos" else ""


def _copy_of(source: Any) -> Any:  # noqa: ANN401
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(source.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _finished(source: Any, backend: Any, most: int) -> Any:  # noqa: ANN401
    from transformers import PreTrainedTokenizerFast

    # Which token pads does not matter, for the mask hides it, but sentence-transformers needs one.
    pad = source.pad_token or source.eos_token or backend.id_to_token(0)
    if pad is None:
        raise ModelError("the model's tokenizer has no token to pad with")
    named = {"bos_token": source.bos_token, "eos_token": source.eos_token, "unk_token": source.unk_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        model_max_length=most,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **{name: token for name, token in named.items() if token is not None},
    )
