"""One rank's share of a large catalog: memory of its state, time to record, select, and save.

    python benchmarks/scale.py [--rows 1e6] [--ranks 8] [--processes 0] [--keep 0.3]

By default one process stands for one of `--ranks` ranks: it owns rows / ranks rows, in shards of 65,536, and selects
among them alone. With `--processes P`, P gloo processes own all rows together, and the bytes that each hands to
collectives are counted. Beside it stands the replicated book: a pruner of a size, in one process that holds all rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

SHARD = 1 << 16


def measure(rows: int, keep: float, folder: str | None) -> dict[str, Any]:
    """What a rank needs for its rows: two epochs of a pruner, the second of which is pruned."""
    import torch

    import dataprune

    shards = [SHARD] * (rows // SHARD) + [rows % SHARD] * bool(rows % SHARD)
    size = rows if folder is None else dataprune.Catalog(shards)
    before = _resident()
    pruner = dataprune.loss(size, keep=keep, epochs=4)
    pruner.select(0)
    result: dict[str, Any] = {"rows": rows, "state_mb": (_resident() - before) / 1e6}
    positions = range(0, rows) if folder is None else range(pruner.first, pruner.stop)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(positions.start)
    for start in range(positions.start, positions.stop, SHARD):
        index = torch.arange(start, min(start + SHARD, positions.stop))
        pruner.update(index, torch.rand(len(index), generator=generator))
    started = time.perf_counter()
    pruner.sync()
    result["flush_s"] = time.perf_counter() - started
    started = time.perf_counter()
    selected = len(pruner.select(1))
    result |= {"select_s": time.perf_counter() - started, "selected": selected}
    started = time.perf_counter()
    if folder is not None:
        pruner.save(folder)  # type: ignore[attr-defined]
        result["save_mb"] = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
    else:
        torch.save(pruner.state_dict(), file := Path(tempfile.mkdtemp()) / "pruner.pt")
        result["save_mb"] = file.stat().st_size / 1e6
        file.unlink()
    result["save_s"] = time.perf_counter() - started
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return result


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _alone(pipe: Any, rows: int, keep: float, sharded: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pipe.send(measure(rows, keep, folder if sharded else None))


def _together(pipe: Any, rank: int, processes: int, store: str, rows: int, keep: float) -> None:
    import torch.distributed as dist

    sent = 0

    def counted(call: Any) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal sent
            sent += sum(part.numel() * part.element_size() for part in args if hasattr(part, "element_size"))
            return call(*args, **options)

        return counting

    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=processes)
    dist.all_gather, dist.all_reduce = counted(dist.all_gather), counted(dist.all_reduce)
    folder = Path(store) / "saved"
    pipe.send(measure(rows, keep, str(folder)) | {"rank": rank, "sent_mb": sent / 1e6})
    dist.destroy_process_group()


def _run(target: Any, *arguments: Any) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments))
    process.start()
    return process, here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6, help="rows of all ranks")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--keep", type=float, default=0.3)
    options = parser.parse_args()
    rows, share = int(options.rows), int(options.rows) // options.ranks
    with tempfile.TemporaryDirectory() as store:
        if options.processes:
            several = range(options.processes)
            runs = [_run(_together, rank, options.processes, store, rows, options.keep) for rank in several]
            names = [f"rank {rank} of {options.processes}" for rank in several]
        else:
            runs, names = [_run(_alone, share, options.keep, True)], [f"one of {options.ranks} ranks"]
        for name, (process, pipe) in zip(names, runs, strict=True):
            print(json.dumps({"of": name} | pipe.recv()))
            process.join()
    process, pipe = _run(_alone, rows, options.keep, False)
    print(json.dumps({"of": "replicated"} | pipe.recv()))
    process.join()


if __name__ == "__main__":
    main()
