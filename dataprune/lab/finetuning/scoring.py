"""Scores of all rows, part by part: a finished part is on disk and is not scored again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ... import files, finetuning
from ...errors import CheckpointError, DataError
from .chats import Chat, answers
from .model import Model, Tokens
from .rows import Row

PART = 512  # rows
_REMEDY = "give another --out, or delete this folder to score anew"


@dataclass
class Cost:
    """What scoring has forwarded."""

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, texts: Sequence[Sequence[int]]) -> None:
        """Count a pass over texts."""
        self.rows += sum(1 for text in texts if text)
        self.tokens += sum(map(len, texts))


class Scorer(Protocol):
    """Scores rows: (n, width) values, NaN where a row cannot be scored."""

    width: int
    cost: Cost

    def __call__(self, rows: Sequence[Any]) -> Tensor: ...  # of what `read` returned

    def read(self, chat: Chat) -> Any:
        """What is kept of a chat until its part is scored, such as its tokens."""
        ...


class Length:
    """Tokens of all answers."""

    width = 1

    def __init__(self, tokens: Tokens):
        self.tokens, self.cost = tokens, Cost()

    def read(self, chat: Chat) -> int:
        return sum(map(self.tokens.count, answers(chat)))

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float32)[:, None]


class Rds:
    """Cosine of a chat with each query."""

    def __init__(self, model: Model, queries: Sequence[Chat]):
        self.model, self.cost, self.width = model, Cost(), len(queries)
        texts = [self.read(query) for query in queries]
        if not all(texts):
            raise DataError("a query has no tokens: leave it out")
        self.cost.add(texts)
        self.queries = model.embeddings(texts)

    def read(self, chat: Chat) -> list[int]:
        return self.model.tokens.whole(chat)

    def __call__(self, rows: Sequence[list[int]]) -> Tensor:
        self.cost.add(rows)
        values = torch.full((len(rows), self.width), torch.nan)
        if places := [place for place, row in enumerate(rows) if row]:
            means = self.model.embeddings([rows[place] for place in places])
            values[torch.tensor(places)] = finetuning.similarity(means, self.queries)
        return values


class Ifd:
    """Loss of the last answer after its prompt, over its loss alone."""

    width = 1

    def __init__(self, model: Model):
        self.model, self.cost = model, Cost()

    def read(self, chat: Chat) -> tuple[list[int], list[int], int, int]:
        """The two texts, with the places at which the answer begins; empty where the prompt leaves no room."""
        prompt, opening, answer = self.model.tokens.prompt_and_answer(chat)
        answer = answer[: max(0, self.model.tokens.max_length - len(prompt))]
        skipped = 0 if opening and prompt else 1  # a first token that nothing comes before is left out of both
        if len(answer) <= skipped:
            return [], [], 0, 0
        return prompt + answer, opening + answer, len(prompt) + skipped, len(opening) + skipped

    def __call__(self, rows: Sequence[tuple[list[int], list[int], int, int]]) -> Tensor:
        after_prompt, alone, starts, own_starts = (list(column) for column in zip(*rows))
        self.cost.add(after_prompt)
        self.cost.add(alone)
        losses = self.model.answer_losses(after_prompt, starts)
        return finetuning.ifd(losses, self.model.answer_losses(alone, own_starts))[:, None]


def identify(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what a folder of scores is of; CheckpointError where it is of something else."""
    path = folder / "scoring.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, dict(identity))
        return
    former = files.read_json(path)
    for name, value in identity.items():
        if former.get(name) != value:
            raise CheckpointError(f"{folder} was scored with {name} {former.get(name)}, not {value}: {_REMEDY}")


def score(
    chats: Iterable[tuple[Row, Chat | None, str]],
    scorer: Scorer,
    folder: Path,
    size: int,
    *,
    skip_broken: bool = False,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[np.ndarray, Cost]:
    """Score all rows, or those of the parts that are missing.

    Returns:
        (width, size) float32, memory-mapped; and the cost of all parts.
    Raises:
        DataError: naming the row, if it does not fit the chat template, unless `skip_broken`.
    """
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    of, number, rows = -(-size // PART), 0, iter(chats)
    own = scorer.cost
    spent = Cost(own.rows, own.tokens)  # of the queries
    while part := list(_kept(islice(rows, PART), scorer, None if _part(parts, number).exists() else skip_broken)):
        if not _part(parts, number).exists():
            started, before = time.perf_counter(), Cost(own.rows, own.tokens)
            values = torch.full((len(part), scorer.width), torch.nan)
            places = [place for place, read in enumerate(part) if read is not None]
            if places:
                values[torch.tensor(places)] = scorer([part[place] for place in places])
            cost = [own.rows - before.rows, own.tokens - before.tokens, time.perf_counter() - started]
            content = save({"scores": values}, metadata={"dataprune": json.dumps(cost)})
            files.write_bytes(_part(parts, number), content)
            on_part(number + 1, of)
        number += 1
    path = folder / "scores.npy"
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(scorer.width, size))
    for number in range(of):
        values, (forwarded, tokens, seconds) = _read(_part(parts, number), scorer.width)
        table[:, number * PART : number * PART + len(values)] = values.numpy().T
        spent = Cost(spent.rows + forwarded, spent.tokens + tokens, spent.seconds + seconds)
    return table, spent


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _kept(rows: Iterable[tuple[Row, Chat | None, str]], scorer: Scorer, skip: bool | None) -> Iterator[Any]:
    """What the scorer reads of each row, None of a broken one; with `skip` None, of a finished part, of all."""
    for row, chat, _ in rows:
        if chat is None or skip is None:
            yield None
            continue
        try:
            yield scorer.read(chat)
        except DataError as error:
            if not skip:
                raise DataError(f"{row.place} {error}; --skip-broken leaves such rows out and counts them") from error
            yield None


def _read(path: Path, width: int) -> tuple[Tensor, tuple[int, int, float]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            values, cost = file.get_tensor("scores"), json.loads(file.metadata()["dataprune"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and run again") from error
    if values.shape[1] != width:
        raise CheckpointError(f"{path} is of {values.shape[1]} queries, not {width}: {_REMEDY}")
    return values, tuple(cost)
