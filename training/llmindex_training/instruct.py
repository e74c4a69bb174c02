"""Positives by an instruct LLM: the five published instructions, sampled in batches.

Any causal LM with a chat template will do. Prompts are padded on the left, so that every row goes on where its own
prompt ends, and sorted by length, so that little padding is computed. Each batch is sampled from a seed of its own,
made of the run's seed and the batch's rows: a resumed run writes what an uninterrupted one would have written.

Instructions and sampling (temperature 0.6, top-p 0.9, of the 50 likeliest tokens): arXiv 2507.22729 and its code.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmindex.encode import device as devices
from llmindex.encode.backbone import no_progress_bar
from llmindex.encode.device import Placement
from llmindex.encode.models import locate, one_line
from llmindex.errors import ModelError
from llmindex_training.filters import Verdict, judge_generated
from llmindex_training.instructions import INSTRUCTIONS

TEMPERATURE = 0.6
TOP_P = 0.9
# transformers' own default, which the published code left as it was.
TOP_K = 50
MAX_SOURCE_TOKENS = 256
"""Tokens of a text that the model is shown."""
SHORTEST_LIMIT, LONGEST_LIMIT = 48, 100
"""An answer may have twice the tokens of its batch's longest source, within these limits; 100 as published."""

_CPU_ROWS, _GPU_ROWS = 16, 128


@dataclass(frozen=True, slots=True)
class Request:
    """One text to be reworded.

    Attributes:
        row: number of the document.
        text: the document.
        instruction: a name of ``INSTRUCTIONS``.
    """

    row: int
    text: str
    instruction: str


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request as the model reads it.

    Attributes:
        ids: tokens of the whole chat.
        source_tokens: how many of them are the text's.
    """

    ids: list[int]
    source_tokens: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the model wrote, and whether it ended by itself."""

    text: str
    finished: bool


class Generator:
    """A causal LM that follows instructions.

    Attributes:
        sha256: identity of the model.
        placement: where it runs.
    """

    def __init__(
        self, name: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        """Load it.

        Args:
            name: "default", a hub name, or a local model folder.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            dtype: "auto" (bfloat16 where the hardware multiplies it natively), "float32", "bfloat16" or "float16".
            trust_remote_code: run Python code that comes with the model.

        Raises:
            ModelError: it cannot be found or loaded, cannot generate, or has no chat template.
            UsageError: there is no such device or dtype.
        """
        local = locate(name, trust_remote_code=trust_remote_code)
        self.sha256 = local.sha256
        self.placement = devices.resolve(device, dtype)
        self._name = name
        self._tokenizer: Any = _load_tokenizer(name, local.folder, trust_remote_code)
        self._model: Any = _load_model(name, local.folder, self.placement, trust_remote_code)
        self._ends = _end_ids(self._model, self._tokenizer)
        if not self._ends:
            raise ModelError(f'model "{name}" names no token that ends an answer; name another with --generator')

    @property
    def batch_rows(self) -> int:
        """Texts that are answered side by side."""
        return _CPU_ROWS if self.placement.device.type == "cpu" else _GPU_ROWS

    def reword(
        self, requests: Sequence[Request], seed: int, on_batch: Callable[[int, int], None] | None = None
    ) -> list[Verdict]:
        """What the model makes of each request, cleaned and judged, in the order of the requests.

        Args:
            requests: texts and instructions; the same list and seed give the same answers.
            seed: of the run.
            on_batch: told after each batch how many answers came and how many tokens went through the model.

        Raises:
            ModelError: not even a single text fits into memory, or the model fails.
        """
        prompts = [self._prompt(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda number: -len(prompts[number].ids))
        verdicts: dict[int, Verdict] = {}
        for start in range(0, len(order), self.batch_rows):
            batch = order[start : start + self.batch_rows]
            keys = [f"{requests[number].row}:{requests[number].instruction}" for number in batch]
            answers = self._answer([prompts[number] for number in batch], _seed(seed, keys))
            for number, answer in zip(batch, answers, strict=True):
                verdicts[number] = _judged(requests[number], answer)
            if on_batch is not None:
                on_batch(len(batch), sum(len(prompts[number].ids) for number in batch))
        return [verdicts[number] for number in range(len(requests))]

    def _prompt(self, request: Request) -> _Prompt:
        text = request.text.strip()
        shown = self._ids(text)
        if len(shown) > MAX_SOURCE_TOKENS:
            shown = shown[:MAX_SOURCE_TOKENS]
            text = self._tokenizer.decode(shown, skip_special_tokens=True)
        messages = [{"role": "user", "content": f"{INSTRUCTIONS[request.instruction]}\n\n{text}"}]
        try:
            # enable_thinking is for templates that know it: a chain of thought would use up all new tokens.
            chat = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
        except Exception as error:  # templates are programs, and complain as they please
            raise ModelError(f'the chat template of "{self._name}" fails: {one_line(error)}') from error
        return _Prompt(self._ids(chat), len(shown))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _answer(self, prompts: Sequence[_Prompt], seed: int) -> list[_Answer]:
        try:
            new_BT = self._sample(prompts, seed)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise ModelError(
                    f'"{self._name}" has no room for a single text on {self.placement}; use a smaller --generator'
                ) from error
            half = len(prompts) // 2
            return self._answer(prompts[:half], seed) + self._answer(prompts[half:], seed + 1)
        answers = []
        for row in new_BT.tolist():
            length = next((at for at, token in enumerate(row) if token in self._ends), None)
            answers.append(_Answer(self._tokenizer.decode(row[:length], skip_special_tokens=True), length is not None))
        return answers

    @torch.inference_mode()
    def _sample(self, prompts: Sequence[_Prompt], seed: int) -> Tensor:
        """New token ids ``(B, T)``; behind a row's end anything."""
        from transformers import GenerationConfig, LogitsProcessorList

        device = self.placement.device
        longest = max(len(prompt.ids) for prompt in prompts)
        padding = [longest - len(prompt.ids) for prompt in prompts]
        pad = min(self._ends)
        ids = [[pad] * missing + prompt.ids for missing, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * missing + [1] * (longest - missing) for missing in padding]
        wanted = 2 * max(prompt.source_tokens for prompt in prompts)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=min(max(wanted, SHORTEST_LIMIT), LONGEST_LIMIT),
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            out_BT: Tensor = self._model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                logits_processor=LogitsProcessorList([_draw]),
            )
        return out_BT[:, longest:]


def likeliest(scores_BV: Tensor) -> tuple[Tensor, Tensor]:
    """What is sampled from: probabilities ``(B, TOP_K)``, nought outside of TOP_P, and the ids that they belong to.

    The numbers are those of transformers' own sampling, which goes on to sort and add up a whole vocabulary of which
    only TOP_K entries are left; that took a third of the time of generating.
    """
    top_BK, ids_BK = scores_BV.float().topk(min(TOP_K, scores_BV.shape[-1]))
    shares_BK = torch.softmax(top_BK / TEMPERATURE, dim=-1)
    before_BK = shares_BK.cumsum(dim=-1) - shares_BK
    kept_BK = shares_BK.masked_fill(before_BK >= TOP_P, 0)
    return kept_BK / kept_BK.sum(dim=-1, keepdim=True), ids_BK


def _draw(input_ids: Tensor, scores_BV: Tensor) -> Tensor:
    """Draw each row's token; scores that leave a greedy search no other."""
    shares_BK, ids_BK = likeliest(scores_BV)
    drawn_B1 = ids_BK.gather(1, torch.multinomial(shares_BK, 1))
    return torch.full_like(scores_BV, float("-inf")).scatter_(1, drawn_B1, 0)


def _judged(request: Request, answer: _Answer) -> Verdict:
    return judge_generated(
        request.text,
        answer.text,
        INSTRUCTIONS[request.instruction],
        finished=answer.finished,
        question=request.instruction == "question",
    )


def _seed(seed: int, keys: Sequence[str]) -> int:
    """A seed for a batch: the same for the same rows of the same run, whatever came before."""
    digest = hashlib.sha256(f"{seed}/{','.join(keys)}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)


def _load_tokenizer(name: str, folder: Path, trust_remote_code: bool) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged file can break transformers anywhere
        raise ModelError(f'cannot load the tokenizer of "{name}": {one_line(error)}') from error
    if not tokenizer.chat_template:
        raise ModelError(
            f'model "{name}" has no chat template: it was not made to follow instructions; '
            "name an instruct model with --generator"
        )
    return tokenizer


def _load_model(name: str, folder: Path, placement: Placement, trust_remote_code: bool) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    try:
        with no_progress_bar():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=placement.dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        model.to(placement.device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f'model "{name}" does not fit into the memory of {placement.device}; use a smaller --generator'
        ) from error
    except Exception as error:  # a damaged or foreign model can break transformers anywhere
        hint = "; if you trust its code, add --trust-remote-code" if "trust_remote_code" in str(error) else ""
        raise ModelError(f'cannot load "{name}" to generate text: {one_line(error)}{hint}') from error
    if lacking := [*loaded["missing_keys"], *loaded["mismatched_keys"]]:
        raise ModelError(
            f'model "{name}" cannot generate text: its files lack {len(lacking):,} of the weights ({lacking[0]}, ...); '
            "name an instruct model with --generator"
        )
    return model
