"""Tables and sentences of docs/theory: counts of selections that were measured, and texts beside papers' tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from measured import accuracy, published, reproduced, results
from scipy import special, stats

from dataprune.lab.report.document import pipe_table as table
from dataprune.scores import PredictionBook

PANELS = ("Fashion-MNIST", "CIFAR-100")
GLUE = ("RTE", "CoLA", "SST-2", "STS-B", "MRPC", "QNLI", "MNLI", "QQP")
RIVALS = ("infobatch", "epsilon_greedy", "ucb")


def draw_counts() -> str:
    """How even the counts of selections are, most even first, from the record of EMP's Figure 1."""
    spread = {panel: dict(counts(panel)) for panel in PANELS}
    head = [f"{panel}: {title}" for panel in PANELS for title in ("s.d. of counts", "never again", "accuracy, %")]
    lines = []
    for arm in sorted(spread[PANELS[0]], key=lambda arm: spread[PANELS[0]][arm]):
        cells = []
        for panel in PANELS:
            deviation, once = spread[panel][arm]
            cells += [f"{deviation:.2f}", f"{100 * once:.0f} %", accuracy(reproduced("emp_figure1", panel, 0.1, arm))]
        lines.append([f"`{arm}`", *cells])
    return table(["", *head], lines)


def counts(panel: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """By arm: the standard deviation of a sample's count, and the share of samples selected once."""
    for curve in results("emp_figure1")["emp_figure1"]["kept"][panel]:
        samples = curve["samples"]  # by count, from 0
        total = sum(samples)
        mean = sum(count * share for count, share in enumerate(samples)) / total
        variance = sum((count - mean) ** 2 * share for count, share in enumerate(samples)) / total
        yield curve["arm"], (math.sqrt(variance), samples[1] / total)


def information_and_entropy() -> tuple[list[float], float]:
    """Rank correlations with the true information where p ~ Beta: of the estimate by draws, and of the entropy."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 1, 1000)
    evidence = np.exp(rng.uniform(np.log(5), np.log(20), 1000)) * (1 + 3 * 4 * mean * (1 - mean))  # more if uncertain
    pair = np.stack([mean, 1 - mean], axis=1)
    entropy = special.entr(pair).sum(1)
    digammas = special.digamma(evidence[:, None] * pair + 1) - special.digamma(evidence + 1)[:, None]
    truth = entropy + (pair * digammas).sum(1)
    estimates = []
    for draws in (5, 20, 100):
        book = PredictionBook(1000)
        for _ in range(draws):
            p = torch.from_numpy(rng.beta(*(evidence[:, None] * pair).T)).float()
            book.record(torch.arange(1000), torch.stack([p, 1 - p], dim=1), smoothing=1 / draws)
        estimates.append(book.score.numpy())
    *ranks, other = (float(np.asarray(stats.spearmanr(score, truth))[0]) for score in (*estimates, entropy))
    return ranks, other


def information() -> Iterator[str]:
    ranks, other = information_and_entropy()
    few, some, many = (f"{rank:.2f}" for rank in ranks)
    yield f"with the true information is {few}, {some} and {many} with 5, 20 and 100 draws"
    yield f"is −{abs(other):.2f} where uncertain samples have been trained more"


def texts_and_tables() -> str:
    cifar, mnli = published("emp_table1", "CIFAR-100"), published("emp_table3", "MNLI")
    windows, last = published("tdds_table5", "CIFAR-100"), published("tdds_table1", "CIFAR-100")
    emp, rival = mnli["emp"][2], max(mnli[name][2] for name in RIVALS)
    outer, both = windows["el2n + outer"][3], windows["tdds"][3]
    lower, cells = worse_with_more_steps()
    return table(
        ["the text says", "the table prints"],
        [
            [
                "EMP, section 4.1: lossless on CIFAR-100, even slightly higher than the baseline",
                f"Table 1: at most {max(cifar['emp']):.2f}, the baseline {cifar['full'][0]:.1f}",
            ],
            [
                "EMP, section 4.1: on MNLI at 70 % pruned at least 1 point ahead of other methods",
                f"Table 3: {emp:.2f}, ε-greedy {rival:.2f}: {emp - rival:.2f} points",
            ],
            [
                "TDDS, Table 5: TDDS is +1.80 above EL2N with windows at 80 % pruned",
                f"the same row: {both:.2f} and {outer:.2f}, that is +{both - outer:.2f}",
            ],
            [
                "TDDS, abstract: on CIFAR-100 with 10 % of the data more than 12.69 points above the baselines",
                f"Table 1: {last['tdds'][4]:.2f}, random {last['static_random'][4]:.2f}: "
                f"{last['tdds'][4] - last['static_random'][4]:.2f}, as its introduction says",
            ],
            [
                "TDDS, section 5.2: more training (Strategy-P) makes all methods better",
                f"Tables 1 and 2: lower in {lower} of the {cells} cells that both have",
            ],
        ],
    )


def worse_with_more_steps() -> tuple[int, int]:
    """Cells in which TDDS's Table 2 (more steps) is below its Table 1, and all that both tables have."""
    pairs = [
        (value, more)
        for data in ("CIFAR-10", "CIFAR-100")
        for method, values in published("tdds_table2", data).items()
        if method != "full" and method in published("tdds_table1", data)
        for value, more in zip(published("tdds_table1", data)[method][:3], values, strict=True)
    ]
    return sum(more < value for value, more in pairs), len(pairs)


def summary_and_paper() -> str:
    """What the summary of EMP says, typed from it, beside what the paper prints."""

    def printed(name: str, data: str, method: str, keep: int) -> str:
        emp, infobatch = published(name, data)[method][keep], published(name, data)["infobatch"][keep]
        return f"{emp:.2f} and {infobatch:.2f} (+{emp - infobatch:.2f})"

    best = sum(at_30(task)[0] > max(at_30(task)[2]) for task in GLUE)
    above = sum(at_30(task)[0] > at_30(task)[1] for task in GLUE)
    simclr = [published("emp_table4", data) for data in ("CIFAR-10", "CIFAR-100")]
    return table(
        ["the summary says", "the paper prints"],
        [
            [
                "CIFAR-100, ResNet-18, 70 % pruned: 76.2, InfoBatch 74.0 (+2.2)",
                f"Table 1: {printed('emp_table1', 'CIFAR-100', 'emp', 2)}",
            ],
            [
                "CIFAR-100, ResNet-50, 70 % pruned: 78.6, InfoBatch 76.1 (+2.5)",
                "no such table; ResNet-50 is pre-trained without labels, Table 4: "
                + printed("emp_table4", "CIFAR-100", "emp_contrastive", 2),
            ],
            [
                "ImageNet-1k, 70 % pruned: 73.6, InfoBatch 72.2 (+1.4)",
                f"Table 2: {printed('emp_table2', 'ImageNet-1k', 'emp', 1)}",
            ],
            [
                "GLUE, 30 % pruned: better on all tasks",
                f"Table 3: ahead of the other pruning methods on {best} of 8, of all the data on {above} of 8",
            ],
            [
                "SimCLR, 30 % pruned: better on all downstream tasks",
                "Table 4, two data sets: ahead of the other pruning methods, below all the data ("
                + ", ".join(f"{data['emp_contrastive'][0]:.2f} of {data['full'][0]:.2f}" for data in simclr)
                + ")",
            ],
        ],
    )


def at_30(task: str) -> tuple[float, float, list[float]]:
    """EMP, all the data, and the other pruning methods at 30 % pruned."""
    values = published("emp_table3", task)
    return values["emp"][0], values["full"][0], [values[name][0] for name in RIVALS]


def low_frequency() -> Iterator[str]:
    samples = results("emp_figure1")["emp_figure1"]["kept"][PANELS[0]][-1]["samples"]
    yield f"{sum(count * share for count, share in enumerate(samples)) / sum(samples):.1f} times on average"
    for panel in PANELS:
        last = {curve["arm"]: curve["loss"][-1] for curve in results("emp_figure3")["emp_figure3"]["kept"][panel]}
        yield f"on {panel} is ELFL {last['ELFL']:.2f}, `emp` {last['emp']:.2f}, `loss` {last['loss']:.2f}"


def text_and_tables() -> Iterator[str]:
    table1 = published("emp_table1", "CIFAR-100")
    others = [values for name, values in table1.items() if name not in ("emp", "full")]
    ahead = [emp - max(at or 0 for at in cells) for emp, *cells in zip(table1["emp"], *others, strict=True)]
    yield f"by at least {min(ahead):.1f} points on CIFAR-100 in Table 1"


TABLES: dict[str, Callable[[], str]] = {
    "draw_counts": draw_counts,
    "texts_and_tables": texts_and_tables,
    "summary_and_paper": summary_and_paper,
}
