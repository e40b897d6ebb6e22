"""Sections on which samples were selected: how often, by what score, of which class, and what they look like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from ...methods import METHODS, reads
from ..data.datasets import Texts
from ..data.named import Data
from ..training.build import load_data
from ..training.settings import Settings
from . import plots
from .document import Block, Chart, Table
from .formatting import counted, listed
from .pack import Run
from .records import Group

STARVED = 0.5  # of the classes' mean share
_CLASSES = 20  # rows of the table of classes
_LETTERS = 240  # of a text
_SAMPLES = 12  # of a kind
_PLACES = 320  # samples in all galleries of a group


def sections(group: Group, data: Data | None) -> dict[str, Sequence[Block]]:
    """Sections by heading, of the data where it is loaded already."""
    if not pruning(group):
        recorded = any("selected" in run.counts for run in group.runs)
        missing = "How often each sample was selected was not recorded (no selection_counts.safetensors)."
        shown: list[Sequence[Block]] = [["No run left samples out." if recorded else missing]] * 3
    elif isinstance(loaded := _loaded(group, data), str):
        missing = f"The data could not be loaded again: {loaded}."
        shown = [counts(group), [missing], [missing]]
    else:
        shown = [counts(group), classes(group, loaded), gallery(group, loaded)]
    how_often, by_class, samples = shown
    return {
        "How often samples were selected": how_often,
        "Scores and losses over epochs": trajectories(group),
        "Retention by class": by_class,
        "Samples kept and pruned": samples,
    }


def _loaded(group: Group, data: Data | None) -> Data | str:
    """The training data of a group's runs, or why it cannot be shown."""
    settings = group.settings()
    if settings is None and data is None:
        return "the runs have not recorded their settings, which name the data"
    try:
        data = data or load_data(settings or Settings())
    except Exception as error:  # whatever readers, tokenizers, a hub or its network raise: the report goes on without
        return " ".join(str(error).split()) or type(error).__name__
    sizes = sorted({run.size for run in group.runs if run.metrics} - {0})
    if sizes in ([], [len(data.train)]):
        return data
    recorded = listed([f"{size:,}" for size in sizes])
    return f"it has {counted(len(data.train), 'training sample')} now, and the runs had {recorded}"


def pruning(group: Group) -> list[str]:
    """Methods whose runs left samples out, and recorded how often each was selected."""
    return [name for name in group.methods if any(run.pruned and run.kept is not None for run in group.of(name))]


def histogram(runs: Sequence[Run]) -> tuple[np.ndarray, int]:
    """(E + 1,) mean over runs of how many samples 0, 1 ... E pruned epochs selected; and E, the most of a run."""
    most = max(len(run.pruned) for run in runs)
    counts = [np.bincount(run.kept, minlength=most + 1) for run in runs if run.kept is not None]
    return np.mean(counts, axis=0), most


def retention(runs: Sequence[Run], labels: np.ndarray, classes: int) -> np.ndarray:
    """(C,) share of a class's samples that a pruned epoch selects, mean over runs; NaN of a class without samples."""
    sizes = np.bincount(labels, minlength=classes).astype(float)
    sizes[sizes == 0] = np.nan
    selected = [(run.kept, len(run.pruned)) for run in runs if run.kept is not None]
    shares = [np.bincount(labels, weights=kept, minlength=classes) / sizes / epochs for kept, epochs in selected]
    return np.mean(shares, axis=0)


def kinds(run: Run, count: int) -> dict[str, list[int]]:
    """Positions of samples always kept, never kept and, where that is recorded, changing most often."""
    kept, epochs = run.kept, len(run.pruned)
    assert kept is not None
    # decides among equals: a gallery is not the beginning of the file
    order = np.random.default_rng(0).permutation(len(kept))
    positions = {"always kept": order[kept[order] == epochs], "always pruned": order[kept[order] == 0]}
    if "switches" in run.counts:
        switches = run.counts["switches"].astype(np.int64)
        most = order[np.argsort(-switches[order], kind="stable")]
        positions["most oscillating"] = most[switches[most] > 0]
    return {kind: places[:count].tolist() for kind, places in positions.items()}


def counts(group: Group) -> list[Block]:
    """How many samples were selected in none, one ... all pruned epochs."""
    charts, rows, color = [], [], plots.colors(group.result)
    for method in pruning(group):
        runs = group.of(method)
        values, most = histogram(runs)
        size = values.sum()
        unseen = np.mean([np.count_nonzero(run.counts["selected"] == 0) for run in runs if run.counts])
        numbers = {"in no pruned epoch": values[0], "in every pruned epoch": values[most]}
        numbers["never trained on at all"] = unseen
        shares = {name: f"{count:,.0f} ({100 * count / size:.1f} %)" for name, count in numbers.items()}
        rows.append({"method": method, "pruned epochs": str(most)} | shares)
        described = (
            f"{method}: of {size:,.0f} samples {values[0]:,.0f} were selected in no pruned epoch and "
            f"{values[most]:,.0f} in all {most}; the mean is {values @ np.arange(most + 1) / size:.2f} epochs"
        )
        figure = plots.histogram(method, values, color[method])
        charts.append(Chart(f"selected_{_file_name(method)}", described, figure))
    note = (
        "Pruned epochs only: full epochs, such as the first one of a comparison, train everything. The hatched bar is "
        "samples that no pruned epoch selected."
    )
    return [note, charts, Table("Samples by how often they were selected, mean over seeds", rows)]


def trajectories(group: Group) -> list[Block]:
    """Score and loss quantiles over the epochs, and the scores of single samples; of each method's first run."""
    traced = [next((run for run in group.of(method) if run.trajectories), None) for method in group.methods]
    color = plots.colors(group.result)
    charts = [chart for run in traced if run for chart in _trajectories(run, color[run.method])]
    without = [method for method, run in zip(group.methods, traced) if run is None]
    note = (
        "The line is the median, the dark band half of the samples around it, the light band nine tenths; each "
        "method's first seed. Scores are those after each epoch, of samples that have one. Losses are of the "
        "samples that the epoch trained: they rise where hard samples are selected. Methods that do not select by "
        "scores have losses only."
    )
    missing = f"Scores and losses of {listed(without)} were not recorded (no trajectories.safetensors)."
    return [note if charts else "", charts, missing if without else ""]


def _trajectories(run: Run, color: str) -> list[Chart]:
    losses, scores, single = (run.trajectories[key] for key in ("losses", "scores", "single"))
    name, first = _file_name(run.method), f"{run.method}, seed {run.seed}"
    charts = []
    if _selects_by_scores(run) and len(np.unique(scores[np.isfinite(scores)])) > 1:
        figure = plots.bands(f"{run.method}: scores of all samples", scores, color, "score")
        charts.append(Chart(f"scores_{name}", f"{first}: {_ends('scores', scores)}", figure))
        figure = plots.singles(f"{run.method}: scores of single samples", single, color, "score")
        described = f"{first}: scores of {single.shape[1]} samples, chosen at random, after every epoch"
        charts.append(Chart(f"single_{name}", described, figure))
    if np.isfinite(losses).any():
        figure = plots.bands(f"{run.method}: losses of trained samples", losses, color, "loss")
        charts.append(Chart(f"losses_{name}", f"{first}: {_ends('losses of trained samples', losses)}", figure))
    return charts


def classes(group: Group, data: Data) -> list[Block]:
    """Share of each class that a pruned epoch selects."""
    if not data.classes:
        return ["The labels are scores, not classes."]
    labels, names = data.train.labels.numpy(), data.classes
    shares = {method: retention(group.of(method), labels, len(names)) for method in pruning(group)}
    # classes of which less than half the classes' mean share is kept
    few = {name: np.flatnonzero(values < STARVED * np.nanmean(values)).tolist() for name, values in shares.items()}
    least = np.nanmin([np.nan_to_num(values, nan=np.inf) for values in shares.values()], axis=0)
    shown = sorted(np.argsort(least, kind="stable")[:_CLASSES])
    sizes = np.bincount(labels, minlength=len(names))
    rows = []
    for at in shown:
        row = {"class": names[at], "samples": f"{sizes[at]:,}"}
        for method, values in shares.items():
            share = "–" if np.isnan(values[at]) else f"{100 * values[at]:.1f} %"
            row[method] = share + ("\nstarved" if at in few[method] else "")
        rows.append(row)
    flagged = [f"{name} ({listed([names[at] for at in places[:8]])})" for name, places in few.items() if places]
    limit = f"less than {100 * STARVED:.0f} % of the classes' mean share"
    starved = f"Starved, with {limit}: {'; '.join(flagged)}." if flagged else f"No class has {limit}."
    part = f"Of {len(names)} classes the {_CLASSES} are shown of which a method keeps least."
    table = Table("Share of a class in a pruned epoch, mean over seeds", rows)
    return [starved, part if len(names) > _CLASSES else "", table]


def gallery(group: Group, data: Data) -> list[Block]:
    """Samples that were always kept, always pruned, and that changed most often, of each method's first run."""
    methods = pruning(group)
    count = min(_SAMPLES, max(3, _PLACES // (3 * len(methods))))
    side = 64 if 3 * count * len(methods) <= 100 else 32  # pixels: the page stays below a few megabytes
    texts: list[Block] = []
    charts: list[Chart] = []
    empty: dict[str, list[str]] = defaultdict(list)
    for method in methods:
        run = next(run for run in group.of(method) if run.kept is not None)
        for kind, positions in kinds(run, count).items():
            heading, captions = f"{method}: {kind}", [_caption(run, data, position) for position in positions]
            if not positions:
                empty[f"No sample was {kind}"].append(method)
            elif isinstance(data.train, Texts):
                shown = [_text(data.train.samples[position], group) for position in positions]
                rows = [{"class": name, "kept": kept, "text": text} for (name, kept), text in zip(captions, shown)]
                texts.append(Table(heading, rows))
            else:
                images = [_thumbnail(data.train[position][0], side) for position in positions]
                described = f"{heading}: samples of {listed(list(dict.fromkeys(label for label, _ in captions)))}"
                figure = plots.gallery(heading, images, ["\n".join(caption) for caption in captions])
                charts.append(Chart(f"{_file_name(kind)}_{_file_name(method)}", described, figure))
        if "switches" not in run.counts:
            empty["Which samples oscillated was not recorded"].append(method)
    note = "Each method's first seed, with a sample's class and in how many pruned epochs it was kept."
    missing = [f"{text}: {listed(names)}." for text, names in empty.items()]
    return [note, *texts, charts, *missing]


def _caption(run: Run, data: Data, position: int) -> tuple[str, str]:
    """A sample's class, and how often it was kept."""
    label = data.train.labels[position].item()
    assert run.kept is not None
    text = f"{run.kept[position]} of {len(run.pruned)}"
    if "switches" in run.counts and (switches := int(run.counts["switches"][position])):
        text += f", {counted(switches, 'change')}"
    return data.classes[int(label)] if data.classes else f"{label:.2f}", text


def _thumbnail(pixels: torch.Tensor, side: int) -> np.ndarray:
    """(C, H, W) bytes as (H, W) or (H, W, 3), no side longer than `side`."""
    from PIL import Image

    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((side, side))
    return np.asarray(image)


def _text(tokens: torch.Tensor, group: Group) -> str:
    from ..data import glue

    settings = group.settings()
    ids, mask, _ = tokens
    tokenizer = glue.tokenizer(settings.model if settings else "")
    text = tokenizer.decode(ids[mask.bool()].tolist(), skip_special_tokens=True)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _selects_by_scores(run: Run) -> bool:
    method = (run.metrics or {})["method"]
    return method in METHODS and reads(method) != "nothing" and not (run.settings or {}).get("selection")


def _ends(what: str, table: np.ndarray) -> str:
    rows = table[np.isfinite(table).all(axis=1)]
    if not len(rows):
        return what
    (first, *start), (last, *end) = ([f"{value:.3g}" for value in row[[2, 0, 4]]] for row in (rows[0], rows[-1]))
    within = f"nine tenths within {' and '.join(start)}"
    return f"{what}: median {first} at first ({within}), {last} at last ({' to '.join(end)})"


def _file_name(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text)
