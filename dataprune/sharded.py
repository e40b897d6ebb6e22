"""A pruner for data in shards: each rank owns whole shards, keeps the scores of their rows, and never sends one."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, Never

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import checks, criteria, distributed, radix, shard_files, shard_keys
from .catalog import Catalog
from .criteria import Criterion
from .epoch import NOBODY
from .errors import CheckpointError, PlanError, UsageError
from .hashing import Key
from .owned import MOST_DRAWN, OwnedBook, OwnedEpoch
from .plan import brief, check_plan
from .policies import Policy
from .pruner import _ORDER, Pruner
from .schedules import Schedule
from .scores import rounds
from .selection import Selection

SCHEMA = 1  # of a rank's state
_PENDING = 1 << 20  # records on the CPU that wait for the book, at most
_CRITERION = "criterion."  # before the names of a criterion's own state
_NOTHING = torch.empty(0, dtype=torch.int64), torch.empty(0)


class ShardedPruner(Pruner):
    """A `Pruner` whose ranks own whole shards: each keeps, selects and trains its own rows, and no score is exchanged.

    A recipe makes one where it is given a `Catalog` in place of a size, as in
    `dataprune.memory(catalog, keep=..., epochs=...)`. The ranks' selections together are the same for any number of
    ranks. A rank keeps 8 bytes of each row that it owns.
    The policies are `top_k`, `bottom_k`, `uniform`, `least_drawn` and `proportional`, without `balance`.

    An iteration, of `batches` or of `prune_stream`, hands out what its epoch has not trained yet. A sample counts once
    an epoch. Ranks get equally many samples: those that own fewer selected ones than the others repeat some.

    Args:
        catalog: the shards; ids count their rows.
        criterion, policy, schedule, epochs, smoothing, every, seed: as for `Pruner`.
    Attributes:
        catalog: as given.
        shards: range of the shards that this rank owns.
        book: scores and draws of the rows that this rank owns, in the order of their ids.
    Raises:
        UsageError: for other policies, and where there are fewer shards than ranks.
        ValueError: as `Pruner`.
    """

    book: OwnedBook
    _epoch: OwnedEpoch

    def __init__(
        self,
        catalog: Catalog,
        criterion: Criterion,
        policy: Policy,
        schedule: Schedule,
        *,
        epochs: int,
        smoothing: float = 1.0,
        every: int = 1,
        seed: int = 0,
    ):
        shard_keys.check_policy(policy)
        self.catalog = catalog
        self.shards = catalog.owned(distributed.rank(), distributed.world_size())
        self.first, self.stop = catalog.ids(self.shards[0])[0], catalog.ids(self.shards[-1])[1]
        self._totals: dict[str, Any] = {}  # of all ranks, as of the last selection
        super().__init__(
            len(catalog), criterion, policy, schedule, epochs=epochs, smoothing=smoothing, every=every, seed=seed
        )

    def __repr__(self) -> str:
        owned = f"shards {self.shards.start} to {self.shards.stop - 1} of {len(self.catalog.rows)}"
        return f"ShardedPruner({self.size}, {owned}, {brief(self.criterion)}, {brief(self.policy)})"

    # -- selecting --------------------------------------------------------------------------------------------------

    def select(self, epoch: int) -> Selection:
        """The samples of an epoch that this rank owns. Collective: with several ranks, all must call it.

        Args:
            epoch: 0-based.
        Returns:
            Their ids, ascending.
        Raises:
            ValueError: if epoch is no whole number, negative or not below `epochs`.
            PlanError: if what was trained is not what was planned, or the ranks disagree.
        """
        super().select(epoch)
        return Selection.of(np.flatnonzero(self.book.selected) + self.first)

    def part(self, epoch: int) -> tuple[Bool[np.ndarray, " n"], int]:
        """What this rank has still to train of an epoch, and how many samples every rank hands out. Collective.

        Args:
            epoch: 0-based.
        Returns:
            Which of the rows that it owns, in the order of their ids; and the most that any rank has of them.
        Raises:
            PlanError: as `select`, and if a rank owns no selected sample at all.
        """
        super().select(epoch)
        self._flush(epoch)
        left = self.book.selected & (self._epoch.owner == NOBODY)
        own = [int(np.count_nonzero(self.book.selected)), int(np.count_nonzero(left))]
        counts = [part.header for part in distributed.exchange(own, *_NOTHING)]
        if (idle := [rank for rank, (selected, _) in enumerate(counts) if not selected]) and self.size:
            raise PlanError(
                f"rank {idle[0]} owns no selected sample in epoch {epoch}, and would wait for the others: keep more, "
                "or shuffle the rows before they are written, so that all shards are alike"
            )
        length = max(rest for _, rest in counts)
        self._totals["padded"] = sum(length - rest for _, rest in counts)
        self._epoch.goal = self._epoch.share = self.recorded + length
        return left, length

    def batches(
        self, epoch: int, batch_size: int, *, drop_last: bool = True, device: torch.device | str | None = None
    ) -> Iterator[Int[Tensor, " b"]]:
        """Ids of an epoch's batches that this rank trains, in random order. Collective, where it is begun.

        Args:
            epoch, batch_size, drop_last, device: as for `Pruner.batches`.
        Raises:
            ValueError: if an epoch is smaller than one batch, and would be dropped whole.
            PlanError: as `part`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        left, length = self.part(epoch)
        if drop_last and not self.recorded and not self._epoch.started():
            checks.check_batch_size(f"epoch {epoch}", length, batch_size)
        key = Key(self.seed + _ORDER, epoch)
        order = _shuffled(np.flatnonzero(left) + self.first, key)
        if len(order) < length:
            own = np.flatnonzero(self.book.selected) + self.first
            again = (_shuffled(own, key, draw) for draw in range(1, 2 + length // len(own)))
            order = torch.cat([order, *again])[:length]
        tail = length % batch_size if drop_last else 0
        self.begin(epoch, tail=tail)
        order = order[: length - tail]
        return iter(order.to(device).split(batch_size) if len(order) else ())

    def sync(self) -> None:
        """Take in what this rank has recorded. Other ranks are not asked."""
        if (problem := self._take_in()) is not None:
            raise problem

    def update(
        self, index: Int[Tensor, " b"], losses: Float[Tensor, " b"], outputs: Any = None, targets: Any = None
    ) -> None:
        super().update(index, losses, outputs, targets)
        pending, score = self._epoch.waiting()
        if len(pending) >= _PENDING and pending.is_cpu and score.is_cpu:
            self.sync()

    def bind(self, dataset: Any) -> Never:
        """Refuse, with UsageError: loaders and trainers spread positions over the ranks, not shards."""
        raise UsageError(
            "this pruner is of a Catalog, whose ranks train the shards that they own: iterate prune_stream(dataset, "
            "pruner), or pruner.batches and read the rows by their ids. prune_loader and trainers take a pruner of a "
            "size: give the recipe len(dataset)"
        )

    def remaining(self, epoch: int) -> Never:
        """Refuse, as `bind`."""
        self.bind(None)

    def order(self, epoch: int, rank: int, world_size: int, **options: Any) -> Never:
        """Refuse, as `bind`."""
        self.bind(None)

    # -- looking ----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """How the selection goes on all ranks, as of the last `select`; no rank is asked.

        Returns:
            As `Pruner.stats`, and `padded`: samples that ranks repeat so that all train equally many, None before the
            epoch is begun. A sample drawn more than 65,535 times counts as drawn so often.
        """
        if self.selected is None:
            return super().stats() | {"padded": None}
        return {"epoch": self.selected} | self._totals

    # -- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What this rank needs to resume, with the same number of ranks; `save` writes what any number can load."""
        self.sync()
        columns = self._columns()
        columns["drawn"] = columns["drawn"].view(np.int16)  # torch does not pickle uint16
        return self._notes() | {name: torch.from_numpy(array.copy()) for name, array in columns.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` of this rank left off. Every rank must load its own.

        Raises:
            CheckpointError: if it is of other data, arguments or shards.
        """
        self._check(state)
        saved = state.get("shards")
        if saved != [self.shards.start, self.shards.stop]:
            raise CheckpointError(
                f"this state is of shards {saved}, rank {distributed.rank()} owns {list(self.shards)}: load it on the "
                "rank that saved it, with as many ranks; a folder that pruner.save wrote is loaded by any number"
            )
        columns = {name: value.cpu().numpy().copy() for name, value in state.items() if isinstance(value, Tensor)}
        columns["drawn"] = columns["drawn"].view(np.uint16)
        self._take_up(state, columns)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write one safetensors file a shard, which any number of ranks can load. Collective.

        Args:
            folder: of this checkpoint alone; it is made where it is missing.
        """
        self._flush(-1)
        parts = []
        for shard in self.shards:
            first, stop = (place - self.first for place in self.catalog.ids(shard))
            parts.append(
                (shard, {name: column[first:stop] for name, column in self._columns().items() if "." not in name})
            )
        trained = distributed.total(np.array([np.count_nonzero(self._epoch.owner != NOBODY)]))
        own = {name: column.tolist() for name, column in self._columns().items() if "." in name}
        notes = self._notes() | {"stamp": f"{self.selected}-{trained[0]}", "criterion": own}
        shard_files.write(folder, parts, notes)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Take up what `save` wrote, with any number of ranks; every rank must load.

        The rows of a file that is missing or damaged count as unseen, and are selected first; a warning names it.

        Raises:
            CheckpointError: if the folder is of other data or arguments, or was not written to its end.
        """
        notes = shard_files.notes(folder)
        self._check(notes)
        full = notes["epoch"] is not None and notes["epoch"] < self.epochs and self.counts[notes["epoch"]] == self.size
        parts = [shard_files.read(folder, shard, self.catalog, notes["stamp"]) for shard in self.shards]
        lost = {
            "score": np.float32(np.nan),
            "drawn": np.uint16(0),
            "selected": np.bool_(full),
            "trained": np.bool_(False),
        }
        columns = {
            name: np.concatenate(
                [
                    np.full(self.catalog.rows[shard], blank) if part is None else part[name]
                    for shard, part in zip(self.shards, parts, strict=True)
                ]
            )
            for name, blank in lost.items()
        }
        self._take_up(notes, columns | {name: np.array(value) for name, value in notes["criterion"].items()})

    # -- inside -----------------------------------------------------------------------------------------------------

    def _check(self, notes: dict[str, Any]) -> None:
        """Raise CheckpointError unless a state is of this data and these arguments."""
        checks.check_schema(notes, "sharded pruner", SCHEMA, "totals")
        checks.check_data(notes["data"], self.catalog.fingerprint)
        check_plan(notes["plan"], self._plan)

    def _notes(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "size": self.size,
            "seed": self.seed,
            "plan": json.dumps(self._plan),
            "data": self.catalog.fingerprint,
            "shards": [self.shards.start, self.shards.stop],
            "epoch": self.selected,
            "complete": self.selected is not None and self._epoch.complete(None),
            "totals": self._totals,
        }

    def _columns(self) -> dict[str, np.ndarray]:
        own = criteria.state_of(self.criterion).items()
        return {
            "score": self.book.score.numpy(),
            "drawn": self.book.drawn.numpy(),
            "selected": self.book.selected,
            "trained": self._epoch.owner != NOBODY,
            **{_CRITERION + name: value.cpu().numpy() for name, value in own},
        }

    def _take_up(self, notes: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        own = {name: torch.from_numpy(value) for name, value in columns.items() if name.startswith(_CRITERION)}
        criteria.load_state(self.criterion, {name.removeprefix(_CRITERION): value for name, value in own.items()})
        self.book.score = torch.from_numpy(columns["score"])
        self.book.drawn = torch.from_numpy(columns["drawn"])
        self.book.selected = columns["selected"]
        values = criteria.values(self.criterion)
        self._epoch = OwnedEpoch(self.first, self.book.size, values, notes["epoch"])
        self._epoch.owner[columns["trained"]] = 0
        self._epoch.done = notes["complete"]
        self._epoch.share = self._share()
        self._selection = None if notes["epoch"] is None else Selection.of([])
        self._totals = dict(notes["totals"])
        self.seed = notes["seed"]
        self._recorded = bool(self.book.score.isfinite().any())
        self.loads += 1

    def _empty(self) -> tuple[OwnedBook, OwnedEpoch]:
        size = self.stop - self.first
        return OwnedBook(size), OwnedEpoch(self.first, size, criteria.values(self.criterion))

    def _share(self) -> int:
        return self.size  # until `part` knows better

    def _choose(self, epoch: int) -> Selection:
        """Mark what is selected in the book; a pruner of shards holds no list of it."""
        count, book = self.counts[epoch], self.book
        key = Key(self.seed, self._first_pruned + self._block(epoch) * self.every)
        if count == self.size:
            chosen = np.ones(book.size, dtype=np.bool_)
        else:
            keys = shard_keys.KEYS[type(self.policy)](self, key)
            chosen = radix.highest(keys, book.size, count, key, first=self.first, reduce=distributed.total)
        both = np.count_nonzero(chosen & book.selected)
        book.selected = chosen
        book.draw(torch.from_numpy(np.flatnonzero(chosen)))
        own = [np.count_nonzero(chosen), both, *np.bincount(book.drawn.numpy(), minlength=MOST_DRAWN + 1)]
        selected, both, *draws = distributed.total(np.array(own, dtype=np.int64)).tolist()
        overlap = None if self.selected is None else both / selected
        most = max(times for times, samples in enumerate(draws) if samples)
        self._totals = {"reached_keep": selected / self.size, "overlap": overlap, "never_seen": draws[0]}
        self._totals |= {"draws": draws[: most + 1], "padded": None}
        return Selection.of([])

    def _replace(self, selection: Selection) -> None:
        self._hold(selection)

    def _check_trained(self, following: int) -> None:
        if not self.policy.reads_scores or self.selected is None or not self._epoch.goal:
            return
        missing = np.flatnonzero(self.book.selected & (self._epoch.owner == NOBODY))
        if not self._recorded and not self._epoch.started():
            checks.warn_unrecorded(f"batches of epoch {self.selected} were handed out")
        elif self._epoch.complete(None) and len(missing) > (self._epoch.tail or 0):
            self.book.give_up(torch.from_numpy(missing))  # it cannot be read, and would come first for ever

    def _take_in(self) -> Exception | None:
        """Move what was recorded into the book, each sample once; returns what is wrong with it."""
        index, score = self._epoch.pending()
        if (problem := self._logits.problem()) is not None:
            return problem
        try:
            self._epoch.check_owned(index + self.first)
            checks.check_scores(score)
        except (IndexError, ValueError) as error:
            return error
        first = next(rounds(index, self.book.size))  # a sample that is repeated counts where it first occurs
        index, score = index[first], score[first]
        fresh = torch.from_numpy(self._epoch.owner[index.numpy()] == NOBODY)
        strange = np.count_nonzero(~self.book.selected[index.numpy()])
        if self.selected is not None and strange:
            return PlanError(
                f"{strange} of {len(index)} samples recorded in epoch {self.selected} were not selected for it: the "
                "loop begins the next epoch before it has recorded the last batch of this one, or passes other ids "
                "than those that came with the batch"
            )
        part = distributed.Part([], index[fresh], score[fresh])
        self._epoch.flush(self.book, self.smoothing, [part], None)
        return None

    def _flush(self, epoch: int) -> None:
        problem = self._take_in()
        plan = f"{json.dumps(self._plan)} {self.seed} {self.catalog.fingerprint}"
        running = -1 if self.selected is None else self.selected
        header = [epoch, zlib.crc32(plan.encode()), running, 0, int(problem is not None)]
        headers = [part.header for part in distributed.exchange(header, *_NOTHING)]
        if problem is not None:
            raise problem
        checks.check_ranks(headers)


def _shuffled(ids: np.ndarray, key: Key, draw: int = 0) -> Int[Tensor, " k"]:
    """In a random order, in which two samples stay as they are where others are left out."""
    positions = torch.from_numpy(ids)
    return positions[key.hash(positions, draw).argsort()]
