"""The table of docs/findings/claims.md: what is claimed of each method beside what the results here say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from measured import ROOT

from dataprune.lab.report import claims, pack
from dataprune.lab.report.pack import Entry

# results with `short` or `rs2` whose arms are methods as they are by default
FILES = (
    "which_budgets", "which_budgets_language", "fashion_mnist", "digits", "glue_sst2", "glue_mrpc", "glue_stsb",
    "glue_cola", "emp_table1", "tdds_table1", "static_mnist", "static_cifar100", "contrastive_fashion",
    "contrastive_cifar100",
)  # fmt: skip
EARLIER = ("static_mnist", "static_cifar100")  # with the weights of Eq. 13, which were TDDS's default at the time


def entries() -> list[Entry]:
    """What the files hold, without runs of a default that has changed."""
    found = []
    for file in FILES:
        for entry in pack.read(ROOT / f"experiments/results/{file}.json"):
            result = dict(entry.result or {})
            if file in EARLIER:
                result["runs"] = [row for row in result["runs"] if row["method"] != "tdds"]
            found.append(replace(entry, result=result))
    return found


def table() -> str:
    return claims.markdown(claims.measure(entries()))


TABLES: dict[str, Callable[[], str]] = {"claims": table}
