"""How numbers, names and settings are written."""

from __future__ import annotations

import pytest

from dataprune.lab.report import formatting
from dataprune.lab.report.document import escaped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.setting({"data": "glue/rte", "model": "/home/me/models/bert/checkpoint-50"}),
         "glue/rte, bert/checkpoint-50"),
        (formatting.heading({"data": "digits", "model": "mlp", "epochs": 20, "keep": 0.05, "runs": [{"seed": 0}]}),
         "digits, mlp: 20 epochs, keep 0.05, 1 seed"),
        (formatting.percent(0.9112, 0.0061, 3, 1), "91.1 ± 0.6"),
        (formatting.percent(0.9112, 0.0, 1, 1), "91.1"),
        (formatting.points(-0.0112), "−1.12"),
        (formatting.points(0.0112, 0.005), "+1.12 ± 0.50"),
        (formatting.points(-1e-9), "+0.00"),
        (formatting.mean_percent([{"a": 0.5}, {"a": 0.7}, {}], "a"), "60.00 ± 14.14"),
        (formatting.mean_percent([{}], "a"), "–"),
        (formatting.counted(1, "seed"), "1 seed"),
        (formatting.counted(1200, "sample"), "1,200 samples"),
        (formatting.listed(["full", "short", "emp"]), "full, short and emp"),
        (formatting.listed([]), "none"),
        (escaped("a|b <i> emp_contrastive"), r"a\|b &lt;i> emp\_contrastive"),
    ],
)  # fmt: skip
def test_texts(text: str, expected: str) -> None:
    assert text == expected
