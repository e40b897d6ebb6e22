"""Sentences of README and of docs that state results, each with its numbers read from experiments/results.

One function a page yields its sentences, or the parts of them that hold numbers, in the page's words. Settings
(`keep 0.3`) are written out; every number that was measured or that a paper prints is an expression. A test looks each
sentence up on its page, and finds numbers that no sentence accounts for (tests/experiments/test_sentences.py). After a
change of results

    python experiments/sentences.py

lists the sentences that their pages lack.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial

import prompts_findings
import sentences_findings as findings
import sentences_papers as papers
import theory
from measured import (
    ROOT,
    Rows,
    accuracy,
    compared,
    differences,
    gap,
    listed_text,
    mean,
    percent,
    published,
    reproduced,
    results,
    sizes,
    span,
)
from sentences_findings import margin, pilots, regrets

import dataprune

Sentences = Iterator[str]
FASHION, CIFAR = "Fashion-MNIST", "CIFAR-100"


def plain(text: str) -> str:
    """Text as sentences are compared: on one line, with ordinary spaces and without `*` for emphasis."""
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").replace("*", "").split())


def home() -> Sentences:
    clean = partial(compared, "fashion_mnist", "fashion_mnist")
    scored = ("memory", "emp", "loss")
    above = {f"{gap(clean(name), clean('rs2')):.1f}" for name in scored}
    below = {f"{gap(clean('full'), clean(name)):.1f}" for name in scored}
    yield (
        f"are {' to '.join(sorted(above))} points above a random part of the data and {' to '.join(sorted(below))} "
        "points below all of it"
    )


def readme() -> Sentences:
    yield f"surely less than {margin():g} points below all the data"


def which_method() -> Sentences:
    regret = regrets()
    yield (
        f"always taking `memory` was {regret['memory']:.2f} points below the best method of each setting on average; "
        f"always `short` {regret['short']:.2f}, `rs2` {regret['rs2']:.2f}, `emp` {regret['emp']:.2f} and `loss` "
        f"{regret['loss']:.1f}"
    )
    noise = partial(compared, "fashion_mnist", "fashion_mnist_noise20")
    yield f"{mean(noise('loss')):.0f} and {mean(noise('emp')):.0f} % where `memory` has {mean(noise('memory')):.0f} %"
    yield (
        f"following it cost {regret['advise']:.2f} points on average, and the pilots cost as much as {pilots()} of the "
        "planned runs"
    )


def infobatch(panel: str) -> str:
    """InfoBatch's points above `short` at keep 0.5."""
    rows = partial(reproduced, "which_budgets", panel, 0.5)
    return differences(rows("infobatch"), rows("short"))


def from_infobatch() -> Sentences:
    yield (
        f"At keep 0.5 on Fashion-MNIST it was {infobatch(FASHION)} points from `short`, and "
        f"{infobatch(f'{FASHION}, 20 % noise')} above it"
    )
    yield f"on an underfitting CIFAR-100 {infobatch(CIFAR).lstrip('−')} below"


def how_to_advise() -> Sentences:
    regret, points = regrets(), results("advise")["advise"]["points"]
    cells = [f"{regret[name]:.2f}" for name in ("advise", "memory", "short", "rs2", "emp", "loss")]
    yield f"the pilots cost as much as {pilots()} of the planned runs"
    yield f"| over six settings | {' | '.join(cells)} |"
    misses = [100 * point["regret"]["advise"] for point in points if point["regret"]["advise"] > 0]
    errors = [100 * point["spread"] for point in points if point["regret"]["advise"] > 0]
    yield f"The misses are {sizes(misses, 2)} points, with standard errors of {sizes(errors)}"
    planned, real = pilot_and_run(points[0]["setting"], "memory")
    yield f"`memory` is {planned:.1f} above `short` on Fashion-MNIST in the pilots and {real:.1f} in the run"
    planned, real = pilot_and_run(points[1]["setting"], "memory")
    yield f"on the MLP {-planned:.1f} below and {real:.1f} above"
    minutes = [point["pilot"]["cost"]["seconds"] / 60 for point in points]
    yield f"Cost: as much as {pilots()} planned runs, {span(minutes)} minutes on a busy core"
    first = regrets("advise_chosen_on_planned_batches")
    yield (
        f"at a mean regret of {first['advise']:.2f} (`short` {first['short']:.2f}, `rs2` {first['rs2']:.2f}, `memory` "
        f"{first['memory']:.2f}, `loss` {first['loss']:.1f})"
    )
    planned, real = pilot_and_run("MNIST, LeNet", "loss", "advise_chosen_on_planned_batches")
    yield f"On MNIST `loss` was {-planned:.0f} points below `short` in those pilots and {real:.1f} above it in the run"
    same, fewer = (statistics.fmean(pilot_errors(entry)) for entry in ENTRIES)
    yield f"were off by {same:.1f} points on average in place of {fewer:.1f}"


ENTRIES = ("advise_chosen_on", "advise_chosen_on_planned_batches")


def pilot_and_run(setting: str, method: str, entry: str = "advise") -> tuple[float, float]:
    """Points of a method above `short`, in the pilots and in the run that they stand for."""
    [point] = [point for point in results("advise")[entry]["points"] if point["setting"] == setting]
    [line] = [line for line in point["pilot"]["lines"] if line["method"] == method]
    level = {name: statistics.fmean(values) for name, values in point["accuracy"].items()}
    return 100 * line["short"]["mean"], 100 * (level[method] - level["short"])


def pilot_errors(entry: str) -> list[float]:
    """How far the pilots' differences to `short` are from those of the runs, in points."""
    settings = [point["setting"] for point in results("advise")[entry]["points"]]
    pairs = [pilot_and_run(setting, name, entry) for setting in settings for name in ("rs2", "loss", "emp", "memory")]
    return [abs(pilot - run) for pilot, run in pairs]


def how_to_label_errors() -> Sentences:
    result = results("label_errors")["label_errors"]

    def share(data: str, key: str, labels: str = "wrong_labels") -> str:
        return span((100 * point[labels][key] for point in result["points"] if point["data"].startswith(data)), 0)

    def level(data: str) -> str:
        return accuracy([point for point in result["points"] if point["data"] == data], 1)

    yield f"With errors planted in {100 * findings.chance(result):.0f} % of the labels"
    yield f"it gives {share('digits, 15', 'fitted')} % of the wrong labels a probability above 1/2"
    yield f"a test accuracy of {level('digits, 5 epochs')} % in place of {level('digits, 15 epochs')} %"
    yield (
        f"these are {share('fashion', 'never_learned')} % on Fashion-MNIST, "
        f"{share('digits, 5', 'never_learned')} % on digits in 5 epochs, "
        f"but {share('digits, 15', 'never_learned')} % in 15"
    )
    yield f"another {share('digits, 15', 'never_forgotten')} % are learned late"
    yield f"like {share('digits, 15', 'never_forgotten', 'right_labels')} % of the right labels"


def methods() -> Sentences:
    full = 200 * 50_000
    plain_share, annealed = (
        100 * sum(dataprune.emp(50_000, keep=0.3, epochs=200, anneal=anneal).epoch_sizes()) / full
        for anneal in (0, 0.125)
    )
    yield f"`emp` trains {plain_share:.2f} % of a full run's samples, and {annealed:.1f} % with `anneal=0.125`"
    measured = json.loads((ROOT / "benchmarks/results/fast_path_cpu.json").read_text(encoding="utf-8"))["models"]
    rows = {model["model"]: [row for row in model["rows"] if "no pruner" not in row["method"]] for model in measured}
    percents = {
        name: [
            span((100 * row["efficiency"] for row in rows[name]), 0),
            span((100 * bound for row in rows[name] for bound in row["efficiency_interval"]), 0),
        ]
        for name in rows
    }
    resnet, small = (percents[name] for name in ("resnet18", "small_cnn"))
    yield f"ResNet-18 {resnet[0]} % (intervals {resnet[1]}), a small CNN"
    yield f"{small[0]} % ({small[1]})"
    random = [
        100 * row["efficiency"] for model in measured for row in model["rows"] if row["method"].startswith("random")
    ]
    yield f"random samples without a pruner are at {random[0]:.0f} and {random[1]:.0f} %"
    calls = [100 * statistics.fmean(row["calls_share"] for row in rows[name]) for name in rows]
    yield f"The calls into the pruner take {calls[0]:.1f} and {calls[1]:.0f} % of an epoch"


def card_emp() -> Sentences:
    clean, noise = quarters()
    yield f"{percent(clean('emp'))} %, above `rs2` ({percent(clean('rs2'))}), level with `loss` and `memory`"
    yield f"we measured {percent(noise('emp'))} %, below full data for as many steps ({percent(noise('short'))})"
    full = [published("emp_table1", panel)["full"][0] for panel in ("CIFAR-10", CIFAR)]
    yield f"without pruning {listed_text(map(str, full))}"


def quarters() -> tuple[Callable[[str], Rows], Callable[[str], Rows]]:
    """Rows of a method in the Fashion-MNIST comparison, with clean and with noisy labels."""
    return partial(compared, "fashion_mnist", "fashion_mnist"), partial(
        compared, "fashion_mnist", "fashion_mnist_noise20"
    )


def card_emp_contrastive() -> Sentences:
    for data, name in (("fashion", FASHION), ("cifar100", CIFAR)):
        full = compared(f"contrastive_{data}", f"contrastive_{data}_keep30", "full")
        yield f"{accuracy(full)} on {name}"
    untrained = [
        percent(results(f"contrastive_{data}")[f"contrastive_{data}_keep30"]["untrained"], 2)
        for data in ("fashion", "cifar100")
    ]
    yield f"untrained {listed_text(untrained)}"
    drift = [
        accuracy(compared("contrastive_fashion", f"contrastive_fashion_keep{keep}_drift", "emp_contrastive"))
        for keep in ("10", "05")
    ]
    yield f"changed nothing measurable ({listed_text(drift)})"
    full = [published("emp_table4", panel)["full"][0] for panel in ("CIFAR-10", CIFAR)]
    yield f"without pruning {listed_text(map(str, full))}"


def card_memory() -> Sentences:
    clean, noise = quarters()
    yield (
        f"{percent(clean('memory'))} %, as `emp` and `loss`, against {percent(clean('rs2'))} for `rs2` and for full "
        "data"
    )
    yield (
        f"{percent(noise('memory'))} % against {percent(noise('rs2'))} for `rs2`, {percent(noise('emp'))} for `emp` "
        "and "
        f"{percent(noise('loss'))} for `loss`"
    )
    regret = regrets()
    yield (
        f"its mean regret was {regret['memory']:.2f} points, against {regret['short']:.2f} for `short` and "
        f"{regret['emp']:.2f} for `emp`"
    )


def card_loss() -> Sentences:
    clean, noise = quarters()
    yield f"it reached {percent(clean('loss'))} %, against {percent(clean('rs2'))} for `rs2`"
    yield f"gave {percent(noise('loss'))} %, against {percent(noise('short'))} for full data in as many steps"
    table2 = {name: f"{values[1]:.2f}" for name, values in published("emp_table2", "ImageNet-1k").items()}
    yield (
        f"`epsilon_greedy` ({table2['epsilon_greedy']}) and `ucb` ({table2['ucb']}), stayed below dynamic random "
        f"pruning ({table2['random']};"
    )


def card_infobatch() -> Sentences:
    yield f"keep 0.5 was {infobatch(FASHION)} points on clean Fashion-MNIST and {infobatch(CIFAR)} on an underfitting"
    kept = [statistics.fmean(row["reached_keep"] for row in rows("infobatch")) for rows in quarters()]
    yield f"(with keep 0.217 it kept {100 * kept[0]:.0f} %, {100 * kept[1]:.0f} % with noise)"


def card_full() -> Sentences:
    clean, _ = quarters()
    yield (
        f"full data reached {percent(clean('full'))} % in 24 epochs and {percent(clean('short'))} % in "
        f"{clean('short')[0]['samples'] / 20_000:.1f}"
    )
    full = [published("emp_table1", panel)["full"][0] for panel in ("CIFAR-10", CIFAR)]
    yield f"CIFAR-10 {full[0]}, CIFAR-100 {full[1]}"


def card_rs2() -> Sentences:
    clean, _ = quarters()
    yield f"it reached {percent(clean('rs2'))} %, as much as full data for as many steps"
    yield f"in the same comparison `memory` had {percent(clean('memory'))} %"


def card_random() -> Sentences:
    table2 = {
        name: [f"{value:.2f}" for value in values] for name, values in published("emp_table2", "ImageNet-1k").items()
    }
    random, ucb, greedy = (listed_text(table2[name]) for name in ("random", "ucb", "epsilon_greedy"))
    yield f"it reached {random} at 30 and 70 % pruned, where `ucb` had {ucb} and `epsilon_greedy` {greedy}"


def card_ucb() -> Sentences:
    table2, mrpc = published("emp_table2", "ImageNet-1k"), published("emp_table3", "MRPC")
    yield (
        f"{table2['ucb'][1]:.2f} at 70 % pruned on ImageNet-1k with ResNet-50, below dynamic random pruning with "
        f"{table2['random'][1]:.2f}"
    )
    yield f"{mrpc['ucb'][2]:.2f} on MRPC at 70 %, where `epsilon_greedy` had {mrpc['epsilon_greedy'][2]:.2f}"


def card_epsilon_greedy() -> Sentences:
    table2 = published("emp_table2", "ImageNet-1k")
    yield (
        f"{table2['epsilon_greedy'][1]:.2f} at 70 % pruned on ImageNet-1k with ResNet-50, below dynamic random pruning "
        f"with {table2['random'][1]:.2f}"
    )


PAGES: dict[str, Callable[[], Sentences]] = {
    "README.md": readme,
    "docs/index.md": home,
    "docs/findings/saving.md": findings.saving,
    "docs/start/which-method.md": which_method,
    "docs/start/from-infobatch.md": from_infobatch,
    "docs/how-to/advise.md": how_to_advise,
    "docs/how-to/label-errors.md": how_to_label_errors,
    "docs/methods/README.md": methods,
    "docs/methods/emp.md": card_emp,
    "docs/methods/emp_contrastive.md": card_emp_contrastive,
    "docs/methods/epsilon_greedy.md": card_epsilon_greedy,
    "docs/methods/full.md": card_full,
    "docs/methods/infobatch.md": card_infobatch,
    "docs/methods/information.md": theory.information,
    "docs/methods/loss.md": card_loss,
    "docs/methods/memory.md": card_memory,
    "docs/methods/random.md": card_random,
    "docs/methods/rs2.md": card_rs2,
    "docs/methods/ucb.md": card_ucb,
    "docs/findings/advise.md": findings.advise,
    "docs/findings/budgets.md": findings.budgets,
    "docs/findings/contrastive.md": findings.contrastive,
    "docs/findings/emp.md": papers.emp,
    "docs/findings/glue.md": findings.glue,
    "docs/findings/index.md": findings.index,
    "docs/findings/joint-pruning.md": findings.joint,
    "docs/findings/label-errors.md": findings.label_errors,
    "docs/findings/label-noise.md": papers.label_noise,
    "docs/findings/log.md": findings.log,
    "docs/findings/open-questions.md": findings.open_questions,
    "docs/findings/prompts.md": prompts_findings.prompts,
    "docs/findings/quarter.md": findings.quarter,
    "docs/findings/static-coresets.md": findings.static_coresets,
    "docs/findings/tdds.md": papers.tdds,
    "docs/theory/low-frequency.md": theory.low_frequency,
    "docs/theory/text-and-tables.md": theory.text_and_tables,
}


def missing() -> dict[str, list[str]]:
    """Sentences that a page lacks, by page."""
    result = {}
    for page, sentences in PAGES.items():
        text = plain((ROOT / page).read_text(encoding="utf-8"))
        result[page] = [sentence for sentence in map(plain, sentences()) if sentence not in text]
    return result


def main() -> None:
    """Say what the results make of the sentences that their pages lack."""
    for page, sentences in missing().items():
        for sentence in sentences:
            print(f"{page} lacks: {sentence}")


if __name__ == "__main__":
    sys.exit(main())
