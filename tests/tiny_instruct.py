"""A tiny random model that can be asked to generate: real code paths, meaningless answers."""

import shutil
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_instruct(tiny_model: Path, folder: Path) -> Path:
    """Write the tiny decoder with a language head and a chat template; returns the folder."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 2048
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
