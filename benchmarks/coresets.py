"""Time and peak memory of the selectors in `dataprune.coresets`, beside the textbook implementation of each.

    python benchmarks/coresets.py [--sizes 5e3,5e4] [--methods k_center,herding] [--data normal] [--out FILE]

Every case runs in a process of its own, with the same float32 features (N, 512), ten classes, keep 0.1 and the same
number of threads. "Textbook" is vectorised torch: the full distance matrix ("matrix") where it fits into half of the
free memory, or one `torch.cdist` per pick ("pick"); for scores a sort. "Memory" is the peak during the call beyond what
the process held before it, and includes the selection that is returned. "Same" is the share of the textbook's samples
that are in ours (equals are decided at random, and distances are rounded differently).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, CLASSES, KEEP = 512, 10, 0.1
# method: its textbook variants
METHODS = {
    "top": ["sort"],
    "bottom": ["sort"],
    "random": ["permutation"],
    "stratified": ["bins"],
    "moderate": ["whole"],
    "herding": ["pick"],
    "k_center": ["matrix", "pick"],
    "contextual_diversity": ["matrix", "pick"],
}


def measure(method: str, variant: str, size: int, data: str) -> dict[str, Any]:
    """One case, in this process."""
    import torch

    from dataprune import coresets

    features, labels = make(size, data)
    scores = features[:, 0].clone()
    outputs = features[:, :CLASSES].clone()
    given = {"moderate": features, "herding": features, "k_center": features, "contextual_diversity": outputs}
    values = given.get(method, scores)
    options: dict[str, Any] = {"first": 0} if method in ("k_center", "contextual_diversity") else {}
    ours = getattr(coresets, method)
    ours(values[:200], keep=KEEP, labels=labels[:200], **options)  # the first call loads kernels
    count = coresets.random(size, keep=KEEP).index.numel()
    if variant == "ours":
        before, started = _reset_peak(), time.perf_counter()
        index = ours(values, keep=KEEP, labels=labels, **options).index
    else:
        before, started = _reset_peak(), time.perf_counter()
        index = textbook(method, variant, values, labels, count)
    seconds = time.perf_counter() - started
    peak = _kilobytes("VmHWM") - before
    return {
        "method": method,
        "variant": variant,
        "size": size,
        "data": data,
        "seconds": seconds,
        "megabytes": peak / 1024,
        "threads": torch.get_num_threads(),
        "index": sorted(index.tolist()),
    }


def make(size: int, data: str) -> tuple[Tensor, Tensor]:
    """(N, 512) float32 features and (N,) labels of ten classes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    features = torch.randn(size, WIDTH, generator=generator)
    if data == "clusters":  # 100 groups, ten to a class
        group = labels * 10 + torch.randint(10, (size,), generator=generator)
        features = 0.5 * features + 2 * torch.randn(CLASSES * 10, WIDTH, generator=generator)[group]
    elif data == "manifold":  # a curved surface of eight dimensions
        flat = torch.randn(size, 8, generator=generator)
        features = (flat @ torch.randn(8, WIDTH, generator=generator)).relu()
    return features, labels


def textbook(method: str, variant: str, values: Tensor, labels: Tensor, count: int) -> Tensor:
    """The definition, written the short way with torch."""
    import torch

    if method in ("top", "bottom"):
        return values.argsort(descending=method == "top")[:count]
    if method == "random":
        return torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:count]
    if method == "stratified":
        low, high = values.min(), values.max()
        place = ((values - low) / (high - low) * 50).long().clamp(max=49)
        sizes = torch.bincount(place, minlength=50)
        chosen, left = [], count
        for done, stratum in enumerate(sizes.argsort().tolist()):
            members = (place == stratum).nonzero().squeeze(1)
            places = min(len(members), left // (50 - done))
            chosen.append(members[torch.randperm(len(members))[:places]])
            left -= places
        return torch.cat(chosen)
    if method == "moderate":
        means = torch.stack([values[labels == c].mean(dim=0) for c in range(CLASSES)])
        distance = (values - means[labels]).norm(dim=1)
        return (distance - distance.median()).abs().argsort()[:count]
    if method == "herding":
        chosen = []
        for c in range(CLASSES):
            members = (labels == c).nonzero().squeeze(1)
            rows = values[members]
            mean, total = rows.mean(dim=0), torch.zeros(values.shape[1])
            free = torch.ones(len(rows), dtype=torch.bool)
            for i in range(round(count * len(rows) / len(values))):
                away = ((i + 1) * mean - total - rows).norm(dim=1)
                away[~free] = torch.inf
                best = int(away.argmin())
                free[best] = False
                total += rows[best]
                chosen.append(members[best])
        return torch.stack(chosen)
    if method == "contextual_diversity":
        values = values.softmax(dim=1)
    between = torch.cdist if method == "k_center" else divergence
    table = between(values, values) if variant == "matrix" else None
    picked = [0]
    nearest = torch.full((len(values),), torch.inf)
    while len(picked) < count:
        last = picked[-1]
        row = between(values, values[last : last + 1]).squeeze(1) if table is None else table[last]
        nearest = torch.minimum(nearest, row)
        picked.append(int(nearest.argmax()))
    return torch.tensor(picked)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(N, M) symmetric divergences, by matrix products."""
    return (p * p.log()).sum(1)[:, None] + (q * q.log()).sum(1)[None] - p @ q.log().T - p.log() @ q.T


def fits(method: str, variant: str, size: int) -> bool:
    """Whether what a variant holds at once fits into half of the free memory."""
    if variant != "matrix":
        return True
    matrices = 2 if method == "k_center" else 4
    return 4 * matrices * size**2 < _kilobytes("MemAvailable", "/proc/meminfo") * 1024 / 2


def _reset_peak() -> int:
    """Forget the peak resident size so far; what is resident now, in kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS")


def _kilobytes(name: str, path: str = "/proc/self/status") -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in {path}: this benchmark needs Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="5e3,5e4", help="comma-separated dataset sizes")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated selectors")
    parser.add_argument("--data", default="normal", choices=["normal", "clusters", "manifold"])
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        method, variant, size, data = arguments.case.split(":")
        print(json.dumps(measure(method, variant, int(size), data)))
        return
    rows = []
    print(f"{'method':21} {'variant':11} {'N':>6} {'seconds':>9} {'MB':>7} {'same':>5}")
    for size in [int(float(text)) for text in arguments.sizes.split(",")]:
        for method in arguments.methods.split(","):
            ours: set[int] = set()
            for variant in ["ours", *METHODS[method]]:
                if not fits(method, variant, size):
                    print(
                        f"{method:21} {variant:11} {size:6.0e} {'-':>9} more than half of the free memory", flush=True
                    )
                    continue
                case = [sys.executable, __file__, "--case", f"{method}:{variant}:{size}:{arguments.data}"]
                row = json.loads(subprocess.run(case, check=True, stdout=subprocess.PIPE, text=True).stdout)
                index = set(row.pop("index"))
                ours = ours or index
                row["same"] = len(ours & index) / len(index)
                rows.append(row)
                print(
                    f"{method:21} {variant:11} {size:6.0e} {row['seconds']:9.3f} {row['megabytes']:7.0f} "
                    f"{row['same']:5.2f}",
                    flush=True,
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
