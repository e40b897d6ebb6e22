"""What the memory term of `emp` needs in memory and time when every token has a distribution over a vocabulary.

    python benchmarks/entropy.py [--batch 2] [--tokens 512] [--vocabulary 128256] [--out FILE]

`criteria.entropy` takes the entropy of (B, S, V) logits in chunks, here of bfloat16; the plain form is softmax,
logarithm, product and sum of all of them in float32. Each is measured in a process of its own, so that the peak of one
cannot hide that of another; the two take turns, and what is reported is the smallest of their peaks above the logits
themselves, and the median of the times. Values agree to 1e-3. On a GPU the peak is the allocator's.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dataprune import criteria

KINDS = ("none", "chunks", "plain")


def plain(logits: torch.Tensor) -> torch.Tensor:
    p = logits.float().softmax(dim=-1)
    return -(p * p.log()).sum(dim=-1).mean(dim=1)


def measure(kind: str, batch: int, tokens: int, vocabulary: int) -> dict[str, float]:
    """Peak bytes of this process, or of the GPU, its seconds and a checksum."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    logits = torch.empty(batch, tokens, vocabulary, dtype=torch.bfloat16, device=device).normal_(std=2)
    targets = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    started, value = time.perf_counter(), torch.zeros(())
    with torch.no_grad():
        if kind == "chunks":
            value = criteria.entropy(torch.zeros(batch, device=device), logits, targets)
        elif kind == "plain":
            value = plain(logits)
    checksum = float(value.mean())  # waits for the device
    seconds = time.perf_counter() - started
    unit = 1 if platform.system() == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"peak": peak, "seconds": seconds, "entropy": checksum}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = (options.batch, options.tokens, options.vocabulary)
    if options.kind:
        print(json.dumps(measure(options.kind, *size)))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    flags = ("--batch", "--tokens", "--vocabulary")
    given = [text for flag, value in zip(flags, size, strict=True) for text in (flag, str(value))]
    for _ in range(options.rounds):
        for kind in KINDS:
            done = subprocess.run(
                [sys.executable, __file__, "--kind", kind, *given], capture_output=True, text=True, check=True
            )
            found[kind].append(json.loads(done.stdout))
    base = min(one["peak"] for one in found["none"])
    result = {
        "batch": options.batch,
        "tokens": options.tokens,
        "vocabulary": options.vocabulary,
        "logits_mib": options.batch * options.tokens * options.vocabulary * 2 / 2**20,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "torch": torch.__version__,
    }
    for kind in ("chunks", "plain"):
        result[f"{kind}_mib"] = max(min(one["peak"] for one in found[kind]) - base, 0) / 2**20
        result[f"{kind}_seconds"] = statistics.median(one["seconds"] for one in found[kind])
    difference = abs(found["chunks"][0]["entropy"] - found["plain"][0]["entropy"])
    if difference > 1e-3:
        sys.exit(f"the two entropies differ by {difference}")
    result["memory_ratio"] = result["plain_mib"] / max(result["chunks_mib"], 1e-9)
    result["time_ratio"] = result["plain_seconds"] / result["chunks_seconds"]
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
