"""Time and peak memory of `Pruner.select` on large datasets.

    python benchmarks/selection.py [--sizes 1e6,1e7,1e8] [--out FILE]

Every case runs in a process of its own: a pruner whose book is full of random scores selects 30 % for epoch 1, three
times. "Time" is the median; "memory" is the peak during the call beyond what the process held before it (the book
itself, 8 bytes a sample, is not in it), and includes the selection that is returned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

METHODS = ("loss", "emp", "rs2", "infobatch")


def measure(method: str, size: int, repeats: int = 3) -> dict[str, float | int | str]:
    """One case, in this process."""
    import torch

    import dataprune

    seconds, extra = [], []
    for seed in range(repeats):
        pruner = dataprune.METHODS[method](size, keep=0.3, epochs=10, seed=seed)
        pruner.book.score.uniform_(generator=torch.Generator().manual_seed(seed))
        pruner.book.drawn.fill_(1)
        before = _reset_peak()
        started = time.perf_counter()
        selection = pruner.select(1)
        seconds.append(time.perf_counter() - started)
        extra.append(_kilobytes("VmHWM") - before)
        kept = len(selection.index) / size
        del pruner, selection
    return {
        "method": method,
        "size": size,
        "seconds": statistics.median(seconds),
        "megabytes": max(extra) / 1024,
        "kept": kept,
        "threads": torch.get_num_threads(),
    }


def _reset_peak() -> int:
    """Forget the peak resident size so far; what is resident now, in kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS")


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e6,1e7,1e8", help="comma-separated dataset sizes")
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        method, size = arguments.case.split(":")
        print(json.dumps(measure(method, int(size))))
        return
    rows = []
    print(f"{'method':10} {'N':>6} {'seconds':>9} {'MB':>8} {'kept':>6}")
    for size in [int(float(text)) for text in arguments.sizes.split(",")]:
        for method in METHODS:
            case = [sys.executable, __file__, "--case", f"{method}:{size}"]
            row = json.loads(subprocess.run(case, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            print(
                f"{method:10} {size:6.0e} {row['seconds']:9.3f} {row['megabytes']:8.0f} {row['kept']:6.3f}", flush=True
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
