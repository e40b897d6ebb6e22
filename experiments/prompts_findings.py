"""Tables and sentences of docs/findings/prompts.md, from results/prompts_simulation.json and prompts_grpo.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from measured import number, results

from dataprune.lab.report.document import pipe_table as table

NAMES = {
    "uniform": "`uniform`",
    "filter_after": "`filter_after`",
    "greso": "`greso`",
    "greso, filtered": "`greso(discards=True)`",
    "mopps, pool 8": "`mopps(pool=8)`",
    "mopps": "`mopps`",
}


def simulated(panel: str, arm: str) -> dict[str, Any]:
    """Means over seeds; {} where the arm was not run."""
    return results("prompts_simulation")["prompts_simulation"]["result"].get(f"{panel}, {arm}", {})


def trained(arm: str) -> dict[str, Any]:
    return results("prompts_grpo")["prompts_grpo"]["result"][arm]


def ratio(panel: str, arm: str) -> str:
    """Rollouts relative to `uniform`, with the interval."""
    if not (row := simulated(panel, arm)):
        return ""
    mean, low, high = row["to_uniform"]
    return f"{mean:.2f}" if arm == "uniform" else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def difference(values: list[float], digits: int = 1) -> str:
    """Points, with the interval."""
    mean, low, high = (number(value, digits, "+") for value in values)
    return f"{mean} ({low} to {high})"


def simulation() -> str:
    panels = list(results("prompts_simulation")["prompts_simulation"]["settings"]["panels"])
    lines = [[name, *(ratio(panel, arm) for panel in panels)] for arm, name in NAMES.items()]
    uniform = [simulated(panel, "uniform") for panel in panels]
    lines.append(["rollouts of `uniform`", *(f"{row['rollouts'] / 1000:,.0f} thousand" for row in uniform)])
    lines.append(["epochs of `uniform`", *(f"{row['epochs']:.1f}" for row in uniform)])
    return table(["rollouts to 60 % success, relative to `uniform`", *panels], lines)


def simulation_steps() -> str:
    panels = list(results("prompts_simulation")["prompts_simulation"]["settings"]["panels"])
    lines = []
    for arm, name in NAMES.items():
        rows = [simulated(panel, arm) for panel in panels]
        lines.append([name, *(f"{row['steps']:.0f}, {100 * row['no_variance']:.0f} %" if row else "" for row in rows)])
    return table(["steps, groups without variance", *panels], lines)


def grpo() -> str:
    lines = []
    for arm, name in NAMES.items():
        if arm == "mopps":
            continue
        row = trained(arm)
        seconds = sum(row[part] for part in ("rolling_out", "updating", "proposing"))
        minus = [
            "" if arm == "uniform" else difference(row[f"{of} {what} minus uniform"])
            for of, what in (("train", "final"), ("held_out", "final"), ("train", "average"), ("train", "seconds"))
        ]
        shares = f"{100 * row['easy']:.0f}, {100 * row['hard']:.0f} %"
        lines.append([name, number(row["train final"], 1), *minus, f"{row['steps']:.0f}", shares, f"{seconds:.1f}"])
    head = ["success at the end, %", "− `uniform`", "held out, − `uniform`", "average over the run, − `uniform`",
            "at equal seconds, − `uniform`", "steps", "easy, hard groups", "CPU seconds"]  # fmt: skip
    return table(["", *head], lines)


def grpo_filter() -> str:
    lines = []
    for arm in ("greso", "greso, filtered", "mopps, pool 8"):
        row = trained(arm)
        cells = [
            difference(row[f"{of} {what} minus filter_after"])
            for of, what in (("train", "final"), ("held_out", "final"), ("train", "average"), ("train", "seconds"))
        ]
        lines.append([NAMES[arm], *cells])
    head = ["success at the end", "held out", "average over the run", "at equal seconds"]
    return table(["− `filter_after`, points", *head], lines)


TABLES: dict[str, Callable[[], str]] = {
    "prompts_simulation": simulation,
    "prompts_simulation_steps": simulation_steps,
    "prompts_grpo": grpo,
    "prompts_grpo_filter": grpo_filter,
}


def saved(panel: str, arm: str) -> str:
    """Percent of the rollouts of `uniform`."""
    return f"{100 - 100 * simulated(panel, arm)['to_uniform'][0]:.0f}"


def believed(panel: str) -> str:
    """What `mopps` saves, with and without a pool."""
    return spanned(*(saved(panel, arm) for arm in ("mopps, pool 8", "mopps")))


def spanned(*values: str) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def steps(panel: str) -> str:
    """Of `filter_after`, percent of those of `uniform`."""
    return f"{100 * simulated(panel, 'filter_after')['steps'] / simulated(panel, 'uniform')['steps']:.0f}"


def points(arm: str, other: str) -> float:
    """Success at the end on the training prompts, above another arm."""
    return trained(arm)[f"train final minus {other}"][0]


def parts(arm: str) -> dict[str, float]:
    """Percent of the CPU seconds."""
    row = trained(arm)
    seconds = {name: row[name] for name in ("rolling_out", "updating", "proposing")}
    return {name: 100 * value / sum(seconds.values()) for name, value in seconds.items()}


def prompts() -> Iterator[str]:
    """Sentences of the page."""
    yield from simulation_sentences()
    policies = [arm for arm in NAMES if arm not in ("uniform", "mopps")]
    for what in ("final", "average", "seconds"):
        assert all(trained(arm)[f"train {what} minus uniform"][0] < 0 for arm in policies)
    mean, _, high = trained("mopps, pool 8")["train final minus uniform"]
    assert high < 0
    yield f"`mopps` is {-mean:.1f} points below it at the end"
    above = [trained(arm)["train final minus filter_after"] for arm in ("greso", "mopps, pool 8")]
    assert all(low < 0 < high for _, low, high in above)
    refilled = points("greso, filtered", "filter_after")
    yield (
        f"above `filter_after` `greso` is {above[0][0]:.1f} points here, `mopps` {above[1][0]:.1f}, with intervals "
        f"that include zero, and with refills `greso` is {-refilled:.1f} below it"
    )
    uniform, greso, mopps = (trained(arm) for arm in ("uniform", "greso", "mopps, pool 8"))
    shares = [f"{100 * row['no_variance']:.0f}" for row in (uniform, greso, mopps)]
    yield f"fall from {shares[0]} to {shares[1]} % with `greso` and to {shares[2]} % with `mopps`"
    hard, easy = ([f"{100 * row[kind]:.0f}" for row in (uniform, greso)] for kind in ("hard", "easy"))
    yield f"fewer ({hard[0]} to {hard[1]} %), of the easy ones more ({easy[0]} to {easy[1]} %)"
    filtered, (mean, low, high) = trained("filter_after"), uniform["train final minus filter_after"]
    ratio_of_groups = filtered["steps"] / (uniform["steps"] * (1 - uniform["no_variance"]))
    assert 0.95 < ratio_of_groups < 1.05
    steps_taken = f"in {filtered['steps']:.0f} steps in place of {uniform['steps']:.0f}"
    yield f"{steps_taken}, and is {mean:.1f} points ({number(low, 1)} to {high:.1f}) below it"
    proposing = spanned(*(f"{parts(arm)['proposing']:.0f}" for arm in NAMES if arm != "mopps"))
    rolling_out = f"Rolling out is {parts('uniform')['rolling_out']:.0f} % of the seconds of `uniform`"
    yield f"{rolling_out}; proposing and recording {proposing} %"


def simulation_sentences() -> Iterator[str]:
    settings = results("prompts_simulation")["prompts_simulation"]["settings"]
    few, many, million, wide = settings["panels"]
    yield f"the mean success over all prompts is {100 * settings['target']:.0f} %, from {100 * settings['start']:.0f} %"
    epochs = spanned(*(f"{simulated(few, arm)['epochs']:.0f}" for arm in ("mopps", "uniform")))
    yield (
        f"With 10,000 prompts and {epochs} epochs `greso` takes {saved(few, 'greso')} % fewer rollouts than `uniform`, "
        f"`mopps` {believed(few)} %"
    )
    yield f"they take {saved(wide, 'greso')} and {believed(wide)} % fewer"
    assert simulated(many, "greso")["to_uniform"] == [1.0, 1.0, 1.0] and simulated(many, "uniform")["epochs"] < 1
    yield f"`mopps` takes {saved(many, 'mopps, pool 8')} % fewer, as its pool comes round"
    assert all(abs(simulated(million, arm)["to_uniform"][0] - 1) < 0.001 for arm in NAMES if arm != "mopps")
    shares = spanned(*(steps(panel) for panel in (few, many, million)))
    yield f"in {shares} % of the steps ({steps(wide)} % where difficulties are wide)"
