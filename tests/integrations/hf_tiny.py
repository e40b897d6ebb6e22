"""Tiny models with random weights, data whose first token is its position, and Trainers that note what they train."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import dataprune
from dataprune.integrations.huggingface import INDEX, PrunedTrainer
from dataprune.pruner import Pruner

VOCABULARY = 100  # more than there are samples: the first token of a sample is its position
TOKENS = 6


class Items(torch.utils.data.Dataset):
    """Sequences of random ids; a column that no model takes."""

    def __init__(self, size: int = 48, labels: str = "class"):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(VOCABULARY, (size, TOKENS), generator=generator)
        self.ids[:, 0] = torch.arange(size)
        self.labels = {
            "class": self.ids[:, 1] % 3,
            "number": torch.randn(size, generator=generator),
            "several": torch.randint(2, (size, 3), generator=generator).float(),
            "tokens": self.ids % 3,
            "language": self.ids.clone(),
        }[labels]
        if labels in ("tokens", "language"):  # the longest has all its tokens, the shortest few
            for i in range(size):
                self.labels[i, TOKENS - i % TOKENS :] = -100

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.labels[i], "idx": i}


def bert(*, labels: int = 3, dropout: float = 0.0, kind: Any = BertForSequenceClassification, **config: Any) -> Any:
    torch.manual_seed(0)
    return kind(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, num_labels=labels, hidden_dropout_prob=dropout, initializer_range=0.5,
            attention_probs_dropout_prob=dropout, **config,
        )
    )  # fmt: skip


def bert_tokens(**config: Any) -> Any:
    return bert(kind=BertForTokenClassification, **config)


def llama(**config: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16, initializer_range=0.5, pad_token_id=0, **config,
        )
    )  # fmt: skip


def arguments(folder: Path | str | None = None, kind: Any = TrainingArguments, **changes: Any) -> Any:
    given = dict(
        num_train_epochs=4, per_device_train_batch_size=8, use_cpu=True, report_to=[], logging_steps=1,
        disable_tqdm=True, save_strategy="no", learning_rate=0.01, log_level="error", dataloader_pin_memory=False,
    )  # fmt: skip
    return kind(str(folder or tempfile.mkdtemp()), **(given | changes))


class Noted:
    """Notes the first token of each sample trained, by epoch, and the learning rate after each step."""

    def training_step(self, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
        self.seen: list[tuple[int, list[int]]]
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append((int(self.state.epoch), inputs["input_ids"][:, 0].tolist()))  # type: ignore[attr-defined]
        return super().training_step(model, inputs, *rest, **kwargs)  # type: ignore[misc]

    def epochs(self) -> list[list[int]]:
        """The samples of each epoch, in the order they were trained."""
        last = max(epoch for epoch, _ in self.seen)
        return [[i for at, ids in self.seen if at == epoch for i in ids] for epoch in range(last + 1)]

    def column(self, name: str) -> list[Any]:
        """A value from each entry of the log that has it."""
        return [entry[name] for entry in self.state.log_history if name in entry]  # type: ignore[attr-defined]


class Stock(Noted, Trainer):
    """The Trainer as it is."""


class Pruned(Noted, PrunedTrainer):
    """Ours."""


class Naive(Noted, Trainer):
    """What one would write first: the stock Trainer with the pruner's sampler, and the index as a column."""

    def __init__(self, *args: Any, pruner: Pruner, rank_local: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pruner, self.rank_local = pruner, rank_local

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.rank_local:
            return dataprune.PruneSampler(self.pruner)
        return dataprune.PruneSampler(self.pruner, rank=0, world_size=1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        index = inputs["input_ids"][:, 0]  # a cheat: the first token is the position
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            each = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
            self.pruner.update(index, each.detach(), outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def train(
    kind: Any = Pruned, *, model: Any = None, data: Any = None, pruner: Any, resume: Any = None, **rest: Any
) -> Any:
    """A finished run; `rest` goes to the TrainingArguments."""
    options = {} if pruner is None else {"pruner": pruner}
    for name in ("eval_dataset", "compute_metrics", "per_sample_loss", "callbacks", "data_collator", "rank_local"):
        if name in rest:
            options[name] = rest.pop(name)
    trainer = kind(
        bert() if model is None else model,
        arguments(**rest),
        train_dataset=Items() if data is None else data,
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


__all__ = [
    "INDEX", "TOKENS", "VOCABULARY", "Items", "Naive", "Noted", "Pruned", "Stock", "arguments", "bert", "bert_tokens",
    "llama", "train",
]  # fmt: skip
