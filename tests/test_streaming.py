"""Streams of shards: each selected sample once an epoch, whatever workers, ranks and interruptions."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import Catalog, DataError, UsageError, prune_stream
from dataprune.sharded import ShardedPruner

ROWS = [30, 25, 0, 41, 17, 30, 28]
SIZE, EPOCHS, BATCH = sum(ROWS), 3, 4
NAMES = [(shard, row) for shard, count in enumerate(ROWS) for row in range(count)]


def build(method: str = "loss", **options: Any) -> Any:
    return dataprune.METHODS[method](
        Catalog(ROWS), **{"keep": 0.4, "epochs": EPOCHS, "seed": 3, "warmup": 0, **options}
    )


def opened(shard: int) -> list[tuple[int, int]]:
    return [(shard, row) for row in range(ROWS[shard])]


def lines(shard: int) -> Iterator[tuple[int, int]]:
    yield from opened(shard)


def train(pruner: ShardedPruner, batches: Any, steps: int | None = None) -> list[int]:
    """The ids of a loop, or of its first steps; each sample must be that of its id."""
    trained: list[int] = []
    for step, (ids, samples) in enumerate(batches):
        if step == steps:
            break
        assert list(zip(*(part.tolist() for part in samples), strict=True)) == [NAMES[id] for id in ids.tolist()]
        pruner.update(ids, ids.float() % 11)
        trained += ids.tolist()
    return trained


def loader(stream: Any, workers: int) -> Any:
    """Its workers are forked: those of the pool's processes would be spawned, and cannot import this file."""
    return DataLoader(stream, BATCH, num_workers=workers, multiprocessing_context="fork" if workers else None)


def run(rank: int, world_size: int, workers: int, kills: int, folder: str | None = None) -> list[list[int]]:
    """What is trained in each epoch, where the run is interrupted several times in each."""
    pruner = build()
    if folder is not None:
        pruner.load(folder)
    stream = prune_stream(opened, pruner, window=7)
    epochs: list[list[int]] = []
    for epoch in range(pruner.epoch, EPOCHS):
        trained = []
        for _ in range(kills):
            stream.set_epoch(epoch)
            trained += train(pruner, loader(stream, workers), steps=2)
            state = pickle.loads(pickle.dumps(stream.state_dict()))
            pruner = build()
            stream = prune_stream(opened, pruner, window=7)
            stream.load_state_dict(state)
            assert pruner.epoch == epoch
        stream.set_epoch(epoch)
        trained += train(pruner, loader(stream, workers))
        assert pruner.epoch == epoch + 1
        epochs.append(trained)
    return epochs


def begin(rank: int, world_size: int, folder: str) -> list[int]:
    pruner = build()
    stream = prune_stream(opened, pruner)
    stream.set_epoch(0)
    trained = train(pruner, DataLoader(stream, batch_size=BATCH), steps=3)
    pruner.save(folder)
    return trained


def expected() -> list[list[int]]:
    pruner = build()
    result = []
    for epoch in range(EPOCHS):
        result.append(pruner.select(epoch).index.tolist())
        train(pruner, DataLoader(prune_stream(opened, pruner), batch_size=BATCH))
    return result


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kills", [0, 3])
def test_every_selected_sample_once_an_epoch(workers: int, kills: int) -> None:
    assert [sorted(trained) for trained in run(0, 1, workers, kills)] == expected()


@pytest.mark.ddp
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ranks_train_their_shards_in_equally_many_batches(pool: Pool, workers: int) -> None:
    ranks = pool.run(run, workers, 2, world_size=2)
    for epoch, ids in enumerate(expected()):
        first, second = (rank[epoch] for rank in ranks)
        assert sorted({*first, *second}) == ids and set(first).isdisjoint(second)
        # three iterations are padded, each by less than the epoch's difference between the ranks
        assert len(first) == len(second)


@pytest.mark.ddp
def test_another_number_of_ranks_goes_on_in_the_middle_of_an_epoch(pool: Pool, tmp_path: Path) -> None:
    before = [id for part in pool.run(begin, str(tmp_path), world_size=2) for id in part]
    [rest, *later] = zip(*pool.run(run, 0, 0, str(tmp_path), world_size=3), strict=True)
    assert set(before).isdisjoint({id for part in rest for id in part if part.count(id) == 1} - set(before))
    for trained, ids in zip([[before, *rest], *later], expected(), strict=True):
        assert sorted({id for part in trained for id in part}) == ids


def test_samples_are_shuffled_within_a_window() -> None:
    ordered, mixed = ([id for id, _ in prune_stream(opened, build(), window=window)] for window in (1, 50))
    assert Counter(ordered) == Counter(mixed) and ordered != mixed
    shards = [Catalog(ROWS).locate(id)[0] for id in ordered]
    assert len(list(dict.fromkeys(shards))) == 6  # a shard is left when it is done
    assert sum(a != b for a, b in itertools.pairwise(shards)) == 5
    place = {id: number for number, id in enumerate(ordered)}
    assert max(abs(place[id] - number) for number, id in enumerate(mixed)) < 50


def test_epochs_have_other_orders() -> None:
    pruner = build("random", keep=1.0)
    orders = []
    for epoch in range(2):
        stream = prune_stream(opened, pruner, window=1)
        stream.set_epoch(epoch)
        orders.append([id for id, _ in stream])
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_whole_batches_are_handed_out() -> None:
    pruner = build(keep=0.5)  # 86 samples
    stream = prune_stream(opened, pruner, batch_size=8)
    sizes = [len(ids) for ids, _ in DataLoader(stream, batch_size=8)]
    assert sizes == [8] * 10
    pruner.update(ids := pruner.select(0).index[:80], torch.ones(len(ids)))
    assert pruner.epoch == 1


def test_what_is_not_selected_is_not_decoded_and_of_a_sequence_not_read() -> None:
    read: list[int] = []

    class Shard:
        def __init__(self, shard: int):
            self.shard = shard

        def __len__(self) -> int:
            return ROWS[self.shard]

        def __getitem__(self, row: int) -> int:
            read.append(Catalog(ROWS).ids(self.shard)[0] + row)
            return row

    decoded: list[Any] = []
    pruner = build()
    list(prune_stream(Shard, pruner))
    assert sorted(read) == pruner.select(0).index.tolist()
    samples = list(prune_stream(lines, build(), decode=lambda row: decoded.append(row) or row))
    assert [NAMES[id] for id, _ in samples] == [sample for _, sample in samples]
    assert len(decoded) == len(samples) == len(pruner.select(0))


def test_a_worker_that_is_spawned_gets_its_share_alone() -> None:
    pruner = build()
    stream = prune_stream(opened, pruner)
    stream.set_epoch(0)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.pruner is None and list(copy) == list(stream)
    with pytest.raises(UsageError, match="state_dict belongs into the main process"):
        copy.state_dict()


@pytest.mark.slow
def test_workers_that_were_not_told_of_an_epoch_say_so() -> None:
    stream = prune_stream(opened, build())
    with pytest.raises(UsageError, match=r"call stream.set_epoch"):
        list(DataLoader(stream, num_workers=1))


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def files(folder: Path, kind: str) -> Any:
    """A stream of one file a shard, that of the third empty left out."""
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    names = []
    for shard, count in enumerate(ROWS):
        rows = [{"shard": shard, "row": row} for row in range(count)]
        path = folder / f"{shard}.{kind}"
        if not count:
            continue
        names.append(str(path))
        if kind == "parquet":
            pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=9)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.load_dataset(
        kind.replace("jsonl", "json"), data_files={"train": names}, split="train", streaming=True,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


def of_files() -> ShardedPruner:
    pruner = dataprune.loss(Catalog([count for count in ROWS if count]), keep=0.4, epochs=2, warmup=0)
    assert isinstance(pruner, ShardedPruner)
    return pruner


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_files_of_datasets_are_shards(tmp_path: Path, kind: str) -> None:
    pruner = of_files()
    stream = prune_stream(files(tmp_path, kind), pruner, decode=lambda row: (row["shard"], row["row"]))
    samples = sorted(stream)
    assert [id for id, _ in samples] == pruner.select(0).index.tolist()
    assert [sample for _, sample in samples] == [NAMES[id] for id, _ in samples]


@pytest.mark.slow
def test_workers_share_files_of_datasets(tmp_path: Path) -> None:
    pruner = of_files()
    stream = prune_stream(files(tmp_path, "parquet"), pruner)
    stream.set_epoch(0)
    ids = [id for index, _ in DataLoader(stream, batch_size=4, num_workers=2) for id in index.tolist()]
    assert sorted(ids) == pruner.select(0).index.tolist()


def test_media_are_decoded_where_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    image = pytest.importorskip("PIL.Image")
    features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
    rows = {"image": [image.new("L", (4, 4), shade) for shade in range(20)], "y": list(range(20))}
    stored = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=4)
    opened_images = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda *args, **options: opened_images.append(1) or decode(*args, **options)
    )
    samples = list(prune_stream(stored, dataprune.random(Catalog([5] * 4), keep=0.25, epochs=1)))
    assert len(samples) == len(opened_images) == 5
    assert all(sample["image"].getpixel((0, 0)) == sample["y"] == id for id, sample in samples)


def test_streams_without_stable_ids_are_refused(tmp_path: Path) -> None:
    stream = files(tmp_path, "parquet")
    for other, name in (
        (stream.shuffle(seed=0), "BufferShuffled"),
        (stream.filter(bool), "Filtered"),
        (stream.map(dict), "Mapped"),
        (stream.take(3), "Take"),
    ):
        with pytest.raises(UsageError, match=rf"no ids that stay as they are \({name}\)"):
            prune_stream(other, of_files())
    assert prune_stream(stream.select_columns(["row"]), of_files()) is not None
    with pytest.raises(DataError, match="the stream has 6 shards, the catalog 7"):
        prune_stream(stream, build())


# -- refused ---------------------------------------------------------------------------------------------------------


def test_what_has_no_shards_is_refused() -> None:
    with pytest.raises(UsageError, match="a stream has no positions that all processes know"):
        prune_stream(opened, dataprune.loss(SIZE, keep=0.4, epochs=9))
    with pytest.raises(UsageError, match="the rows of a generator have no ids that stay"):
        prune_stream((row for row in range(9)), build())
    with pytest.raises(UsageError, match="TensorDataset has positions: use prune_loader"):
        prune_stream(TensorDataset(torch.zeros(SIZE)), build())
    with pytest.raises(ValueError, match="window must be a whole number of at least 1"):
        prune_stream(opened, build(), window=0)


def test_shards_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="has 3 rows, the catalog says"):
        list(prune_stream(lambda shard: [1, 2, 3], build()))
    with pytest.raises(DataError, match="has fewer rows, the catalog says"):
        list(prune_stream(lambda shard: iter([1]), build(keep=1.0)))
