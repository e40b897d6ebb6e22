"""The tables of docs/methods: what papers print of a method, from experiments/papers, and what was measured here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from measured import accuracy, compared, published

from dataprune.lab.report.document import pipe_table as table


def printed(*rows: tuple[str, str, str, str]) -> str:
    """What a paper prints at three shares pruned: (title, its table, data, method) of each line."""
    lines = []
    for title, name, data, method in rows:
        values = published(name, data)[method]
        digits = max(len(str(value).partition(".")[2]) for value in values)
        lines.append([title, *(f"{value:.{digits}f}" for value in values)])
    return table(["pruned %", "30", "50", "70"], lines)


def supervised(method: str) -> str:
    return printed(*((data, "emp_table1", data, method) for data in ("CIFAR-10", "CIFAR-100")))


def contrastive() -> str:
    arms = (
        ("", "emp_table4", "emp_contrastive"),
        (", InfoBatch", "emp_table4", "infobatch"),
        (", projections as features", "emp_table5", "projections"),
    )
    return printed(
        *((data + title, name, data, arm) for data in ("CIFAR-10", "CIFAR-100") for title, name, arm in arms)
    )


def contrastive_measured() -> str:
    methods, lines = ("short", "rs2", "emp_contrastive"), []
    for file, data, keeps in (
        ("contrastive_cifar100", "CIFAR-100", ("70", "50", "30")),
        ("contrastive_fashion", "Fashion-MNIST", ("70", "50", "30", "10", "05")),
    ):
        for keep in keeps:
            cells = [accuracy(compared(file, f"{file}_keep{keep}", method)) for method in methods]
            share = f"keep {int(keep) / 100:g}"
            lines.append([f"{data}, {share}" if keep == keeps[0] else share, *cells])
    return table(["", *(f"`{method}`" for method in methods)], lines)


METHODS = ("emp", "epsilon_greedy", "infobatch", "random", "static_random", "ucb")
TABLES: dict[str, Callable[[], str]] = {
    **{f"card_{method}": partial(supervised, method) for method in METHODS},
    "card_emp_contrastive": contrastive,
    "card_emp_contrastive_measured": contrastive_measured,
}
