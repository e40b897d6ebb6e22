"""Time and peak memory of the selectors in `dataprune.coresets`, beside the textbook implementation of each.

    python benchmarks/coresets.py [--sizes 5e3,5e4] [--methods k_center,herding] [--data normal] [--out FILE]

Every case runs in a process of its own, with the same float32 features (N, 512), last-layer errors of ten classes, keep
0.1 and the same number of threads. Textbooks are vectorised torch in float32, with everything stored that their formula
names: all distances ("matrix"), all gradients ("stored"), all influences ("stored"), the whole set as one batch
("batch"); "pick" computes the distances to one pick after another instead. submodlib and apricot run where they are
installed. A textbook that does not fit into half of the free memory says so, and so does one that is stopped: after ten
times the seconds of ours, but not before a minute, and after `--limit` seconds at most.

"Seconds" are CPU time of the process, which other work on the machine disturbs least: run it on one thread
(OMP_NUM_THREADS=1), as threads that wait for each other count. Wall time stands beside it in the file. "MB" is the peak
during the call beyond what the process held before it, and includes what is returned. "Same" is the share of the
textbook's samples that are in ours: equals are decided at random, and rounding differs. "Faster" is the textbook's
seconds over ours, "smaller" its memory over ours (over 1 MB where ours is less). A small call
before the clock starts loads the kernels; calls are repeated for 0.2 s.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, CLASSES, KEEP, STEP, DAMPING, PENALTY = 512, 10, 0.1, 0.01, 0.01, 0.5
_SHORTEST = 0.2  # seconds of calls: the clock is too coarse for one of a millisecond
GRADIENT = CLASSES * (WIDTH + 1)  # numbers in a gradient of the last layer


class Data(NamedTuple):
    """What selectors choose from: N samples of ten classes."""

    features: Tensor  # (N, 512)
    labels: Tensor  # (N,)
    logits: Tensor  # (N, 10) of a classifier that is right more often than not
    errors: Tensor  # (N, 10) their softmax − onehot(labels)


def make(size: int, kind: str, seed: int = 0) -> Data:
    import torch

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    features = torch.randn(size, WIDTH, generator=generator)
    if kind == "clusters":  # 100 groups, ten to a class
        group = labels * 10 + torch.randint(10, (size,), generator=generator)
        features = 0.5 * features + 2 * torch.randn(CLASSES * 10, WIDTH, generator=generator)[group]
    elif kind == "manifold":  # a curved surface of eight dimensions
        flat = torch.randn(size, 8, generator=generator)
        features = (flat @ torch.randn(8, WIDTH, generator=generator)).relu()
    truth = torch.nn.functional.one_hot(labels, CLASSES)
    logits = features[:, :CLASSES] + 2 * truth
    return Data(features, labels, logits, logits.softmax(1) - truth)


def model() -> Any:
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, CLASSES)).eval()


def ours(method: str, data: Data, validation: Data) -> Tensor:
    from dataprune import coresets

    select, options = getattr(coresets, method), {"keep": KEEP}
    if method in ("top", "bottom", "random", "stratified"):
        return select(data.features[:, 0].clone(), **options).index
    if method in ("moderate", "herding"):
        return select(data.features, labels=data.labels, **options).index
    if method == "k_center":
        return select(data.features, first=0, **options).index
    if method == "contextual_diversity":
        return select(data.logits, first=0, **options).index
    if method == "deepfool":
        return select(model(), data.features, **options).index
    if method == "glister":
        options |= {"val_errors": validation.errors, "val_features": validation.features, "step": STEP}
    if method == "influence":
        options |= {"damping": DAMPING}
    return select(data.errors, data.features, labels=data.labels, **options).index


# -- textbooks -------------------------------------------------------------------------------------------------------


def sort(data: Data, count: int, *, descending: bool) -> Tensor:
    return data.features[:, 0].argsort(descending=descending)[:count]


def permutation(data: Data, count: int) -> Tensor:
    import torch

    return torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:count]


def bins(data: Data, count: int) -> Tensor:
    import torch

    values = data.features[:, 0]
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


def median_distance(data: Data, count: int) -> Tensor:
    import torch

    means = torch.stack([data.features[data.labels == c].mean(dim=0) for c in range(CLASSES)])
    distance = (data.features - means[data.labels]).norm(dim=1)
    return (distance - distance.median()).abs().argsort()[:count]


def herd(data: Data, count: int) -> Tensor:
    import torch

    chosen = []
    for members in by_class(data.labels):
        rows = data.features[members]
        mean, total = rows.mean(dim=0), torch.zeros(WIDTH)
        free = torch.ones(len(rows), dtype=torch.bool)
        for i in range(round(count * len(rows) / len(data.labels))):
            away = ((i + 1) * mean - total - rows).norm(dim=1)
            away[~free] = torch.inf
            best = int(away.argmin())
            free[best] = False
            total += rows[best]
            chosen.append(members[best])
    return torch.stack(chosen)


def farthest(values: Tensor, count: int, between: Callable[[Tensor, Tensor], Tensor], *, matrix: bool) -> Tensor:
    import torch

    table = between(values, values) if matrix else None
    picked = [0]
    nearest = torch.full((len(values),), torch.inf)
    while len(picked) < count:
        last = picked[-1]
        row = between(values, values[last : last + 1]).squeeze(1) if table is None else table[last]
        nearest = torch.minimum(nearest, row)
        picked.append(int(nearest.argmax()))
    return torch.tensor(picked)


def cover(data: Data, count: int, *, matrix: bool) -> Tensor:
    import torch

    return farthest(data.features, count, torch.cdist, matrix=matrix)


def cover_by_products(data: Data, count: int) -> Tensor:
    """The fastest pass over the data for every pick: ‖x‖² is known, so that one matrix-vector product is left."""
    import torch

    values = data.features
    squares = values.square().sum(1)
    picked = [0]
    nearest = torch.full((len(values),), torch.inf)
    while len(picked) < count:
        last = picked[-1]
        nearest = torch.minimum(nearest, squares + squares[last] - 2 * (values @ values[last]))
        picked.append(int(nearest.argmax()))
    return torch.tensor(picked)


def diverse(data: Data, count: int, *, matrix: bool) -> Tensor:
    def divergence(p: Tensor, q: Tensor) -> Tensor:
        return (p * p.log()).sum(1)[:, None] + (q * q.log()).sum(1)[None] - p @ q.log().T - p.log() @ q.T

    return farthest(data.logits.softmax(1), count, divergence, matrix=matrix)


def facilities(data: Data, count: int, *, solver: str) -> Tensor:
    """CRAIG: greedy facility location in every class, over the matrix of all its distances."""
    import torch

    chosen = []
    for members, places in zip(by_class(data.labels), shares(data.labels, count)):
        gradients = stored(data, members)
        distance = torch.cdist(gradients, gradients)
        del gradients
        if solver == "matrix":
            chosen.append(members[cover_all(distance, places)])
            continue
        likeness = distance.neg_().add_(distance.min().neg()).numpy()
        if solver == "submodlib":
            from submodlib import FacilityLocationFunction

            function = FacilityLocationFunction(n=len(members), mode="dense", sijs=likeness, separate_rep=False)
            picks = [i for i, _ in function.maximize(places, optimizer="LazyGreedy", show_progress=False)]
        else:
            from apricot import FacilityLocationSelection

            selection = FacilityLocationSelection(places, metric="precomputed", optimizer="lazy")
            picks = selection.fit(likeness.astype("float64")).ranking
        chosen.append(members[torch.tensor(picks)])
    return torch.cat(chosen)


def cover_all(distance: Tensor, count: int) -> Tensor:
    """Plain greedy: the gain of every sample before every pick."""
    import torch

    picked = [int(distance.sum(1).argmin())]
    nearest = distance[picked[0]]
    while len(picked) < count:
        gain = (nearest - distance).clamp_(min=0).sum(1)
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        nearest = torch.minimum(nearest, distance[picked[-1]])
    return torch.tensor(picked)


def pursue(data: Data, count: int) -> Tensor:
    """GradMatch: orthogonal matching pursuit over stored gradients, and non-negative least squares for every pick."""
    import numpy as np
    import torch
    from scipy.optimize import nnls

    chosen = []
    for members, places in zip(by_class(data.labels), shares(data.labels, count)):
        gradients = stored(data, members)
        target = rest = gradients.sum(0)
        picked: list[int] = []
        for _ in range(places):
            score = gradients @ rest
            score[picked] = -torch.inf
            picked.append(int(score.argmax()))
            columns = gradients[picked]
            # ‖A w − b‖² + penalty ‖w‖² through the Cholesky factor of AᵀA + penalty
            factor = torch.linalg.cholesky((columns @ columns.T).double() + PENALTY * torch.eye(len(picked)))
            side = torch.linalg.solve_triangular(factor, (columns @ target).double()[:, None], upper=False)
            weight = torch.from_numpy(np.asarray(nnls(factor.T.numpy(), side[:, 0].numpy())[0])).float()
            rest = target - weight @ columns
        chosen.append(members[picked])
    return torch.cat(chosen)


def follow(data: Data, count: int) -> Tensor:
    """Glister: after every pick the validation gradient of the moved layer, and all gains from stored gradients."""
    import torch

    validation = make(len(data.labels) // 10, "normal", seed=1)
    gradients = stored(data, torch.arange(len(data.labels)))
    right = torch.cat([validation.features, torch.ones(len(validation.labels), 1)], 1)
    logits, truth = validation.logits.clone(), torch.nn.functional.one_hot(validation.labels, CLASSES)
    picked: list[int] = []
    while len(picked) < count:
        slope = (logits.softmax(1) - truth).T @ right / len(right)
        gain = gradients @ slope.flatten()
        gain[picked] = -torch.inf
        picked.append(int(gain.argmax()))
        logits -= STEP * right @ gradients[picked[-1]].view(CLASSES, WIDTH + 1).T
    return torch.tensor(picked)


def cancel(data: Data, count: int) -> Tensor:
    """Influence: stored influences, all looked at before every sample that is left out."""
    import torch

    from dataprune.coresets._influence import influences

    known = influences(data.errors, data.features, data.labels, DAMPING)
    rows = (known.left[:, :, None] * known.right[:, None, :] * known.scale).flatten(1)  # their basis changes no length
    squares, total = rows.square().sum(1), torch.zeros(rows.shape[1])
    kept = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(len(rows) - count):
        change = (rows @ total).mul_(2).add_(squares)
        change[~kept] = torch.inf
        best = int(change.argmin())
        kept[best] = False
        total += rows[best]
    return kept.nonzero().squeeze(1)


def perturb(data: Data, count: int) -> Tensor:
    """DeepFool on the whole set at once; every sample is computed until the last one has crossed a boundary."""
    import torch

    network, x = model(), data.features
    r = torch.zeros_like(x)
    own = network(x).argmax(1)
    for _ in range(50):
        point = (x + 1.02 * r).requires_grad_()
        logits = network(point)
        inside = logits.argmax(1) == own
        if not inside.any():
            break
        best, step = torch.full((len(x),), torch.inf), torch.zeros_like(x)
        mine = logits.gather(1, own[:, None]).squeeze(1)
        for other in range(CLASSES):
            gap = logits[:, other] - mine
            (slope,) = torch.autograd.grad(gap.sum(), point, retain_graph=True)
            length = slope.norm(dim=1)
            distance = torch.where(own == other, torch.inf, gap.detach().abs() / length)
            better = distance < best
            best = torch.where(better, distance, best)
            step[better] = (distance / length)[better, None] * slope[better]
        r[inside] += step[inside]
    return r.square().sum(1).argsort()[:count]


def by_class(labels: Tensor) -> list[Tensor]:
    return [(labels == c).nonzero().squeeze(1) for c in range(CLASSES)]


def shares(labels: Tensor, count: int) -> list[int]:
    """Places of each class, by largest remainder."""
    import torch

    exact = torch.bincount(labels, minlength=CLASSES) * count
    places = exact // len(labels)
    places[(exact % len(labels)).argsort(descending=True, stable=True)[: count - int(places.sum())]] += 1
    return places.tolist()


def stored(data: Data, members: Tensor) -> Tensor:
    """(n, 5130) gradients."""
    import torch

    right = torch.cat([data.features[members], torch.ones(len(members), 1)], 1)
    return (data.errors[members][:, :, None] * right[:, None, :]).flatten(1)


class Textbook(NamedTuple):
    """One way to compute a method; `bytes` of N is what it holds at once."""

    run: Callable[[Data, int], Tensor]
    bytes: Callable[[int], float] = lambda size: 0
    needs: str = ""  # a package


# distances of a class, beside its gradients or the gains of all its samples
_CLASS_MATRIX = 4 * 2 / CLASSES**2
TEXTBOOKS: dict[str, dict[str, Textbook]] = {
    "top": {"sort": Textbook(lambda data, count: sort(data, count, descending=True))},
    "bottom": {"sort": Textbook(lambda data, count: sort(data, count, descending=False))},
    "random": {"permutation": Textbook(permutation)},
    "stratified": {"bins": Textbook(bins)},
    "moderate": {"batch": Textbook(median_distance)},
    "herding": {"pick": Textbook(herd)},
    "k_center": {
        "matrix": Textbook(lambda data, count: cover(data, count, matrix=True), lambda size: 2 * 4 * size**2),
        "pick": Textbook(lambda data, count: cover(data, count, matrix=False)),
        "products": Textbook(cover_by_products),
    },
    "contextual_diversity": {
        "matrix": Textbook(lambda data, count: diverse(data, count, matrix=True), lambda size: 4 * 4 * size**2),
        "pick": Textbook(lambda data, count: diverse(data, count, matrix=False)),
    },
    "craig": {
        "matrix": Textbook(
            lambda data, count: facilities(data, count, solver="matrix"), lambda size: _CLASS_MATRIX * size**2
        ),
        "submodlib": Textbook(
            lambda data, count: facilities(data, count, solver="submodlib"),
            lambda size: 8 * _CLASS_MATRIX * size**2,
            "submodlib",
        ),
        "apricot": Textbook(
            lambda data, count: facilities(data, count, solver="apricot"),
            lambda size: 3 * _CLASS_MATRIX * size**2,
            "apricot",
        ),
    },
    "grad_match": {"stored": Textbook(pursue, lambda size: 2 * 4 * GRADIENT * size / CLASSES, "scipy")},
    "glister": {"stored": Textbook(follow, lambda size: 4 * GRADIENT * size)},
    "influence": {"stored": Textbook(cancel, lambda size: 2 * 4 * GRADIENT * size)},
    "deepfool": {"batch": Textbook(perturb)},
}


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(method: str, variant: str, size: int, kind: str, limit: int) -> dict[str, Any]:
    """One case, in this process, which ends after `limit` seconds of it."""
    import torch

    run = TEXTBOOKS[method][variant].run if variant != "ours" else None
    small = make(400, kind)
    if run is None:
        ours(method, small, small)
    else:
        run(small, 40)
    data, validation = make(size, kind), make(size // 10, "normal", seed=1)
    count = max(1, int(KEEP * size + 0.5))
    allowed = int(time.process_time()) + 1 + limit
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 10))
    before, started, wall = _reset_peak(), time.process_time(), time.perf_counter()
    calls, seconds, peak, index = 0, 0.0, 0, torch.empty(0)
    while seconds < _SHORTEST:
        index = ours(method, data, validation) if run is None else run(data, count)
        peak = peak or _kilobytes("VmHWM") - before  # of the first call
        calls, seconds = calls + 1, time.process_time() - started
    wall = time.perf_counter() - wall
    return {
        "method": method,
        "variant": variant,
        "size": size,
        "seconds": seconds / calls,
        "wall_seconds": wall / calls,
        "megabytes": peak / 1024,
        "threads": torch.get_num_threads(),
        "index": sorted(index.tolist()),
    }


def case(method: str, variant: str, size: int, kind: str, limit: int) -> dict[str, Any]:
    """One case in a process of its own; where there is none, "note" says why."""
    note = None
    if variant != "ours":
        textbook = TEXTBOOKS[method][variant]
        if textbook.needs and not importlib.util.find_spec(textbook.needs):
            note = f"{textbook.needs} is not installed"
        elif textbook.bytes(size) > _kilobytes("MemAvailable", "/proc/meminfo") * 1024 / 2:
            note = f"needs {textbook.bytes(size) / 2**30:.0f} GiB, more than half of the free memory"
    if note is None:
        command = [sys.executable, __file__, "--limit", f"{limit}", "--case", f"{method}:{variant}:{size}:{kind}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != -signal.SIGXCPU:
            done.check_returncode()
            return json.loads(done.stdout)
        return {"method": method, "variant": variant, "size": size, "stopped_after": limit}
    return {"method": method, "variant": variant, "size": size, "note": note}


def compare(method: str, size: int, kind: str, limit: int) -> list[dict[str, Any]]:
    """Run and print one selector and its textbooks."""
    rows: list[dict[str, Any]] = []
    chosen: set[int] = set()
    for variant in ["ours", *TEXTBOOKS[method]]:
        patience = min(limit, max(60, int(10 * rows[0]["seconds"]))) if rows else 10 * limit
        row = case(method, variant, size, kind, patience)
        index = set(row.pop("index", []))
        chosen = chosen or index
        if rows and index:
            row["same"] = len(chosen & index) / len(index)
            row["times_faster"] = row["seconds"] / rows[0]["seconds"]
            row["times_smaller"] = row["megabytes"] / max(rows[0]["megabytes"], 1.0)
        if "stopped_after" in row:
            row["note"] = f"stopped after {row['stopped_after']} s"
            if rows and row["stopped_after"] > rows[0]["seconds"]:
                row["note"] += f": at least {row['stopped_after'] / rows[0]['seconds']:.1f} times ours"
        rows.append(row)
        print(shown(row), flush=True)
        if "seconds" not in rows[0]:
            break
    return rows


def shown(row: dict[str, Any]) -> str:
    start = f"{row['method']:21} {row['variant']:11} {row['size']:6.0e} "
    if "note" in row:
        return start + f"{'-':>9} {row['note']}"
    start += f"{row['seconds']:9.4f} {row['megabytes']:7.0f}"
    if "same" not in row:
        return start
    return start + f" {row['same']:5.2f} {row['times_faster']:7.1f} {row['times_smaller']:7.1f}"


def surroundings() -> dict[str, Any]:
    """Hardware and versions; what else runs on it."""
    names = ["torch", "numpy", "scipy", "submodlib-py", "apricot-select"]
    found = {name: version for name in names if (version := _version(name))}
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "device": "cpu",
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "memory_gib": round(_kilobytes("MemTotal", "/proc/meminfo") / 2**20),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **found,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
    parser.add_argument("--methods", default=",".join(TEXTBOOKS), help="comma-separated selectors")
    parser.add_argument("--data", default="normal", choices=["normal", "clusters", "manifold"])
    parser.add_argument("--limit", type=int, default=300, help="CPU seconds a textbook may take")
    parser.add_argument("--out", type=Path, help="JSON file for the rows; others in it stay")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        method, variant, size, kind = arguments.case.split(":")
        print(json.dumps(measure(method, variant, int(size), kind, arguments.limit)))
        return
    sizes = [int(float(text)) for text in arguments.sizes.split(",")]
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out and arguments.out.exists() else []
    print(f"{'method':21} {'variant':11} {'N':>6} {'seconds':>9} {'MB':>7} {'same':>5} {'faster':>7} {'smaller':>7}")
    for size in sizes:
        for method in arguments.methods.split(","):
            rows = [row for row in rows if (row["method"], row["size"]) != (method, size)]
            rows += compare(method, size, arguments.data, arguments.limit)
            if arguments.out:
                result = {**surroundings(), "data": arguments.data, "keep": KEEP, "features": WIDTH, "rows": rows}
                arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
