"""Summary, table and figures of joint pruning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_joint import made_up

from dataprune.errors import UsageError
from dataprune.lab.report.joint import check_whole, missing, summarize


def test_the_summary_is_arithmetic() -> None:
    scipy = pytest.importorskip("scipy.stats")
    result = made_up()
    assert [(line["arm"], line["ratio"], line["amount"]) for line in result["summary"]] == [
        (arm, ratio, amount) for arm in ("low", "high") for ratio in (0.1, 0.5) for amount in (0.0, 0.8)
    ]
    for line in result["summary"]:

        def of(arm: str, ratio: float | None, amount: float = line["amount"]) -> np.ndarray:
            rows = [row for row in result["cells"] if (row["arm"], row["ratio"], row["amount"]) == (arm, ratio, amount)]
            return np.array([[row["accuracy"], row["flops"]["total"]] for row in rows])

        accuracies, base = of(line["arm"], line["ratio"]), of("base", None)
        assert line["difference_mean"] == pytest.approx((accuracies - base)[:, 0].mean())
        assert line["difference_std"] == pytest.approx((accuracies - base)[:, 0].std(ddof=1))
        assert line["accuracy_mean"] == pytest.approx(accuracies[:, 0].mean())
        assert line["accuracy_std"] == pytest.approx(accuracies[:, 0].std(ddof=1))
        assert line["base_mean"] == pytest.approx(base[:, 0].mean())
        assert line["base_std"] == pytest.approx(base[:, 0].std(ddof=1))
        assert (line["flops"], line["base_flops"]) == pytest.approx((accuracies[:, 1].mean(), base[:, 1].mean()))
        assert line["p"] == pytest.approx(scipy.ttest_rel(accuracies[:, 0], base[:, 0]).pvalue)


def test_a_single_seed_has_no_p() -> None:
    assert {line["p"] for line in made_up(1)["summary"]} == {None}
    assert {line["difference_std"] for line in made_up(1)["summary"]} == {0.0}


def test_lines_wait_for_all_their_seeds() -> None:
    result = made_up()
    key = ("low", 0.5, 0.8, 1)
    result["cells"] = [row for row in result["cells"] if (row["arm"], row["ratio"], row["amount"], row["seed"]) != key]
    assert len(summarize(result)) == 7 and missing(result) == ["low ratio 0.5 amount 0.8 seed 1"]
    result["cells"] = [row for row in result["cells"] if (row["arm"], row["seed"]) != ("base", 2)]
    assert summarize(result) == []
    with pytest.raises(UsageError, match=r"^3 of 30 cells are missing \(low .*, base .* seed 2, base .* seed 2\): run"):
        check_whole(result)


def test_the_table_says_what_the_summary_says() -> None:
    pytest.importorskip("rich")
    from dataprune.lab.report import tables

    result = made_up()
    shown = tables.joint(result)
    columns = {str(column.header): list(column.cells) for column in shown.columns}
    assert list(columns) == ["ratio", "amount", "base %", "low − base", "high − base", "FLOPs, low", "FLOPs, high"]
    assert columns["ratio"] == ["0.1", "0.1", "0.5", "0.5"] and columns["amount"] == ["0", "0.8", "0", "0.8"]
    line = next(x for x in result["summary"] if (x["arm"], x["ratio"], x["amount"]) == ("high", 0.5, 0.0))
    mean, deviation = 100 * line["difference_mean"], 100 * line["difference_std"]
    assert columns["high − base"][2] == f"{mean:+.2f} ± {deviation:.2f} ({line['p']:.2f})"
    line["p"] = 0.001
    assert list(tables.joint(result).columns[4].cells)[2].endswith(" (<0.01)")
    assert columns["FLOPs, high"][2] == f"{line['flops'] / line['base_flops']:.2f}x"
    caption = str(shown.caption)
    assert "over 3 seeds: a mean difference must be 2.5 times its s.d. for p < 0.05; of 8 such tests" in caption
    assert columns["base %"][0].count("±") == 1
    single = tables.joint(made_up(1))
    assert "p of a paired" not in str(single.caption) and "±" not in next(iter(single.columns[3].cells))
    del result["cells"][-1]
    with pytest.raises(UsageError, match="1 of 30 cells are missing"):
        tables.joint(result)


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_figures_are_written_and_repeat(seeds: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dataprune.lab.report import joint, plots

    for draw in (joint.fine_tuning, joint.before_and_after, joint.flops):
        files = plots.write(draw(made_up(seeds)), tmp_path / "first")
        assert [file.suffix for file in files] == [".svg", ".png"]
        assert b"<svg" in files[0].read_bytes() and files[1].read_bytes().startswith(b"\x89PNG")
        again = plots.write(draw(made_up(seeds)), tmp_path / "second")
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
