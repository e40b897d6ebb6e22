"""What the findings say of the tables and figures of EMP and TDDS (see sentences.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from measured import (
    accuracy,
    differences,
    gap,
    listed,
    listed_text,
    mean,
    percent,
    published,
    reproduced,
    results,
    sizes,
    span,
)

Sentences = Iterator[str]
FASHION, CIFAR = "Fashion-MNIST", "CIFAR-100"


def emp() -> Sentences:
    yield from emp_table1()
    yield from emp_rates()
    yield from emp_annealing()
    yield from emp_beta()
    yield from emp_opposite()


def emp_table1() -> Sentences:
    fashion, cifar = (partial(reproduced, "emp_table1", panel, 0.3) for panel in (FASHION, CIFAR))
    yield f"each in as many steps ({fashion('emp')[0]['steps']})"
    yield f"Agrees on Fashion-MNIST: `emp` ({accuracy(fashion('emp'), 1)}) is ahead of all others"
    seconds = {percent(fashion(name)) for name in ("ucb", "epsilon_greedy")}
    yield f"UCB and ε-greedy ({', '.join(sorted(seconds))}) are next, `short` {percent(fashion('short'))}"
    random = [mean(cifar(name)) for name in ("rs2", "static_random", "short", "random")]
    yield (
        f"`herding` is ahead ({percent(cifar('herding'))}), then `rs2`, `static_random`, `short` and `random` "
        f"({span(random)})"
    )
    yield f"`emp` has {percent(cifar('emp'))}, which is below `craig` and above InfoBatch"
    both = {
        name: f"{percent(fashion(name))} and {percent(cifar(name))}"
        for name in ("el2n", "grand", "least_confidence", "static_random")
    }
    yield (
        f"EL2N {both['el2n']}, GraNd {both['grand']}, least confidence {both['least_confidence']}, "
        f"`static_random` {both['static_random']}"
    )
    paper = {name: values[2] for name, values in published("emp_table1", CIFAR).items()}
    yield (
        f"`emp` {paper['emp']:.2f}, `infobatch` {paper['infobatch']}, `epsilon_greedy` "
        f"{paper['epsilon_greedy']}, "
        f"`ucb` {paper['ucb']}, `random` {paper['random']}, `static_random` {paper['static_random']}, `full` "
        f"{paper['full']}"
    )


def emp_rates() -> Sentences:
    fashion = partial(reproduced, "emp_figure6", FASHION)
    scored = ("loss", "emp", "memory")
    yield f"keep 0.7 beside ({fashion(0.7, 'emp')[0]['steps']} steps)"
    gains = {keep: [gap(fashion(keep, name), fashion(keep, "short")) for name in scored] for keep in (0.7, 0.5)}
    apart = max(max(values) - min(values) for values in gains.values())
    yield f"`memory` are {span(gains[0.7] + gains[0.5])} points above `short` and within {apart:.1f} of one another"
    yield f"at 0.7 `emp` ({accuracy(fashion(0.7, 'emp'))}) is level with `full` ({percent(fashion(0.7, 'full'), 2)})"


def emp_annealing() -> Sentences:
    def lost(name: str, panel: str) -> str:
        rows = partial(reproduced, "emp_figure8", panel)
        return sizes(gap(rows(keep, f"{name}"), rows(keep, f"{name}, not annealed")) for keep in (0.7, 0.5, 0.3))

    yield (
        f"EMP loses {lost('emp', FASHION)} points, InfoBatch {lost('infobatch', FASHION)}, "
        f"`short` {lost('short', FASHION)}: neither loses"
    )
    yield (
        f"On CIFAR-100 EMP loses {lost('emp', CIFAR)}, InfoBatch {lost('infobatch', CIFAR)}, "
        f"`short` {lost('short', CIFAR)}: there"
    )


def emp_beta() -> Sentences:
    fashion, cifar = (partial(reproduced, "emp_figure10", panel, 0.3) for panel in (FASHION, CIFAR))
    low, high = (-gap(cifar(f"beta {beta}"), cifar("short")) for beta in (0, 20))
    yield f"from {low:.1f} points below `short` at 0 to {high:.1f} below at 20"
    yield f"`memory` alone is level with it (+{differences(cifar('memory'), cifar('short'))})"
    gains = [gap(fashion(f"beta {beta}"), fashion("short")) for beta in (0, 1, 2, 5, 10, 20)]
    yield f"On Fashion-MNIST all β are {span(gains)} points above `short`"


def emp_opposite() -> Sentences:
    keeps = (0.5, 0.3, 0.1)

    def below(arm: str, panel: str, keep: float) -> float:
        return gap(reproduced("emp_reverse", panel, keep, "emp"), reproduced("emp_reverse", panel, keep, arm))

    yield f"on Fashion-MNIST it is {sizes(below('emp_reverse', FASHION, keep) for keep in keeps)} points below EMP"
    first, second, third = (below("emp_reverse", CIFAR, keep) for keep in keeps)
    yield f"it is {first:.1f} below, {-second:.1f} above and {third:.1f} below"
    elfl = reproduced("emp_reverse", FASHION, 0.1, "emp"), reproduced("emp_reverse", FASHION, 0.1, "ELFL")
    yield (
        f"is {differences(*elfl, 1)} points on Fashion-MNIST, and {-below('ELFL', CIFAR, 0.1):.1f} better on CIFAR-100"
    )
    middle = {f"{below('ELFL', FASHION, keep):.1f}" for keep in keeps[:2]}
    yield f"At keep 0.5 and 0.3 of Fashion-MNIST it is {' to '.join(sorted(middle))} below EMP"
    first = partial(reproduced, "emp_figure1", FASHION, 0.1)
    yield f"(Fashion-MNIST {percent(first('random'))} and {percent(first('memory'))}, EMP {percent(first('emp'))})"
    fashion, cifar = (figure11(panel) for panel in (FASHION, CIFAR))
    end = {arm: losses[1.0] for arm, losses in fashion.items()}
    yield (
        f"EMP's loss of training samples, {end['emp']:.3f}, is the lowest of the pruned runs (InfoBatch "
        f"{end['infobatch']:.3f}, "
        f"`rs2` {end['rs2']:.3f}, EMP-reverse {end['emp_reverse']:.3f}, `full` {end['full']:.3f})"
    )
    yield (
        f"`rs2` {cifar['rs2'][1.0]:.2f}, EMP and EMP-reverse {cifar['emp'][1.0]:.2f} and "
        f"{cifar['emp_reverse'][1.0]:.2f}"
    )
    rise = {arm: losses[1.2] - losses[1.0] for arm, losses in fashion.items()}
    yield (
        f"risen by {rise['emp']:.3f} with EMP, {rise['emp_reverse']:.3f} with EMP-reverse, {rise['rs2']:.3f} with "
        "`rs2` "
        f"(InfoBatch {rise['infobatch']:.3f}, `full` {rise['full']:.3f})"
    )


def figure11(panel: str) -> dict[str, dict[float, float]]:
    """Training loss by arm and share of the way from initial to final weights."""
    curves = results("emp_figure11")["emp_figure11"]["kept"][panel]
    return {curve["arm"]: dict(zip(curve["epsilon"], curve["loss"], strict=True)) for curve in curves}


def label_noise() -> Sentences:
    def above(arm: str, panel: str, base: str = "short", keeps: Iterable[float] = (0.7, 0.5, 0.3)) -> list[float]:
        rows = partial(reproduced, "emp_figure9", panel)
        return [gap(rows(keep, arm), rows(keep, base)) for keep in keeps]

    emp, infobatch = above("emp", FASHION), above("infobatch", FASHION)
    yield (
        f"On Fashion-MNIST it is {sizes(emp[:2])} points above `short` (all the data for as many steps) at keep 0.7 "
        "and 0.5"
    )
    yield (
        f"no more than InfoBatch ({sizes(infobatch[:2])}), and {-emp[2]:.1f} below at 0.3; on CIFAR-100 it is "
        f"{sizes(above('emp', CIFAR))} below"
    )
    yield f"`memory` is {span(above('memory', FASHION))} points above `short` at every rate"
    half, less = ([above(arm, FASHION, "rs2", [keep])[0] for arm in ("epsilon_greedy", "ucb")] for keep in (0.5, 0.3))
    yield f"ε-greedy is {-half[0]:.1f} and UCB {-half[1]:.1f} points below `rs2` at 0.5, {sizes(less)} at 0.3"


def tdds() -> Sentences:
    yield from tdds_table1()
    yield from tdds_table2()
    yield from tdds_windows()
    yield from tdds_figures()
    yield from tdds_networks()


def tdds_table1() -> Sentences:
    rows = partial(reproduced, "tdds_table1")
    keeps = (0.5, 0.3, 0.1)

    def above(arm: str, panel: str, keep: float, base: str = "static_random") -> float:
        return gap(rows(panel, keep, arm), rows(panel, keep, base))

    yield f"({listed(rows(FASHION, keep, 'tdds')[0]['steps'] for keep in keeps)} steps)"
    yield f"{rows(FASHION, 0.5, 'full')[0]['steps']:,} steps, which are not counted"
    weighted = {panel: [above("tdds", panel, keep) for keep in keeps] for panel in (FASHION, CIFAR)}
    yield (
        f"it is {span(weighted[FASHION], 0)} points below a random coreset of Fashion-MNIST and "
        f"{span(weighted[CIFAR], 0)} below one"
    )
    half, *less = (above("tdds, unweighted", FASHION, keep) for keep in keeps)
    yield f"{half:.1f} above on Fashion-MNIST at keep 0.5, and {sizes(less, 0)} below at 0.3 and 0.1"
    best = {
        panel: [above("dyn_unc", panel, keep, base) for keep in keeps]
        for panel, base in ((CIFAR, "rs2"), (FASHION, "short"))
    }
    yield f"on CIFAR-100 it is {sizes(best[CIFAR])} points above `rs2`"
    yield f"on Fashion-MNIST {sizes(best[FASHION][:2])} above `short` at 0.5 and 0.3"
    hardest = ("entropy", "forgetting", "el2n", "aum")
    yield f"or {max(above(arm, FASHION, 0.5) for arm in hardest):.1f} above at 0.5"
    yield f"and {span((above(arm, FASHION, 0.1) for arm in hardest), 0)} points below at 0.1"
    yield (
        f"on CIFAR-100 they are {span((above(arm, CIFAR, keep) for arm in hardest for keep in keeps), 0)} points below"
    )
    arms = [percent(rows(FASHION, 0.1, arm)) for arm in ("moderate", "static_random", "short")]
    yield f"`moderate` ({arms[0]}, random {arms[1]}, `short` {arms[2]})"


def tdds_table2() -> Sentences:
    def both(arm: str, panel: str) -> str:
        return listed_text(percent(reproduced("tdds_table2", panel, keep, arm)) for keep in (0.5, 0.3))

    def level(arm: str, panel: str, keep: float) -> float:
        return mean(reproduced("tdds_table2", panel, keep, arm))

    yield f"with the weights of Eq. 13 ({both('tdds', FASHION)} on Fashion-MNIST, {both('tdds', CIFAR)} on CIFAR-100)"
    alone = {percent(reproduced("tdds_table2", FASHION, keep, "tdds, unweighted")) for keep in (0.5, 0.3)}
    lead = level("tdds, unweighted", FASHION, 0.3) - level("full", FASHION, 0.3)
    yield f"level with the best at 0.5: {' or '.join(sorted(alone))} at both, {lead:.1f} above `full`"
    yield f"is ahead ({both('ccs', CIFAR)})"
    yield f"which needs no scores: {both('rs2', FASHION)}, {both('rs2', CIFAR)}, which is ahead"


def tdds_windows() -> Sentences:
    rows = partial(reproduced, "tdds_table5")
    keeps = (0.5, 0.3, 0.1)

    def above(arm: str, base: str, panel: str, keep: float) -> float:
        return gap(rows(panel, keep, arm), rows(panel, keep, base))

    windows = {panel: [above("el2n + outer", "el2n", panel, keep) for keep in keeps] for panel in (FASHION, CIFAR)}
    half, *less = windows[FASHION]
    yield (
        f"(by {half:.1f}, {sizes(less, 0)} points at keep 0.5, 0.3 and 0.1); on CIFAR-100 by {sizes(windows[CIFAR], 0)}"
    )
    yield (
        "on Fashion-MNIST at 0.3 and 0.1 (by "
        f"{sizes((above('tdds', 'el2n + outer', FASHION, keep) for keep in keeps[1:]), 0)} points)"
    )
    yield f"where it is {span(above('tdds', 'el2n + outer', CIFAR, keep) for keep in keeps)} points below"
    random = partial(above, base="static_random")
    yield (
        f"EL2N in windows is {span(random('el2n + outer', panel=CIFAR, keep=keep) for keep in keeps)} points above, "
        "TDDS level"
    )
    arms = ("el2n + outer", "tdds")
    yield f"both are {span(random(arm, panel=FASHION, keep=0.5) for arm in arms)} above at 0.5"
    yield (
        f"and {span((random(arm, panel=FASHION, keep=keep) for arm in arms for keep in keeps[1:]), 0)} below at 0.3 "
        "and 0.1"
    )


def tdds_figures() -> Sentences:
    rows = partial(reproduced, "tdds_figure4", CIFAR)
    arms = results("tdds_figure4")["tdds_figure4"]["arms"]
    apart = max(
        max(levels) - min(levels) for levels in ([mean(rows(keep, arm)) for arm in arms] for keep in (0.7, 0.3))
    )
    yield f"lie within {apart:.1f} points"
    early, late = (listed_text(percent(rows(0.1, f"T {t}, K {k}")) for k in (3, 5)) for t in (6, 16))
    yield f"T = 6 has {early}, T = 16 {late}"
    rows = partial(reproduced, "tdds_figure5", CIFAR)
    decays = [
        gap(rows(keep, f"decay {decay}"), rows(keep, "plain mean"))
        for keep in (0.3, 0.1)
        for decay in (0.85, 0.9, 0.95)
    ]
    yield f"by {span(decays)} points, where two seeds differ"
    rows = partial(reproduced, "tdds_figure6", CIFAR)
    keeps = (0.5, 0.3, 0.1)
    divergence = [gap(rows(keep, "unweighted"), rows(keep, "cross-entropy, unweighted")) for keep in keeps]
    yield f"KL divergence is above cross-entropy: agrees, by {span(divergence)} points at every rate"
    magnitude, gradient = (f"official, {name}, unweighted" for name in ("magnitude", "gradient"))
    above = [gap(rows(keep, magnitude), rows(keep, gradient)) for keep in keeps]
    yield f"agrees, by {span(above)} points at every rate"
    arms = ("Eq. 13", "tdds", "unweighted")
    paper, scaled, without = (listed_text(percent(rows(keep, arm)) for keep in keeps) for arm in arms)
    yield f"with those of Eq. 13 `tdds` has {paper}, with the default ones {scaled}, without {without}"
    forms = (
        listed_text(percent(reproduced("tdds_weights", CIFAR, keep, arm)) for keep in keeps)
        for arm in ("none", "mean-one", "raw", "paper")
    )
    none, scaled, raw, each = forms
    yield f"without weights {none}; scaled to mean 1 {scaled}; unscaled {raw}; of Eq. 13, at mean 1, {each}"


def tdds_networks() -> Sentences:
    rows = partial(reproduced, "tdds_cross_architecture")
    lenet, hidden = (accuracy(rows(panel, 0.3, "tdds"), 1) for panel in ("LeNet", "hidden layer"))
    random = listed_text(percent(rows(panel, 0.3, "static_random")) for panel in ("LeNet", "hidden layer"))
    yield (
        f"With LeNet ({lenet}) and the hidden layer ({hidden}) it is ahead of all methods, random coresets ({random}) "
        "included"
    )
    below = {
        panel: [gap(rows(panel, keep, "static_random"), rows(panel, keep, "tdds")) for keep in (0.3, 0.1)]
        for panel in ("small CNN", "LeNet", "hidden layer")
    }
    yield f"with the small CNN itself it is {below['small CNN'][0]:.1f} below those"
    yield f"random coresets are ahead with all three, by {span((gaps[1] for gaps in below.values()), 0)} points"
