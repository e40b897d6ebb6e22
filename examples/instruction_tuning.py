"""Instruction tuning of a small causal language model on 30 % of the samples, prompts masked.

    python examples/instruction_tuning.py [--method memory] [--keep 0.3] [--epochs 6]

Prompts are names of topics of the Python reference, answers are pieces of their text, which ships with Python; bytes
are tokens, so no tokenizer is needed. A Llama with random weights learns them. Scores are means over the tokens of the
answer: of the loss for `loss`, of the entropy for `memory`, of both for `emp`.
"""

import argparse
import random
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers

import dataprune
from dataprune.integrations.huggingface import PrunedTrainer

PIECE, ENDS = 120, 256  # bytes of an answer; the token after it

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--method", default="memory", choices=["emp", "loss", "memory", "rs2"])
parser.add_argument("--keep", type=float, default=0.3)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--samples", type=int, default=1000)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


def sample(topic: str, part: int, answer: bytes) -> dict[str, list[int]]:
    prompt = list(f"{topic} {part}: ".encode())
    return {"input_ids": [*prompt, *answer, ENDS], "labels": [-100] * len(prompt) + [*answer, ENDS]}


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    fill = {"input_ids": ENDS, "labels": -100, "attention_mask": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


pieces = [
    sample(topic, at // PIECE, topics[topic].encode()[at : at + PIECE])
    for topic in sorted(topics)
    for at in range(0, len(topics[topic].encode()), PIECE)
]
random.Random(0).shuffle(pieces)
train_set, test_set = pieces[: options.samples], pieces[options.samples : options.samples + 200]

transformers.set_seed(options.seed)
config = transformers.LlamaConfig(vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, pad_token_id=ENDS, bos_token_id=None, eos_token_id=ENDS)  # fmt: skip
arguments = transformers.TrainingArguments(
    "runs/instruction_tuning", num_train_epochs=options.epochs, per_device_train_batch_size=16, learning_rate=5e-3,
    warmup_steps=0.1, save_strategy="no", report_to=[], dataloader_pin_memory=False, seed=options.seed,
)  # fmt: skip
recipe = dataprune.METHODS[options.method]
pruner = recipe(len(train_set), keep=options.keep, epochs=options.epochs, seed=options.seed)
trainer = PrunedTrainer(
    transformers.LlamaForCausalLM(config), arguments, train_dataset=train_set, eval_dataset=test_set,
    data_collator=padded, pruner=pruner,
)  # fmt: skip
before = trainer.evaluate()["eval_loss"]
metrics = trainer.train().metrics
print(f"loss per token of new answers {before:.3f} -> {trainer.evaluate()['eval_loss']:.3f}, "
      f"{metrics['samples_trained']} samples in {trainer.state.global_step} steps, "
      f"{metrics['samples_saved']:.0%} fewer than in full epochs")  # fmt: skip
