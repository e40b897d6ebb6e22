"""A tiny decoder on sums of digits, trained by TRL's GRPOTrainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytest.importorskip("trl", reason="the extra trl is not installed: pip install -c constraints.txt -e '.[trl]'")

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from dataprune.integrations.trl import PromptPruner
from dataprune.prompts import Prompts, greso

SIZE = 24
G = 4  # completions a prompt
WORDS = ["<pad>", "<eos>", "<unk>", *"0123456789+="]


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def decoder() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.3,
        )
    )  # fmt: skip


def sums(size: int = SIZE) -> Any:
    return datasets.Dataset.from_list([{"prompt": f"{i // 10}+{i % 10}=", "number": i} for i in range(size)])


def reward(completions: list[str], number: list[int], **_: Any) -> list[float]:
    """A third of the prompts is always wrong, a third always right, the rest by what the model says."""
    even = [float(any(digit in text for digit in "02468")) for text in completions]
    return [(0.0, 1.0, value)[i % 3] for i, value in zip(number, even, strict=True)]


def arguments(folder: Path | str, **changes: Any) -> Any:
    given = dict(
        use_cpu=True, report_to=[], per_device_train_batch_size=G, num_generations=G, gradient_accumulation_steps=3,
        max_completion_length=2, num_train_epochs=2, logging_steps=1, save_strategy="no", disable_tqdm=True,
        log_level="error", bf16=False, dataloader_pin_memory=False, learning_rate=1e-3, activation_checkpointing=False,
    )  # fmt: skip
    return GRPOConfig(str(folder), **(given | changes))


class Noted(GRPOTrainer):
    """Notes the rows it generates for, and the rewards of all ranks."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rows: list[list[int]] = []
        self.rewards: list[list[list[float]]] = []

    def _calculate_rewards(self, inputs: Any, *rest: Any, **more: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, *rest, **more)
        if self.model.training:
            self.rows.append([row["number"] for row in inputs])
            self.rewards.append(rewards.tolist())
        return rewards


class Proposed:
    """What `propose` and `record` were called with, as numbers."""

    def __init__(self, prompts: Prompts):
        self.proposals: list[list[int]] = []
        self.records: list[dict[int, list[float]]] = []
        propose, record = prompts.propose, prompts.record

        def noted_propose(count: int) -> Any:
            ids = propose(count)
            self.proposals.append(ids.tolist())
            return ids

        def noted_record(ids: Any, rewards: Any) -> Any:
            groups = [group.tolist() for group in rewards]
            self.records.append(dict(zip(ids.tolist(), groups, strict=True)))
            return record(ids, rewards)

        prompts.propose, prompts.record = noted_propose, noted_record  # type: ignore[method-assign]


def build(folder: Path | str, prompts: Prompts | None = None, **options: Any) -> Any:
    """A trainer, and the pruner attached to it; `options` of both, the rest goes to the GRPOConfig."""
    own = {name: options.pop(name) for name in ("eval_dataset", "callbacks") if name in options}
    trainer = options.pop("kind", Noted)(
        options.pop("model", None) or decoder(),
        options.pop("reward_funcs", reward),
        train_dataset=options.pop("data", None) or sums(),
        processing_class=tokenizer(),
        **own,
        args=arguments(folder, **{name: value for name, value in options.items() if name != "score"}),
    )
    if prompts is not None:
        trainer.noted = Proposed(prompts)
        trainer.prompts = prompts
        PromptPruner(prompts, score=options.get("score")).attach(trainer)
    return trainer


__all__ = ["SIZE", "G", "Noted", "build", "decoder", "greso", "reward", "sums"]
