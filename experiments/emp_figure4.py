"""How far apart a sample's two views are for a model that never saw the sample: EMP's Figure 4, with 50 retrainings.

    python experiments/emp_figure4.py --out runs/emp_figure4
    dataprune pack runs/emp_figure4 --out experiments/results/emp_figure4.json

Given again, it does what is missing and draws anew.

Claim (Xiao et al., arXiv:2408.16031, section 3.4, Figure 4): the memory of a sample is (Eq. 11) its loss under A(D − x)
minus its loss under A(D), with (Eq. 12) loss = ‖f(x_i) − f(x_j)‖₂ before the projection. The first term "is almost
uniform" over samples, as the model "is not sensitive to these individual samples"; so the score keeps the second alone.
Paper: CIFAR-10, ResNet-50, 50 samples, 50 experiments.

Here: 1,000 images of CIFAR-100, a CNN of four convolutions, SimCLR with the paper's views, temperature and Adam, 16
epochs in batches of 50 (`--scale paper`: all of CIFAR-10, ResNet-50, 100 epochs in batches of 256; days on one GPU:
configured, not run). 50 samples, each left out of one retraining, and one training on all. All start from the same
weights and see the same views in the same batches; a retraining only lacks its sample. A loss is the mean over 16 pairs
of views, the same for all runs, in evaluation mode. Every retraining gives the losses of all 50 samples, so that what a
sample's own absence does stands beside what the absence of others does. n: 51 trainings, one seed. About 11 minutes of
one CPU core. What counts as agreeing was fixed before the run: see `analyse`.

Came out: insensitive, yes: its own absence raises a sample's loss by 0.35 % (95 % interval 0.03 to 0.68). Uniform, no:
it lies between 0.77 and 2.28, and varies over samples as much as the term that is kept (ratio 0.99, Pearson 0.999).
What is kept does not stand for memory here (Spearman 0.08, p 0.59): the two terms cancel, sample by sample.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from dataprune import files
from dataprune.contrastive import SimCLR
from dataprune.errors import DataError, UsageError
from dataprune.lab.data.datasets import Images
from dataprune.lab.training import optimizers
from dataprune.lab.training.build import build_rate, load_data
from dataprune.lab.training.device import choose_device, stream
from dataprune.lab.training.run_folder import Environment
from dataprune.lab.training.settings import CONTRASTIVE, Settings
from dataprune.lab.training.tasks.contrastive import Contrastive

SCALES: dict[str, dict[str, Any]] = {
    "smoke": dict(data="digits", train_size=60, epochs=2, batch_size=20),
    "cpu": dict(data="cifar100", train_size=1000, epochs=16, batch_size=50),
    "paper": dict(  # beside Table B.5, the defaults
        data="uoft-cs/cifar10", model="resnet50", projection="linear", device=None, threads=0
    ),
}
REMOVED = {"smoke": 5, "cpu": 50, "paper": 50}
PAIRS = {"smoke": 2, "cpu": 16, "paper": 16}
CHUNK = 1000  # samples that are measured at a time
PERMUTATIONS = 10_000
DISTANCE = r"$\Vert f(x_i) - f(x_j)\Vert_2$"


class Study:
    """One data set, one initialisation, one order and one set of views; retrainings differ in who is left out."""

    def __init__(self, scale: str, pairs: int):
        recipe = {name: value for name, value in CONTRASTIVE.items() if name != "methods"}
        recipe |= dict(model="small_cnn", method="full", test_size=1, device="cpu", threads=1)
        self.settings = Settings(**(recipe | SCALES[scale]))
        self.data = load_data(self.settings)
        assert isinstance(self.data.train, Images)  # these few are decoded at once
        self.device = choose_device(self.settings.device)
        self.images = self.data.train.images.to(self.device)
        self.task, self.pairs = Contrastive(self.settings, self.data), pairs
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)  # sums in another order are other sums

    def draw(self, *purpose: Any) -> Int[Tensor, " n"]:
        """The samples in a random order, one for each purpose."""
        generator = torch.Generator().manual_seed(stream(self.settings.seed, *purpose))
        return torch.randperm(len(self.images), generator=generator)

    def retrain(self, batches: list[tuple[int, Tensor]]) -> tuple[SimCLR, list[float]]:
        """The model after these batches (epoch of the views, samples), and NT-Xent of each step."""
        model, settings, losses = self.task.model().to(self.device), self.settings, []  # the same weights in every call
        assert isinstance(model, SimCLR)
        optimizer = optimizers.build(settings, model.parameters())
        rate = build_rate(settings)
        for step, (epoch, index) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = settings.lr * rate((step + 0.5) / len(batches))
            index = index.to(self.device)
            output = model(*self.task.inputs(self.images[index], index, epoch))
            loss = self.task.losses(output, index)[0].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return model, losses

    @torch.no_grad()
    def distances(self, model: SimCLR, index: Int[Tensor, " k"]) -> tuple[Float[Tensor, "k pairs"], float]:
        """‖f(x_i) - f(x_j)‖₂ for pairs of views that no training saw, and the mean of ‖f‖."""
        model.eval()
        distances, norms = [], []
        for pair in range(self.pairs):
            parts = []
            for chunk in index.to(self.device).split(CHUNK):
                views = self.task.views(self.images[chunk], chunk, seed=self.settings.seed + 1, epoch=pair)
                (f_i, f_j), _ = model(*views)
                parts.append(((f_i - f_j).norm(dim=1), torch.cat([f_i, f_j]).norm(dim=1)))
            distance, norm = map(torch.cat, zip(*parts))
            distances.append(distance.cpu())
            norms.append(norm.mean().item())
        return torch.stack(distances, dim=1), sum(norms) / len(norms)


class Ledger:
    """Finished retrainings, a line of JSON each, under a first line that says what they are retrainings of."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as it will be read
        text = path.read_text() if path.exists() else ""
        # a line without its end was being written when the run was killed
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.head = (
            lines[0]
            if lines
            else {"settings": settings, "machine": asdict(Environment.current(choose_device(settings.get("device"))))}
        )
        if self.head["settings"] != settings:
            raise UsageError(f"{path} holds retrainings with other settings: choose another --out, or delete it")
        self.path, self.lines = path, {line["run"]: line for line in lines[1:]}
        files.write_bytes(path, "".join(json.dumps(line) + "\n" for line in (self.head, *self.lines.values())).encode())

    def add(self, run: str, **figures: Any) -> None:
        self.lines[run] = {"run": run, **figures}
        files.append_json(self.path, self.lines[run])


def without(study: Study, sample: int | None) -> Iterable[tuple[int, Tensor]]:
    """The batches of the whole data; the one that holds the sample has one fewer, all others are the same."""
    for epoch in range(study.settings.epochs):
        for index in study.draw("order", epoch).split(study.settings.batch_size):
            yield epoch, index if sample is None else index[index != sample]


def rounded(values: Tensor | list[float]) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]


def measure(study: Study, chosen: Int[Tensor, " k"], ledger: Ledger) -> None:
    """All trainings that the ledger lacks."""
    if "untrained" not in ledger.lines:
        distance, norm = study.distances(study.retrain([])[0], chosen)
        ledger.add("untrained", distance=rounded(distance.mean(1)), norm=norm)
    for number, sample in enumerate([None, *chosen.tolist()]):
        run = "all" if sample is None else f"without {sample}"
        if run in ledger.lines:
            continue
        started = time.process_time()
        model, losses = study.retrain(list(without(study, sample)))
        distance, norm = study.distances(model, chosen)
        steps = len(losses) // study.settings.epochs
        ledger.add(
            run,
            distance=rounded(distance.mean(1)),
            deviation=float(distance.std(1).mean()),  # over the pairs of views
            norm=norm,
            nt_xent=rounded([sum(losses[:steps]) / steps, sum(losses[-steps:]) / steps]),  # first and last epoch
            cpu_seconds=round(time.process_time() - started, 2),
        )
        print(f"{number + 1}/{len(chosen) + 1} {run}: mean distance {distance.mean():.4f}", flush=True)


def analyse(table: Float[Tensor, "k k"], whole: Float[Tensor, " k"]) -> dict[str, Any]:
    """The claim in numbers. `table[r, s]` is the loss of sample s where sample r was left out; `whole`, of A(D).

    1. Insensitive: the mean effect of a sample's own absence, its whole 95 % interval within 5 % of the mean loss.
    2. Uniform, so that it does not matter to a ranking: over samples the first term of Eq. 11 varies less than half as
       much as the second, which is kept.
    3. What is kept then stands for memory: -loss of A(D) and mem correlate over samples (Spearman, p < 0.05, above 0).
       mem is taken against the mean of the retrainings that have the sample: with A(D) itself, its noise would be in
       both and correlate with itself.
    """
    size = len(table)
    others = table.masked_fill(torch.eye(size, dtype=torch.bool), torch.nan)
    first, included = table.diagonal(), others.nanmean(0)
    retrainings = ((others - included).square().nansum() / (size * (size - 2))).sqrt()
    memory = first - included
    mean, error = float(memory.mean()), float(memory.std() / size**0.5)
    reach = float(stats.t.ppf(0.975, size - 1)) * error
    scale = float(included.mean())
    interval = [(mean - reach) / scale, (mean + reach) / scale]
    ratio = float(first.std() / whole.std())
    rank: Any = stats.spearmanr(-whole.numpy(), memory.numpy())
    # every row and column is once in the sum, so that runs and samples that are high as a whole cannot matter
    generator, columns = torch.Generator().manual_seed(0), torch.arange(size)
    drawn = [table[torch.randperm(size, generator=generator), columns].sum() for _ in range(PERMUTATIONS)]
    centre = table.sum() / size  # expected of the sum
    beyond = int(((torch.stack(drawn) - centre).abs() >= (first.sum() - centre).abs()).sum())
    return {
        "first_term_mean": float(first.mean()),
        "first_term_min_max": [float(first.min()), float(first.max())],
        "first_term_deviation_over_samples": float(first.std()),
        "first_term_variation": float(first.std() / first.mean()),
        "second_term_deviation_over_samples": float(whole.std()),
        "deviation_over_retrainings": float(retrainings),
        "own_absence_relative": mean / scale,
        "own_absence_relative_interval_95": interval,
        "own_absence_raised_loss_of": int((memory > 0).sum()),
        "own_absence_sign_test_p": float(stats.binomtest(int((memory > 0).sum()), size).pvalue),
        "own_absence_permutation_p": (beyond + 1) / (PERMUTATIONS + 1),
        "first_over_second_deviation": ratio,
        "first_second_pearson": float(torch.corrcoef(torch.stack([first, whole]))[0, 1]),
        "kept_term_memory_spearman": float(rank.statistic),
        "kept_term_memory_p": float(rank.pvalue),
        "agrees": {
            "insensitive": max(map(abs, interval)) < 0.05,
            "uniform": ratio < 0.5,
            "stands_for_memory": bool(rank.statistic > 0 and rank.pvalue < 0.05),
        },
    }


def draw(table: Float[Tensor, "k k"], whole: Float[Tensor, " k"], result: dict[str, Any], title: str) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    first, size = table.diagonal(), len(table)
    order = first.argsort()
    for place, sample in enumerate(order.tolist()):
        others = torch.cat([table[:sample, sample], table[sample + 1 :, sample]])
        left.plot([place] * (size - 1), others, ".", color="0.75", markersize=3, zorder=1, rasterized=True)
    left.plot([], [], ".", color="0.6", label=f"it is trained on, another one left out ({size - 1} retrainings)")
    left.plot(range(size), first[order], "o", color="C0", markersize=4, zorder=3, label="it is left out")
    left.axhline(result["first_term_mean"], color="C3", linewidth=1.2, label=f"mean of the {size} where it is left out")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("sample, in the order of its distance where it is left out")
    left.set_ylabel(DISTANCE)
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8, loc="upper left")
    right.axline((float(whole.mean()),) * 2, slope=1, color="0.7", linewidth=1, zorder=0)
    right.plot(whole, first, "o", color="C0", markersize=4)
    right.axhline(result["first_term_mean"], color="C3", linewidth=1.2)
    right.set_xlabel(f"{DISTANCE}, trained on all samples: A(D)")
    right.set_ylabel(f"{DISTANCE}, it is left out: A(D − x)")
    right.set_title(f"Pearson {result['first_second_pearson']:.3f}; grey: equal; red: if it were uniform", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As SVG and PNG, the same bytes for the same points."""
    for form in ("svg", "png"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "dataprune"}):
            figure.savefig(buffer, format=form, dpi=130, metadata={"Date": None} if form == "svg" else None)
        files.write_bytes(path.with_suffix(f".{form}"), buffer.getvalue())


def main(scale: str, out: Path) -> dict[str, Any]:
    study = Study(scale, PAIRS[scale])
    chosen = study.draw("left out")[: REMOVED[scale]]
    settings = {**study.settings.as_dict(), "scale": scale, "pairs": study.pairs, "left_out": chosen.tolist()}
    ledger = Ledger(out / "retrainings.jsonl", settings)
    measure(study, chosen, ledger)
    whole = torch.tensor(ledger.lines["all"]["distance"])
    table = torch.tensor([ledger.lines[f"without {sample}"]["distance"] for sample in chosen.tolist()])
    result = analyse(table, whole)
    result["deviation_by_choice_of_views"] = ledger.lines["all"]["deviation"] / study.pairs**0.5  # of a term
    title = (
        f"{study.settings.data}, {len(study.images)} images, {study.settings.model}, {study.settings.epochs} epochs: "
        f"distance of two views' features, {len(table)} retrainings, each without one sample"
    )
    save(draw(table, whole, result, title), out / "figure4")
    files.write_json(out / "figure4.json", {**ledger.head, "result": result, "points": list(ledger.lines.values())})
    print(json.dumps(result, indent=2))
    return result


def command(description: str, main: Callable[[str, Path], Any]) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        main(given.scale, given.out)
    except (DataError, UsageError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    command("Figure 4 of the EMP paper: one sample left out at a time.", main)
