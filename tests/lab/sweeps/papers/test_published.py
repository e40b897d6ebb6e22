"""Published numbers of the files against the papers' tables, which are written down here a second time, as printed."""

from __future__ import annotations

from collections import defaultdict

import pytest

pytest.importorskip("yaml", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")

from dataprune.lab.sweeps import papers
from dataprune.lab.sweeps.papers import experiment

# panels, share pruned in percent, and rows: the numbers of the first panel, then of the second ...; of Table 3 of EMP
# those of one share in all panels, then the rows of the next share. A single number is of all shares.
# Xiao et al., arXiv:2408.16031; Zhang et al., arXiv:2311.13613
TABLES = {
    "emp_table1": ("CIFAR-10 CIFAR-100", "30 50 70", """
        static_random 94.6 93.3 90.2 73.8 72.1 69.7
        contextual_diversity 95.0 94.3 90.8 74.2 72.3 70.3
        herding 92.2 88.0 80.1 73.1 71.8 69.6
        k_center 94.7 93.9 90.9 74.1 72.2 70.2
        least_confidence 95.0 94.5 90.3 74.2 72.3 69.8
        margin 94.9 94.3 90.9 74.0 72.2 70.2
        grand-4 95.3 94.6 91.2 74.6 71.4 68.8
        deepfool 95.1 94.1 90.0 74.2 73.2 69.8
        craig 94.8 93.3 88.4 74.4 71.9 69.7
        glister 95.2 94.0 90.9 74.6 73.2 70.4
        el2n-2 94.4 93.2 89.8 74.1 71.0 68.5
        el2n-20 95.3 95.1 91.9 77.2 72.1 -
        dp 94.9 93.8 90.8 77.2 73.1 -
        random 94.8 94.5 93.0 77.3 75.3 74.1
        epsilon_greedy 95.2 94.9 94.1 76.4 74.8 75.1
        ucb 95.3 94.7 93.9 77.3 75.3 74.8
        infobatch 95.6 95.1 94.7 78.2 78.1 76.5
        emp 95.37 95.23 95.04 79.53 79.44 78.63
        full 95.6 79.8
    """),
    "emp_table2": ("ImageNet-1k", "30 70", """
        static_random 72.15 68.52
        random 73.06 70.54
        ucb 72.97 68.59
        epsilon_greedy 74.10 69.28
        infobatch 74.59 72.51
        emp 74.79 72.77
        full 75.36
    """),
    "emp_table3": ("RTE CoLA SST-2 STS-B MRPC QNLI MNLI QQP", "30 50 70", """
        full 67.08 57.61 92.78 88.76 86.24 89.15 84.37 91.10
        infobatch 67.06 59.08 92.89 88.26 84.38 91.26 84.40 91.32
        epsilon_greedy 64.78 58.55 93.30 88.59 84.94 90.89 84.31 91.44
        ucb 64.33 57.41 93.08 88.63 84.78 90.14 84.25 91.54
        emp 66.33 58.96 93.18 88.79 85.56 91.24 84.27 91.61
        infobatch 68.21 58.12 92.86 88.85 84.94 90.55 84.24 91.35
        epsilon_greedy 68.17 60.39 93.31 88.26 85.33 90.11 84.14 91.25
        ucb 68.88 57.61 93.98 88.10 82.61 88.64 84.17 90.69
        emp 68.43 59.17 93.74 89.11 85.61 91.22 84.25 91.53
        infobatch 64.67 58.21 92.52 87.38 81.65 89.12 82.18 91.02
        epsilon_greedy 64.94 56.59 92.63 88.49 85.09 89.54 82.53 90.68
        ucb 63.66 55.69 92.86 87.25 45.83 88.23 79.94 89.21
        emp 65.67 58.47 93.11 88.41 85.75 90.19 83.10 91.33
    """),
    "emp_table4": ("CIFAR-10 CIFAR-100", "30 50 70", """
        epsilon_greedy 82.01 79.98 76.91 53.11 49.89 42.72
        ucb 81.37 79.24 71.85 52.50 49.34 42.15
        infobatch 83.09 81.39 79.05 55.21 50.56 46.01
        emp_contrastive 83.19 82.16 80.59 56.37 51.99 48.21
        full 84.67 56.92
    """),
    "emp_table5": ("CIFAR-10 CIFAR-100", "30 50 70", """
        projections 83.11 81.52 79.22 54.85 50.40 47.58
        features 83.19 82.16 80.59 56.37 51.99 48.21
    """),
    "tdds_table1": ("CIFAR-10 CIFAR-100", "30 50 70 80 90", """
        static_random 94.58 93.38 90.61 88.87 83.77 75.53 71.95 64.59 57.79 46.68
        entropy 94.45 91.90 86.24 83.49 72.06 72.39 64.44 50.73 42.86 29.56
        forgetting 95.45 95.05 89.14 76.18 45.87 77.38 70.76 49.92 38.42 25.82
        el2n 95.43 95.06 86.69 68.64 31.89 76.89 67.57 36.45 17.31 9.10
        aum 95.44 95.19 91.19 69.60 34.74 77.35 68.17 31.69 18.43 9.29
        moderate 93.96 92.34 89.71 87.75 83.61 74.60 70.29 62.81 56.52 41.82
        dyn_unc 95.08 94.03 89.40 79.76 37.12 73.36 65.90 50.16 39.19 15.20
        tdds 95.47 95.21 93.03 91.30 85.46 77.56 74.04 67.78 63.01 54.51
        full 95.23 78.21
    """),
    "tdds_table2": ("CIFAR-10 CIFAR-100", "30 50 70", """
        static_random 94.33 93.4 90.94 74.59 71.07 65.3
        entropy 94.44 92.11 85.67 72.26 63.26 50.49
        forgetting 95.36 95.29 90.56 76.91 68.6 38.06
        el2n 95.44 94.61 87.48 76.25 65.90 34.42
        aum 95.07 95.26 91.36 76.93 67.42 30.64
        moderate 93.86 92.58 90.56 74.60 71.10 65.34
        ccs 95.40 95.04 93.00 77.14 74.45 68.92
        tdds 95.50 95.66 93.92 77.95 74.98 69.46
        full 95.23 78.21
    """),
    "tdds_table3": ("ImageNet-1K", "70 80 90", """
        static_random 64.19 60.76 52.63
        entropy 62.34 56.80 43.39
        forgetting 64.29 62.01 52.14
        el2n 46.92 32.68 15.90
        aum 39.34 23.64 11.70
        moderate 64.04 61.35 52.45
        tdds 64.69 62.56 53.91
        full 73.54
    """),
    "tdds_table4": ("ImageNet-1K", "25 30 40 50", """
        static_random 77.82 77.18 75.93 74.54
        forgetting 78.70 78.27 77.55 74.32
        moderate 77.74 77.06 75.94 74.98
        dyn_unc 79.54 79.14 78.49 77.64
        tdds 79.76 79.57 79.09 78.33
        full 79.58
    """),
    "tdds_table5": ("CIFAR-100", "30 50 70 80 90", """
        el2n 76.89 67.57 36.45 17.31 9.10
        el2n+outer 77.47 73.93 67.04 58.21 40.36
        tdds 77.56 74.04 67.78 63.01 54.51
    """),
}  # fmt: skip


def printed(panels: list[str], text: str, shares: int) -> dict[str, dict[str, list[float | None]]]:
    """The numbers of a table by panel and arm."""
    table: dict[str, dict[str, list[float | None]]] = {panel: defaultdict(list) for panel in panels}
    for line in text.strip().splitlines():
        arm, *row = line.split()
        numbers = [None if word == "-" else float(word) for word in row]
        width = len(numbers) // len(panels)
        for at, panel in enumerate(panels):
            table[panel][arm.replace("+", " + ")] += numbers[at * width : (at + 1) * width]
    return {
        panel: {arm: row * shares if len(row) == 1 else row for arm, row in rows.items()}
        for panel, rows in table.items()
    }


@pytest.mark.parametrize("name", TABLES)
def test_published_numbers_are_those_of_the_paper(name: str) -> None:
    panels, pruned, text = TABLES[name]
    shares = [int(share) for share in pruned.split()]
    content = experiment.at_scale(*experiment.content(name), "paper")
    assert content["keep"] == [(100 - share) / 100 for share in shares]
    assert content["published"] == printed(panels.split(), text, len(shares))


def test_every_table_of_published_numbers_is_compared() -> None:
    joint = {"drop_table1"}  # compared in test_paper_settings.py
    published = {name for name in papers.available() if "published:" in papers.available()[name].read_text()}
    assert published == TABLES.keys() | joint
