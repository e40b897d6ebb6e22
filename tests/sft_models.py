"""A tiny decoder with random weights, in a folder as transformers saves it, and chats in its words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = [
    "<pad>",
    "<s>",
    "<unk>",
    "<user>",
    "<assistant>",
    "<end>",
    *"abcdefghijklmnopqrstuvwxyz :\n",
    "User",
    "Assistant",
]


def save(folder: Path, *, template: str | None = TEMPLATE, bos: bool = True, seed: int = 0) -> str:
    """A Llama of one layer, and a tokenizer of letters."""
    split = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": WORDS[3:6]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, **special, **({"bos_token": "<s>"} if bos else {}))
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
