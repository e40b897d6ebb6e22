"""The tables of README.md and of docs that print results, made from the packed results and from experiments/papers.

    python experiments/tables.py

writes each table between its two comments, `<!-- table: NAME -->` and `<!-- end of table -->`, and results/NAME.md
beside each results/NAME.json. Words stand here; every number that was measured is read from experiments/results.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import claims
import finetuning_tables
import method_cards
import prompts_findings
import theory
from measured import ROOT, Rows, accuracy, compared, differences, number, published, reproduced, results

from dataprune.lab.report import pack, saving_part
from dataprune.lab.report.document import pipe_table as table
from dataprune.lab.report.packed_tables import markdown

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
METHODS = ("rs2", "loss", "infobatch", "emp", "memory")
FASHION = (
    "fashion_mnist",
    "fashion_mnist_plain_momentum",
    "fashion_mnist_noise20",
    "fashion_mnist_noise20_plain_momentum",
)


def pages() -> list[Path]:
    """Pages whose tables are made here."""
    folders = ("docs/findings", "docs/how-to", "docs/methods", "docs/theory")
    fronts = [ROOT / "README.md", ROOT / "docs/index.md"]
    return [*fronts, *(page for folder in folders for page in sorted((ROOT / folder).glob("*.md")))]


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda match: f"{match[1]}\n{_unbroken(TABLES[match[2]]())}\n\n{match[3]}", text)


def _unbroken(text: str) -> str:
    """A mean stays on one line with its deviation, however narrow the page."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def readme() -> str:
    methods = ("full", "short", "rs2", "infobatch", "loss", "emp", "memory")
    lines = [
        ["Fashion-MNIST, 20,000 images, a quarter of the samples", *_quarter("fashion_mnist", methods)],
        ["the same, 20 % of the labels random", *_quarter("fashion_mnist_noise20", methods)],
        [
            "CIFAR-100, 8,000 images, 40 % of the samples: the model underfits",
            accuracy(reproduced("emp_figure7", "CIFAR-100", 0.3, "full"), 1),
            *(accuracy(reproduced("which_budgets", "CIFAR-100", 0.3, arm), 1) for arm in methods[1:]),
        ],
        ["digits, a tenth of the samples", *(accuracy(compared("digits", "digits", name), 1) for name in methods)],
    ]
    return table(["test accuracy, %", *(f"`{name}`" for name in methods)], lines)


def _quarter(entry: str, methods: Iterable[str]) -> list[str]:
    return [accuracy(compared("fashion_mnist", entry, name), 1) for name in methods]


def budgets() -> str:
    panels = {
        "Fashion-MNIST": ("which_budgets", "Fashion-MNIST"),
        "the same, 20 % noise": ("which_budgets", "Fashion-MNIST, 20 % noise"),
        "CIFAR-100": ("which_budgets", "CIFAR-100"),
        "CIFAR-100, 20 % noise": ("which_budgets", "CIFAR-100, 20 % noise"),
        "SST-2, two seeds": ("which_budgets_language", "SST-2"),
        "SST-2, 20 % noise, two seeds": ("which_budgets_language", "SST-2, 20 % noise"),
    }
    lines = []
    for title, (name, panel) in panels.items():
        for keep in (0.5, 0.3, 0.1):
            short = reproduced(name, panel, keep, "short")
            cells = [differences(reproduced(name, panel, keep, arm), short) for arm in METHODS]
            reached = statistics.fmean(row["reached_keep"] for row in reproduced(name, panel, keep, "infobatch"))
            cells[METHODS.index("infobatch")] += f", kept {reached:.2f}"
            level = number(100 * statistics.fmean(row["accuracy"] for row in short), 1)
            lines.append([title if keep == 0.5 else "", f"{keep:g}", level, *cells])
    return table(["", "keep", "`short`, %", *(f"`{arm}`" for arm in METHODS)], lines)


def fashion_mnist() -> str:
    """With figures of the protocol as it was run before this library existed, from two seeds."""
    clean = {"full": "89.4", "memory": "87.8", "emp": "86.6", "loss": "86.6", "short": "85.5", "rs2": "86.0"}
    noise = {"memory": "86.2", "emp": "80.3", "loss": "55", "short": "83.1"}
    lines = []
    for method in ("full", "memory", "emp", "loss", "short", "rs2", "random", "infobatch"):
        cells = [accuracy(compared("fashion_mnist", entry, method)) for entry in FASHION]
        name = "`full`, four times the samples" if method == "full" else f"`{method}`"
        kept = [
            statistics.fmean(row["reached_keep"] for row in compared("fashion_mnist", entry, method))
            for entry in FASHION[::2]
        ]
        reached = f"{kept[0]:.3g}" if method != "infobatch" else f"{kept[0]:.2f} clean, {kept[1]:.2f} noise"
        lines.append([name, *cells[:2], clean.get(method, ""), *cells[2:], noise.get(method, ""), reached])
    head = ["clean, %", "plain momentum", "calibration", "noise, %", "plain momentum", "calibration", "reached keep"]
    return table(["method", *head], lines)


def fashion_mnist_classes() -> str:
    shares = results("fashion_mnist")["fashion_mnist"]["kept_by_class"]
    methods = ("rs2", "loss", "emp", "memory", "infobatch")
    lines = [
        [name, *(f"{100 * shares[method][place]:.0f} %" for method in methods)]
        for place, name in enumerate(shares["classes"])
    ]
    return table(["class", *(f"`{name}`" for name in methods)], lines)


def fashion_mnist_wrong_labels() -> str:
    shares = results("fashion_mnist")["fashion_mnist_noise20"]["wrong_labels"]
    selected = shares["selected_in_20_of_24_epochs"]
    cells = [f"{100 * value:.0f} %" for value in (shares["all"], *selected.values())]
    head = ["", "all samples", *(f"`{name}`" for name in selected)]
    return table(head, [["wrong labels among samples selected in 20 epochs or more", *cells]])


def digits() -> str:
    full = statistics.fmean(row["seconds"] for row in compared("digits", "digits", "full"))
    lines = []
    for method in ("full", "loss", "rs2", "emp", "random", "short", "memory", "infobatch"):
        rows = compared("digits", "digits", method)
        speed = full / statistics.fmean(row["seconds"] for row in rows)
        kept = statistics.fmean(row["reached_keep"] for row in rows)
        samples = f"{round(statistics.fmean(row['samples'] for row in rows)):,}"
        lines.append([f"`{method}`", accuracy(rows), samples, f"{speed:.2g}", f"{kept:.2g}"])
    return table(["method", "accuracy, %", "samples", "speed-up", "reached keep"], lines)


def static_mnist() -> str:
    entries = ("static_mnist_keep10", "static_mnist_keep30")
    full = statistics.fmean(row["seconds"] for row in compared("static_mnist", entries[1], "full"))
    lines = []
    for row in results("static_mnist")[entries[1]]["summary"]:
        method = row["method"]
        if method == "top":
            continue
        cells = [accuracy(compared("static_mnist", entry, method)) for entry in entries]
        weights = ", `weights=paper`" * (method == "tdds")
        lines.append([f"`{method}`{weights}", *cells, f"{row.get('scoring_seconds', 0) / full:.1f}"])
    for method in ("tdds", "grad_match", "craig"):
        cells = [accuracy(compared("static_mnist", f"{entry}_unweighted", method)) for entry in entries]
        lines.append([f"`{method}`, `weights=none`", *cells, ""])
    lines.sort(key=lambda line: (line[0] != "`full`", -float(line[1].split()[0])))
    return table(["method", "keep 0.1, %", "keep 0.3, %", "scoring"], lines)


def static_cifar100() -> str:
    entries = ("static_cifar100_keep10", "static_cifar100_keep30")
    methods = [row["method"] for row in results("static_cifar100")[entries[0]]["summary"]]
    lines = [
        [f"`{method}`{', `weights=paper`' * (method == 'tdds')}"]
        + [accuracy(compared("static_cifar100", entry, method)) for entry in entries]
        for method in methods
    ]
    lines.sort(key=lambda line: (line[0] != "`full`", -float(line[1])))
    return table(["method", "keep 0.1, %", "keep 0.3, %"], lines)


def contrastive(data: str) -> str:
    file = f"contrastive_{data}"
    first = f"{file}_keep30"
    methods = ("full", "short", "rs2", "random", "epsilon_greedy", "loss", "ucb", "infobatch", "emp_contrastive")
    lines = []
    for method in methods:
        cells = [accuracy(compared(file, f"{file}_keep{keep}", method)) for keep in (30, 50, 70)]
        lines.append([f"`{method}`", *cells, *_features(compared(file, first, method))])
    projections = compared(file, f"{first}_projections", "emp_contrastive")
    lines.append(["the same, `--score-on projections`", accuracy(projections), "", "", *_features(projections)])
    untrained = results(file)[first]["untrained"]
    lines.append(["untrained encoder", accuracy(untrained), "", "", *_features(untrained)])
    head = ["keep 0.3", "0.5", "0.7", "0.3: neighbours", "0.3: fine-tuned"]
    return table([{"fashion": "Fashion-MNIST", "cifar100": "CIFAR-100"}[data] + ", %", *head], lines)


def _features(rows: Rows) -> list[str]:
    neighbours = 100 * statistics.fmean(row["knn_accuracy"] for row in rows)
    return [f"{neighbours:.2f}", accuracy(rows, metric="finetuned_accuracy")]


def contrastive_small_keep() -> str:
    file, lines = "contrastive_fashion", []
    for keep, name in (("0.1", "keep10"), ("0.05", "keep05")):
        entry = f"{file}_{name}"
        runs = [compared(file, entry, method) for method in ("short", "rs2", "emp_contrastive")]
        runs.append(compared(file, f"{entry}_drift", "emp_contrastive"))
        lines.append([keep, *map(accuracy, runs), differences(runs[2], runs[0])])
    head = ["`short`, %", "`rs2`, %", "`emp_contrastive`, %", "with a drift term, %", "`emp_contrastive` above `short`"]
    return table(["keep", *head], lines)


def leave_out() -> str:
    four, five = (results(f"emp_figure{figure}")[f"emp_figure{figure}"]["result"] for figure in (4, 5))
    low, high = (100 * bound for bound in four["own_absence_relative_interval_95"])
    least, most = four["first_term_min_max"]
    equal, steps = five["epochs"], five["steps"]
    lines = [
        [
            "the model is not sensitive to one sample",
            f"its absence raises its loss by {100 * four['own_absence_relative']:.2f} % "
            f"(95 %: {low:.2f} to {high:.2f})",
            "yes",
        ],
        [
            "a sample's loss without it is nearly uniform, so that the first term of Eq. 11 can be dropped",
            f"from {least:.2f} to {most:.2f} over samples; as spread as the second term (ratio "
            f"{four['first_over_second_deviation']:.2f}, correlation {four['first_second_pearson']:.3f})",
            "no",
        ],
        [
            "so what is kept stands for memory",
            f"rank correlation with Eq. 11's memory {four['kept_term_memory_spearman']:.2f} "
            f"(p {four['kept_term_memory_p']:.2f})",
            "no",
        ],
        [
            "the loss of pruned samples grows with the rate (Figure 5), equal epochs",
            f"rank correlation {equal['loss']['spearman']:.2f} (p {equal['loss']['p']:.2f}); rises from 0.1 to 0.7, "
            "falls at 0.9, where 32 steps leave features short; divided by their length "
            f"{equal['loss_over_length']['spearman']:.2f}",
            "only divided by the length",
        ],
        [
            "the same at equal steps",
            f"{steps['loss']['spearman']:.2f} (p {steps['loss']['p']:.2f}); divided by the length "
            f"{steps['loss_over_length']['spearman']:.2f} (p {steps['loss_over_length']['p']:.4f})",
            "only divided by the length",
        ],
    ]
    return table(["the paper says", "measured", "agrees"], lines)


def open_questions() -> str:
    """Accuracy of each arm, and its difference to `emp` within seeds with a 95 % interval."""
    measured = results("open_questions")["open_questions"]["result"]
    arms = dict.fromkeys(cell.split()[-1] for cell in measured)
    cells = dict.fromkeys(cell.rpartition(" ")[0] for cell in measured)
    titles = {"fashion-mnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}
    head = [f"{titles[cell.split()[0]]}, {' '.join(cell.split()[1:])}" for cell in cells]
    lines = []
    for arm in arms:
        line = [f"layer `{arm}`" if arm.startswith("conv") else f"`{arm}`"]
        for row in (measured.get(f"{cell} {arm}") for cell in cells):
            text = "" if row is None else f"{row['accuracy']:.2f}"
            if row is not None and "minus_emp" in row:
                mean, low, high = (f"{value:+.2f}".replace("-", "−") for value in row["minus_emp"])
                text += f", {mean} ({low} to {high})"
            line.append(text)
        lines.append(line)
    seeds = ["seeds", *(str(measured[f"{cell} emp"]["seeds"]) for cell in cells)]
    return table(["", *head], [*lines, seeds])


def first_term() -> str:
    measured = results("emp_first_term")["emp_first_term"]["result"]
    names = {"kept_term": "the term that EMP keeps, −d", "halves": "(a) d_other − d_own over halves",
             "neighbours": "(b) 5 nearest pruned samples − d"}  # fmt: skip
    lines = []
    for name, title in names.items():
        row = measured[name]
        cells = []
        for against in ("with_memory", "with_first_term", "with_itself"):
            numbers = [f"{value:.2f}".replace("-", "−") for value in row.get(against, [])]
            cells.append(f"{numbers[0]} ({numbers[1]} to {numbers[2]})" if numbers else "")
        lines.append([title, *cells])
    head = ["", "with Eq. 11's memory", "its first term with the true one", "with itself, over other repetitions"]
    return table(head, lines)


def default_rule(part: str) -> str:
    """Accuracies of a part of the search for the default; the rules beside the better of `short` and `rs2`, by seed."""
    measured = results("default_rule")["default_rule"]["result"][part]
    names = {"drawn_near_doubt": "`learnability`", "near_doubt": "the same, the highest",
             "near_entropy": "H √near, the highest", "drawn_near_entropy": "the same, drawn",
             "drawn_entropy": "H, drawn"}  # fmt: skip
    data = {"fashion-mnist": "Fashion-MNIST", "cifar100": "CIFAR-100", "mnist": "MNIST"}
    arms = [arm for arm in ("short", "rs2", "memory", *names) if any(arm in row for row in measured.values())]
    measured = {panel: row for panel, row in measured.items() if row.keys() >= set(arms)}
    lines, means = [], dict.fromkeys(arms, 0.0)
    for panel, row in measured.items():
        name, _, rest = panel.partition(",")
        cells = []
        for arm in arms:
            of = row[arm]
            means[arm] += of["accuracy"] / len(measured)
            above = of.get("minus_baseline")
            note = "" if above is None else f" ({above[0]:+.2f} ± {above[1]:.2f})".replace("-", "−")
            cells.append(f"{of['accuracy']:.2f}{note if arm in names or arm == 'memory' else ''}")
        lines.append([f"{data.get(name, name)},{rest}", *cells, str(row["rs2"]["seeds"])])
    lines.append(["mean", *(f"{mean:.2f}" for mean in means.values()), ""])
    return table(["", *(names.get(arm, f"`{arm}`") for arm in arms), "seeds"], lines)


SAVED = {"saving_digits": "digits", "saving_mnist": "MNIST, 8,000 images",
         "saving_fashion_mnist": "Fashion-MNIST, 8,000 images"}  # fmt: skip


def saving() -> str:
    """What each method saves at equal accuracy, by data set; whether `full` has converged."""
    methods = {"short": "`short`", "rs2": "`rs2`", "memory": "`memory`", "learnability": "`prune`"}
    lines = []
    for entry, content in results("saving").items():
        rows = {row["method"]: row for row in saving_part.table_rows(content)}
        cells = (rows.get(method, {}).get("saves", "not run") for method in methods)
        gain = content["converged"]
        longer = "" if gain is None else f"{100 * gain['gain']:+.2f} ± {100 * gain['error']:.2f}".replace("-", "−")
        lines.append([SAVED[entry], rows["full"]["accuracy, %"], *cells, longer])
    return table(["", "`full`, %", *methods.values(), "1.5 times the epochs give"], lines)


def saving_budgets() -> str:
    """Accuracy of each method at each budget, and how far it is from `full`, within seeds."""
    entries = results("saving")
    budgets = sorted({cell["budget"] for content in entries.values() for cell in content["cells"]})
    lines = []
    for entry, content in entries.items():
        for method in dict.fromkeys(cell["method"] for cell in content["cells"]):
            cells = {cell["budget"]: cell for cell in content["cells"] if cell["method"] == method}
            texts = [
                f"{100 * cells[budget]['accuracy']:.2f} ({100 * cells[budget]['difference']:+.2f})".replace("-", "−")
                if budget in cells
                else ""
                for budget in budgets
            ]
            lines.append([SAVED[entry], f"`{method}`", *texts])
    return table(["", "", *(f"{100 * budget:.0f} % of the steps" for budget in budgets)], lines)


def joint() -> str:
    places = ((0.1, 0.0), (0.1, 0.4), (0.1, 0.8), (0.3, 0.8), (0.5, 0.0), (0.5, 0.8))
    lines = []
    for entry, title in (("joint_mnist_mlp", "hidden layer"), ("joint_mnist_lenet", "LeNet")):
        summary = {(row["arm"], row["ratio"], row["amount"]): row for row in results("joint_mnist")[entry]["summary"]}
        for ratio, amount in places:
            rows = [summary[arm, ratio, amount] for arm in ("low", "high", "random")]
            cells = [
                f"{number(100 * row['difference_mean'], 2, '+')} ± {100 * row['difference_std']:.2f}" for row in rows
            ]
            flops = [f"{row['flops'] / row['base_flops']:.2f}" for row in (rows[0], rows[2])]
            lines.append([title, f"{ratio:g}", f"{amount:g}", *cells, *flops])
    return table(["net", "ratio", "amount", "low", "high", "random", "FLOPs, low and high", "FLOPs, random"], lines)


def glue() -> str:
    names = {"sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA"}
    metrics = {"sst2": "accuracy", "mrpc": "accuracy", "stsb": "Pearson", "cola": "Matthews"}
    methods, lines = ("short", *METHODS), []
    for task, name in names.items():
        full = compared(f"glue_{task}", f"glue_{task}_keep30", "full")
        labels = [
            f"{name}, {metrics[task]}",
            f"`full` {accuracy(full, 1)}",
            f"paper's `full` {published('emp_table3', name)['full'][0]:.1f}",
        ]
        for place, (label, keep) in enumerate(zip(labels, (0.7, 0.5, 0.3))):
            entry = f"glue_{task}_keep{round(100 * keep)}"
            cells = [accuracy(compared(f"glue_{task}", entry, method), 1) or "–" for method in methods]
            steps = compared(f"glue_{task}", entry, "short")[0]["steps"]
            printed = published("emp_table3", name)
            paper = ", ".join(f"{printed[method][place]:.1f}" for method in ("infobatch", "emp"))
            lines.append([label, f"{keep:g}", str(steps), *cells, paper])
    return table(["", "keep", "steps", *(f"`{name}`" for name in methods), "paper: `infobatch`, `emp`"], lines)


def label_errors() -> str:
    result = results("label_errors")["label_errors"]
    names = {
        "el2n": "`el2n`",
        "aum": "`aum`",
        "cleanlab, self confidence": "cleanlab, self-confidence",
        "cleanlab, normalized margin": "cleanlab, normalized margin",
        "loss": "`loss`",
        "forgetting": "`forgetting`",
    }
    data = list(result["summary"])
    lines = [
        [title, *("{:.3f} ± {:.3f}".format(*result["summary"][one][name]["precision"]) for one in data)]
        for name, title in names.items()
    ]
    shares = {"fitted": "errors known by heart at the end (p > 1/2)", "never_learned": "errors never once right"}
    for name, title in shares.items():
        values = [[100 * p["wrong_labels"][name] for p in result["points"] if p["data"] == one] for one in data]
        lines.append([title, *(_range(shares) for shares in values)])
    return table(["", *data], lines)


def label_error_scores() -> str:
    result = results("label_errors")["label_errors"]
    names = {name: f"`{name}`" for name in ("el2n", "aum", "loss", "forgetting", "entropy", "tdds", "dual", "dyn_unc")}
    names["cleanlab, self confidence"] = "cleanlab, self-confidence (the held-out loss)"
    names["cleanlab, normalized margin"] = "cleanlab, normalized margin"
    lines = []
    for name, title in names.items():
        scores = [data[name] for data in result["summary"].values()]
        cells = ["{:.3f} ± {:.3f}".format(*score["precision"]) + f"\n{score['auroc'][0]:.3f}" for score in scores]
        lines.append([title, *(part for cell in cells for part in cell.split("\n"))])
    cells = []
    for data in result["summary"]:
        found = [point["confident_learning"] for point in result["points"] if point["data"] == data]
        cells += [
            ", ".join(f"{statistics.fmean(row[key] for row in found):.2f}" for key in ("precision", "recall")),
            "",
        ]
    lines.append(["cleanlab, `find_label_issues`: precision, recall", *cells])
    head = [part for data in result["summary"] for part in (data.replace("fashion-mnist", "Fashion-MNIST"), "AUROC")]
    return table(["", *head], lines)


def _range(percents: Sequence[float]) -> str:
    low, high = min(percents), max(percents)
    return " to ".join(f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}" for value in (low, high)) + " %"


def advise() -> str:
    policies = ("advise", "short", *(method for method in METHODS if method != "infobatch"))
    points, lines = results("advise")["advise"]["points"], []
    for point in points:
        means = {name: statistics.fmean(values) for name, values in point["accuracy"].items()}
        best = max(means, key=lambda name: means[name])
        regrets = [number(100 * point["regret"][policy], 2) for policy in policies]
        cost = f"{point['pilot']['cost']['relative']:.1f} runs"
        cells = [f"`{best}` {100 * means[best]:.2f}", f"`{point['chosen']}`", *regrets]
        lines.append([point["setting"], *cells, number(100 * point["spread"], 2), cost])
    for title, of in (("mean", statistics.fmean), ("worst", max)):
        values = [number(100 * of([point["regret"][policy] for point in points]), 2) for policy in policies]
        lines.append([title, "", "", *values, "", ""])
    head = ["setting", "best, %", "advised", *(f"`{policy}`" for policy in policies), "spread", "cost of the pilots"]
    return table(head, lines)


def grad_match_penalty() -> str:
    rows = json.loads((ROOT / "benchmarks/results/grad_match_penalty_cpu.json").read_text(encoding="utf-8"))
    cells: dict[str, list[str]] = {}
    for row in rows:
        cells.setdefault(row["coreset"], []).append(f"{row['mean']:.1f} ± {row['sd']:.1f}")
    columns = dict.fromkeys(f"{row['data']}, {row['epochs']} epochs" for row in rows)
    return table(["coreset", *columns], [[name, *values] for name, values in cells.items()])


TABLES: dict[str, Callable[[], str]] = {
    "readme": readme,
    "budgets": budgets,
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_classes": fashion_mnist_classes,
    "fashion_mnist_wrong_labels": fashion_mnist_wrong_labels,
    "digits": digits,
    "static_mnist": static_mnist,
    "static_cifar100": static_cifar100,
    "contrastive_fashion": lambda: contrastive("fashion"),
    "contrastive_cifar100": lambda: contrastive("cifar100"),
    "contrastive_small_keep": contrastive_small_keep,
    "leave_out": leave_out,
    "open_questions": open_questions,
    "sft_selection": finetuning_tables.sft_selection,
    "first_term": first_term,
    "saving": saving,
    "saving_budgets": saving_budgets,
    "default_search": partial(default_rule, "search"),
    "default_judged": partial(default_rule, "judge"),
    "joint": joint,
    "glue": glue,
    "label_errors": label_errors,
    "advise": advise,
    **claims.TABLES,
    **method_cards.TABLES,
    **prompts_findings.TABLES,
    **theory.TABLES,
    "label_error_scores": label_error_scores,
    "grad_match_penalty": grad_match_penalty,
}


def main() -> None:
    """Write the tables."""
    texts = {page: filled(page.read_text(encoding="utf-8")) for page in pages()}
    for path in (ROOT / "experiments/results").glob("*.json"):
        texts[path.with_suffix(".md")] = markdown(path.stem, pack.read(path))
    for page, text in texts.items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
