"""What the findings say of comparisons of this project (see sentences.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from measured import (
    ROOT,
    Rows,
    accuracy,
    compared,
    deviation,
    differences,
    gap,
    listed,
    listed_text,
    mean,
    moments,
    number,
    percent,
    published,
    reproduced,
    results,
    seedwise,
    sizes,
    span,
)

from dataprune.lab.report import pack

Sentences = Iterator[str]
FASHION, CIFAR = "Fashion-MNIST", "CIFAR-100"


def advise() -> Sentences:
    regret = regrets()
    yield (
        f"following the advice cost {regret['advise']:.2f} points on average against {regret['memory']:.2f} for always "
        "`memory`, "
        f"and its pilots cost {pilots()} of the planned runs"
    )
    worst = max(point["regret"]["advise"] for point in results("advise")["advise"]["points"])
    yield f"was {100 * worst:.2f} points at most. Its pilots cost {pilots()} of the planned runs"
    yield (
        f"Always `memory` cost {regret['memory']:.2f} points, always `short` {regret['short']:.2f}, `rs2` "
        f"{regret['rs2']:.2f}, `emp` {regret['emp']:.2f}, `loss` {regret['loss']:.2f}"
    )


def margin() -> float:
    """Points that all committed savings allow."""
    (points,) = {content["margin"] for content in results("saving").values()}
    return points


def saving() -> Sentences:
    yield f"surely less than {margin():g} points below `full`"
    yield f"a margin of {margin():g} points decides"
    yield f"to tell {margin():g} points"
    mnist = {line["method"]: line for line in results("saving")["saving_mnist"]["saving"]}
    saved = [
        f"{100 * line['saved']:.0f} % ({100 * line['low']:.0f} to {100 * line['high']:.0f})"
        for line in (mnist[method] for method in ("memory", "learnability", "short"))
    ]
    memory, default, short = saved
    less = f"all the data for fewer steps {short}"
    yield f"on MNIST `memory` saves {memory} of the compute, the default method {default}, {less}"


def regrets(entry: str = "advise") -> dict[str, float]:
    """Mean regret in points of following the advice, and of always the same method."""
    points = results("advise")[entry]["points"]
    return {name: 100 * statistics.fmean(point["regret"][name] for point in points) for name in points[0]["regret"]}


def pilots() -> str:
    """What the pilots cost, in planned runs."""
    return span((point["pilot"]["cost"]["relative"] for point in results("advise")["advise"]["points"]), 0)


def budgets() -> Sentences:
    def rows(arm: str, keep: float, panel: str = FASHION, file: str = "which_budgets") -> Rows:
        return reproduced(file, panel, keep, arm)

    def above(arm: str, keep: float, panel: str = FASHION, base: str = "short") -> float:
        return gap(rows(arm, keep, panel), rows(base, keep, panel))

    keeps = (0.5, 0.3, 0.1)
    noise, hard = f"{FASHION}, 20 % noise", (CIFAR, f"{CIFAR}, 20 % noise")
    language = partial(rows, file="which_budgets_language")
    yield f"{listed(rows('short', keep)[0]['steps'] for keep in keeps)} steps of 128, the same for every method"
    yield f"{listed(language('short', keep, 'SST-2')[0]['steps'] for keep in keeps)} steps of 32, two seeds"
    yield f"`loss`, `emp` and `memory` are {budget_gains()} points above `short` and `rs2` at keep 0.5 and 0.3"
    yield f"`memory` alone pays, {sizes(above('memory', keep, noise) for keep in keeps[:2])} points at keep 0.5 and 0.3"
    yield f"`loss` up to {-above('loss', 0.1, noise):.0f}"
    levels = [
        100 * statistics.fmean(row["accuracy"] for row in rows("short", keep, name)) for keep in keeps for name in hard
    ]
    yield f"(CIFAR-100 with 8,000 images, {span(levels, 0)} %)"
    costs = [above(arm, keep, panel) for arm in ("emp", "loss") for keep in keeps for panel in hard]
    yield f"`emp` and `loss` cost {span(costs)} points"
    fall = gap(language("loss", 0.3, "SST-2, 20 % noise"), language("short", 0.3, "SST-2, 20 % noise"))
    yield f"`loss` by {-fall:.0f} points at 0.3"
    images = [above("rs2", keep, panel) for keep in keeps for panel in (FASHION, noise, *hard)]
    sentences = [
        gap(language("rs2", keep, task), language("short", keep, task))
        for keep in keeps
        for task in ("SST-2", "SST-2, 20 % noise")
    ]
    yield f"of twelve differences on images the largest is {max(map(abs, images)):.2f}, "
    yield f"on SST-2, with two seeds, {max(map(abs, sentences)):.2f}"
    yield (
        f"no difference from `short` on clean Fashion-MNIST ({differences(rows('infobatch', 0.5), rows('short', 0.5))})"
    )
    noisy = differences(rows("infobatch", 0.5, noise), rows("short", 0.5, noise), 1)
    yield f"{noisy} above it with noise, and {-above('infobatch', 0.5, CIFAR):.1f} points below on CIFAR-100"
    behind = span(above("infobatch", keep, panel) for keep in keeps for panel in hard)
    yield f"There it is {behind} points below `short` on CIFAR-100"


def budget_gains() -> str:
    """Points of the three scored methods above `short` and `rs2` on clean Fashion-MNIST at keep 0.5 and 0.3."""
    rows = partial(reproduced, "which_budgets", FASHION)
    places = [
        (keep, arm, base) for keep in (0.5, 0.3) for arm in ("loss", "emp", "memory") for base in ("short", "rs2")
    ]
    return span(gap(rows(keep, arm), rows(keep, base)) for keep, arm, base in places)


def contrastive() -> Sentences:
    def rows(method: str, keep: int = 30, data: str = "cifar100") -> Rows:
        return compared(f"contrastive_{data}", f"contrastive_{data}_keep{keep}", method)

    fashion = partial(rows, data="fashion")
    steps = listed(rows("short", keep)[0]["steps"] for keep in (30, 50, 70)).replace(" and", ",")
    yield f"every run but `full` takes {steps} steps of 128, `full` {rows('full')[0]['steps']}"
    ours, loss = (
        [gap(rows(name, keep), rows(base, keep)) for base in ("short", "rs2") for keep in (30, 50)]
        for name in ("emp_contrastive", "loss")
    )
    yield f"`emp_contrastive` is {span(ours[:2])} points below `short` and {span(ours[2:])} below `rs2`"
    yield f"and `loss` {span(loss[:2])} and {span(loss[2:])} below"
    paper = published("emp_table4", CIFAR)
    yield f"`emp_contrastive` {paper['emp_contrastive'][2] - paper['infobatch'][2]:.1f} above InfoBatch at keep 0.3"
    gains = [gap(fashion(name), fashion("short")) for name in ("loss", "emp_contrastive")]
    yield (
        f"On Fashion-MNIST `loss` (+{gains[0]:.1f}) and `emp_contrastive` (+{gains[1]:.1f}) are above `short` at keep "
        "0.3"
    )
    yield f"with deviations of {deviation(fashion('loss'))} and {deviation(fashion('emp_contrastive'))}"
    beta = partial(reproduced, "emp_figure10_contrastive")
    yield f"{beta(CIFAR, 0.3, 'short')[0]['steps']} steps (`dataprune reproduce emp_figure10_contrastive"
    off = {
        panel: {arm: abs(gap(beta(panel, 0.3, f"beta {arm}"), beta(panel, 0.3, "short"))) for arm in (0, 1, 5, 10)}
        for panel in (CIFAR, FASHION)
    }
    low, short = accuracy(beta(FASHION, 0.3, "beta 0"), 1), accuracy(beta(FASHION, 0.3, "short"), 1)
    del off[FASHION][0]
    yield (
        f"within {max(off[CIFAR].values()):.1f} points of `short`, on Fashion-MNIST within "
        f"{max(off[FASHION].values()):.1f}, "
        f"but β = 0 ({low}, `short` {short})"
    )


def glue() -> Sentences:
    def rows(method: str, task: str, keep: float) -> Rows:
        return compared(f"glue_{task}", f"glue_{task}_keep{round(100 * keep)}", method)

    def above(method: str, task: str, keep: float) -> float:
        return gap(rows(method, task, keep), rows("short", task, keep))

    yield f"(`full` takes {rows('full', 'mrpc', 0.3)[0]['steps']} steps of 32"
    first, second = (
        sizes(above(name, "mrpc", 0.5) for name in ("loss", "emp")),
        [above(name, "mrpc", 0.7) for name in ("loss", "emp")],
    )
    yield f"at keep 0.5 `loss` and `emp` are {first} points below `short`"
    seventh = listed_text(sorted({f"{-value:.1f}" for value in second}))
    yield f"(at 0.3 {sizes(above(name, 'mrpc', 0.3) for name in ('loss', 'emp'))}, at 0.7 {seventh})"
    yield f"`emp` there at the {percent(rows('emp', 'mrpc', 0.5))} of always saying"
    paper = published("emp_table3", "MRPC")
    lead = [ours - theirs for ours, theirs in zip(paper["emp"], paper["infobatch"], strict=True)]
    yield f"where the paper has `emp` {span(lead)} above InfoBatch"
    pairs = {keep: seedwise(rows("loss", "stsb", keep), rows("short", "stsb", keep)) for keep in (0.7, 0.5, 0.3)}
    every = [value for values in pairs.values() for value in values]
    means = ", ".join(f"{statistics.fmean(values):.1f}" for values in pairs.values())
    yield f"by {span(every)} points (mean {means})"
    yield f"`full` is {gap(rows('full', 'stsb', 0.3), rows('loss', 'stsb', 0.7)):.1f} points above them at 0.7"
    ratio = rows("full", "sst2", 0.3)[0]["steps"] / rows("short", "sst2", 0.5)[0]["steps"]
    yield f"`full` with up to {ratio:.1f} times the steps is no better"
    yield (
        f"(one seed, `experiments/results/glue_rte.json`): {percent(compared('glue_rte', 'glue_rte_keep30', 'full'))} "
        "on its"
    )
    [rte] = pack.read(ROOT / "experiments/results/glue_rte.json")
    yield f"({100 * rte.runs[0].history[-1]['train_accuracy']:.0f} % of the training set)"


def index() -> Sentences:
    yield f"{budget_gains()} points where the model fits and labels are right"
    clean = partial(compared, "fashion_mnist", "fashion_mnist")
    yield (
        f"`memory` {gap(clean('memory'), clean('rs2')):.1f} points above a random subset on Fashion-MNIST, "
        f"{gap(clean('full'), clean('memory')):.1f} below training on everything"
    )
    yield f"mean regret {regrets()['advise']:.2f} points, for pilots that cost {pilots()} of the planned runs"


def joint() -> Sentences:
    nets = [results("joint_mnist")[f"joint_mnist_{net}"] for net in ("mlp", "lenet")]
    hidden, lenet = ([row for row in net["summary"] if row["amount"] > 0] for net in nets)
    pruned = [row for row in hidden if row["amount"] >= 0.4]
    exceptions = sum(row["difference_mean"] >= 0 for row in pruned)
    assert exceptions == 1 and all(row["difference_mean"] < 0 for row in lenet)
    yield f"where all cells but one of {len(pruned)} are below the base"
    yield f"below the base in all {len(lenet)} cells"
    low, high = (listed_text(cell_differences(net["summary"], arm) for net in nets) for arm in ("low", "high"))
    yield f"(over all cells low − random {low} points, high − random {high})"
    small = [row for row in nets[1]["training"] if row["ratio"] == 0.1]
    yield f"after {small[0]['steps']} steps LeNet is at {span((100 * row['accuracy'] for row in small), 0)} %"
    random = results("joint_mnist")["joint_mnist_lenet_rs2"]["summary"]
    cells = [f"{number(100 * row['difference_mean'], 2)} ± {100 * row['difference_std']:.2f}" for row in random]
    yield f"loses the same: {', '.join(cells)}"
    shares = [100 * (1 - line["forgotten"][0] / sum(line["forgotten"])) for net in nets for line in net["scoring"]]
    yield f"only {span(shares, 0)} % of the images are ever forgotten"


def cell_differences(summary: list[Any], arm: str) -> str:
    """Mean and deviation over cells of an arm above `random`."""
    random = {(row["ratio"], row["amount"]): row["accuracy_mean"] for row in summary if row["arm"] == "random"}
    gaps = [row["accuracy_mean"] - random[row["ratio"], row["amount"]] for row in summary if row["arm"] == arm]
    return moments(gaps, 2, scale=100)


def label_errors() -> Sentences:
    result = results("label_errors")["label_errors"]
    yield f"precision at the number of errors (chance {chance(result):.2f})"
    yield (
        f"`dyn_unc` ranks them last (AUROC {result['summary']['fashion-mnist, 10 epochs']['dyn_unc']['auroc'][0]:.2f} "
        "on Fashion-MNIST)"
    )
    yield f"{100 * chance(result):.0f} % wrong labels"


def chance(result: Any) -> float:
    """Share of the labels that are wrong, over all runs."""
    return sum(point["planted"] for point in result["points"]) / sum(point["samples"] for point in result["points"])


def log() -> Sentences:
    yield f"mean regret {regrets()['advise']:.2f}, always `memory` {regrets()['memory']:.2f}"


def open_questions() -> Sentences:
    layers = ("conv1", "conv2", "conv3", "conv4")
    above = question_gap
    yield f"`conv1` is {above('conv1', 'emp', FASHION, -1):.1f} points below `emp`"
    yield f"`conv4` {number(above('conv4', 'emp', FASHION), 1, '+')}"
    yield f"the layers are {span(above(layer, 'emp', CIFAR) for layer in layers)} points above `emp`"
    random, memory = (above("conv1", other, CIFAR) for other in ("rs2", "memory"))
    yield f"`conv1` {random:.1f} above `rs2` and {memory:.1f} above `memory`"
    yield f"{above('information', 'emp', FASHION, -1):.1f} points below `emp`"
    below_memory, below_random = (above("information", other, FASHION, -1) for other in ("memory", "rs2"))
    yield f"{below_memory:.1f} below `memory` and {below_random:.1f} below `rs2`"
    above_emp, below_random = above("information", "emp", CIFAR), above("information", "rs2", CIFAR, -1)
    yield f"{above_emp:.1f} above `emp`, {below_random:.1f} below `rs2`"
    estimates = results("emp_first_term")["emp_first_term"]["result"]
    yield f"{estimates['memory_reliability']:.2f} of their variance over samples"
    halves, near = estimates["halves"], estimates["neighbours"]
    yield f"({number(halves['with_itself'][0], 2)} between five halvings and the other five)"
    yield f"their correlation with −d is {near['with_kept_term'][0]:.2f}"
    true, plain = near["with_first_term"][0], estimates["kept_term"]["with_first_term"][0]
    yield f"its first term has {true:.2f} with the true one, where d alone has {plain:.3f}"


def question_gap(arm: str, other: str, data: str, sign: int = 1) -> float:
    """Points of an arm above another, mean over seeds, at keep 0.3; below it where sign is -1."""
    measured = results("open_questions")["open_questions"]["result"]
    cell = f"{ {FASHION: 'fashion-mnist', CIFAR: 'cifar100'}[data] } keep 0.3"
    difference = sign * (measured[f"{cell} {arm}"]["accuracy"] - measured[f"{cell} {other}"]["accuracy"])
    assert difference > -0.5, f"{arm} is on the other side of {other}: the page says otherwise"
    return difference


def quarter() -> Sentences:
    clean, noise, plain_clean, plain_noise = (
        partial(compared, "fashion_mnist", f"fashion_mnist{entry}")
        for entry in ("", "_noise20", "_plain_momentum", "_noise20_plain_momentum")
    )
    scored = ("memory", "emp", "loss")
    above = {f"{gap(clean(name), clean(base)):.1f}" for name in scored for base in ("short", "rs2")}
    yield f"On clean labels `memory`, `emp` and `loss` are {' to '.join(sorted(above))} points above `short` and `rs2`"
    yield (
        f"`memory`, `emp` and `loss` are {span(gap(clean(name), clean('rs2')) for name in scored)} points above random "
        f"choice and {span(gap(clean('full'), clean(name)) for name in scored)} below training on everything"
    )
    yield f"with plain momentum `memory` leads by {gap(plain_clean('memory'), plain_clean('loss')):.1f}"
    yield f"24 full epochs are {gap(clean('full'), clean('memory')):.1f} points above the best pruned run"
    yield f"`loss` falls {gap(noise('rs2'), noise('loss')):.0f} points below a random subset"
    yield f"is {gap(noise('memory'), noise('short')):.1f} points above `short`"
    yield (
        f"{clean('short')[0]['steps']} steps of 128, as many as {clean('short')[0]['samples'] / 20_000:.1f} full "
        "epochs have"
    )
    calibration = {"loss": 86.6, "emp": 86.6}
    off = [mean(clean(name)) - value for name, value in calibration.items()]
    yield f"`loss` and `emp` on clean labels are {sizes(off)} points above"
    loss, emp = (mean(plain_noise(name)) - value for name, value in (("loss", 55), ("emp", 80.3)))
    yield f"of the noisy ones `loss` (+{loss:.1f}) and `emp` ({number(emp, 1)}) are then further off"
    nesterov = [
        gap(clean(name), plain_clean(name)) for name in ("memory", "emp", "loss", "short", "rs2", "random", "infobatch")
    ]
    yield f"Nesterov's form is worth {span(nesterov)} points to every short run"
    shares = results("fashion_mnist")["fashion_mnist"]["kept_by_class"]
    trousers, shirts = (
        [100 * shares[name][shares["classes"].index(title)] for name in scored] for title in ("Trouser", "Shirt")
    )
    yield (
        f"keep {' to '.join(sorted({f'{share:.0f}' for share in trousers}))} % of the trousers and {span(shirts, 0)} % "
        "of the shirts"
    )
    wrong = results("fashion_mnist")["fashion_mnist_noise20"]["wrong_labels"]["all"]
    yield f"With 20 % noise {100 * wrong:.0f} % of the labels really differ"
    short = compared("digits", "digits", "short")[0]
    yield f"{short['steps']} steps of 32, as many as {short['samples'] / 1280:.2f} full epochs have"
    level = mean(compared("digits", "digits", "rs2")) / 100
    yield f"a sampling error of about {100 * (level * (1 - level) / 500) ** 0.5:.1f} points"


def static_coresets() -> Sentences:
    tenth, third = (partial(compared, "static_mnist", f"static_mnist_keep{keep}") for keep in (10, 30))
    bare, bare_third = (partial(compared, "static_mnist", f"static_mnist_keep{keep}_unweighted") for keep in (10, 30))
    yield f"{tenth('short')[0]['steps']} at keep 0.1 and {third('short')[0]['steps']} at 0.3"
    hardest = ("dyn_unc", "margin", "aum", "el2n")
    random, fresh = ([gap(tenth(name), tenth(base)) for name in hardest] for base in ("static_random", "rs2"))
    yield f"`el2n` are {span(random)} points above a random coreset and {span(fresh)} above `rs2`"
    best = max(mean(tenth(name)) for name in hardest), max(mean(third(name)) for name in ("aum", "grad_match"))
    behind = (
        max(best[0] - mean(tenth(name)) for name in ("loss", "emp")),
        max(best[1] - mean(third(name)) for name in ("loss", "emp")),
    )
    yield f"`loss` and `emp` are within {max(behind):.1f} points of the best of them"
    yield (
        f"trains to {mean(tenth('tdds')):.0f} and {mean(third('tdds')):.0f} %; CRAIG with its cluster sizes to "
        f"{mean(tenth('craig')):.0f} and {mean(third('craig')):.0f} %"
    )
    lowest = min(row["accuracy"] for row in bare("tdds"))
    yield (
        f"the same samples give {percent(bare('tdds'))} (one seed of three at {100 * lowest:.1f}) and "
        f"{percent(bare_third('tdds'))} %"
    )
    yield (
        f"CRAIG {percent(bare('craig'))} and {percent(bare_third('craig'))} %, "
        f"GradMatch {percent(bare('grad_match'))} and {percent(bare_third('grad_match'))} %"
    )
    least, *others = sorted(100 * row["accuracy"] for row in third("least_confidence"))
    yield f"`least_confidence` at 0.3 has one seed of {least:.1f} % beside {sizes(others)}"
    yield f"`tdds` without weights at 0.1 one of {100 * lowest:.1f}"
    forgotten = results("forgotten_mnist")["forgotten_mnist"]["samples_by_score"]
    yield f"above 50 of the {forgotten[0]:,} that it never forgets"
    yield f"The {forgotten[-1]} that were never once right"
    small = [compared("static_cifar100", f"static_cifar100_keep{keep}", "short")[0]["steps"] for keep in (10, 30)]
    yield f"one seed: {listed(small)} steps"
