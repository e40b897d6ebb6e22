"""Sections on which samples were selected: how often, by what score, of which class, and what they look like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...methods import METHODS, reads
from ..data.datasets import Texts
from ..data.named import Data
from ..training.build import load_data
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
    """Sections by heading; of the data where it is loaded already."""
    uncounted: Sequence[Block] = []
    if not pruning(group):
        recorded = any("selected" in run.counts for run in group.runs)
        missing = "How often each sample was selected was not recorded (no selection_counts.safetensors)."
        uncounted = by_class = shown = ["No run left samples out." if recorded else missing]
    else:
        loaded = _matching(group, data or _load(group))
        if isinstance(loaded, str):
            by_class = shown = [f"The data could not be loaded again: {loaded}."]
        else:
            by_class, shown = classes(group, loaded), gallery(group, loaded)
    return {
        "How often samples were selected": uncounted or counts(group),
        "Scores and losses over epochs": trajectories(group),
        "Retention by class": by_class,
        "Samples kept and pruned": shown,
    }


def _load(group: Group) -> Data | str:
    """The training data of a group's runs, or why it cannot be loaded."""
    settings = group.settings()
    if settings is None:
        return "the runs have not recorded their settings, which name the data"
    try:
        return load_data(settings)
    except Exception as error:  # whatever readers, tokenizers, a hub or its network raise: the report goes on without
        return " ".join(str(error).split()) or type(error).__name__


def _matching(group: Group, data: Data | str) -> Data | str:
    """The data, if it is what the runs were trained on."""
    sizes = sorted({run.size for run in group.runs if run.metrics} - {0})
    if isinstance(data, str) or sizes in ([], [len(data.train)]):
        return data
    recorded = listed([f"{size:,}" for size in sizes])
    return f"it has {counted(len(data.train), 'training sample')} now, and the runs had {recorded}"


def pruning(group: Group) -> list[str]:
    """Methods whose runs left samples out, and recorded how often each was selected."""
    return [name for name in group.methods if any(run.pruned and run.kept is not None for run in group.of(name))]


def histogram(runs: Sequence[Run]) -> tuple[np.ndarray, int]:
    """Samples by the number of pruned epochs that selected them, of runs of one method.

    Returns:
        (E + 1,) mean over runs of how many samples were selected in 0, 1 ... E pruned epochs; and E, the most of a run.
    """
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


def starved(shares: np.ndarray) -> list[int]:
    """Classes of which less than half the classes' mean share is kept."""
    return np.flatnonzero(shares < STARVED * np.nanmean(shares)).tolist()


def kinds(run: Run, count: int) -> dict[str, list[int]]:
    """Positions of samples always kept, never kept and, where that is recorded, changing most often.

    Among equals a fixed random order decides, so that a gallery is not the beginning of the file.
    """
    kept, epochs = run.kept, len(run.pruned)
    assert kept is not None
    order = np.random.default_rng(0).permutation(len(kept))
    positions = {
        "always kept": order[kept[order] == epochs][:count].tolist(),
        "always pruned": order[kept[order] == 0][:count].tolist(),
    }
    if "switches" in run.counts:
        switches = run.counts["switches"].astype(np.int64)
        most = order[np.argsort(-switches[order], kind="stable")][:count]
        positions["most oscillating"] = most[switches[most] > 0].tolist()
    return positions


def counts(group: Group) -> list[Block]:
    """How many samples were selected in none, one ... all pruned epochs."""
    charts, rows, color = [], [], plots.colors(group.result)
    for method in pruning(group):
        runs = group.of(method)
        values, most = histogram(runs)
        size = values.sum()
        unseen = np.mean([np.count_nonzero(run.counts["selected"] == 0) for run in runs if run.counts])
        cells = [values[0], values[most], unseen]
        rows.append([method, str(most), *(f"{cell:,.0f} ({100 * cell / size:.1f} %)" for cell in cells)])
        described = (
            f"{method}: of {size:,.0f} samples {values[0]:,.0f} were selected in no pruned epoch and "
            f"{values[most]:,.0f} in all {most}; the mean is {values @ np.arange(most + 1) / size:.2f} epochs"
        )
        figure = plots.histogram(method, values, color[method])
        charts.append(Chart(f"selected_{_file_name(method)}", described, figure))
    head = ["method", "pruned epochs", "in no pruned epoch", "in every pruned epoch", "never trained on at all"]
    note = (
        "Pruned epochs only: full epochs, such as the first one of a comparison, train everything. The hatched bar is "
        "samples that no pruned epoch selected."
    )
    return [note, charts, Table("Samples by how often they were selected, mean over seeds", head, rows)]


def trajectories(group: Group) -> list[Block]:
    """Score and loss quantiles over the epochs, and the scores of single samples; of each method's first run."""
    charts: list[Chart] = []
    without = []
    for method in group.methods:
        run = next((run for run in group.of(method) if run.trajectories), None)
        if run is None:
            without.append(method)
        else:
            charts += _trajectories(run, plots.colors(group.result)[method])
    blocks: list[Block] = []
    if charts:
        note = (
            "The line is the median, the dark band half of the samples around it, the light band nine tenths; each "
            "method's first seed. Scores are those after each epoch, of samples that have one. Losses are of the "
            "samples that the epoch trained: they rise where hard samples are selected. Methods that do not select by "
            "scores have losses only."
        )
        blocks += [note, charts]
    if without:
        blocks.append(f"Scores and losses of {listed(without)} were not recorded (no trajectories.safetensors).")
    return blocks


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
    few = {method: starved(values) for method, values in shares.items()}
    least = np.nanmin([np.nan_to_num(values, nan=np.inf) for values in shares.values()], axis=0)
    shown = sorted(np.argsort(least, kind="stable")[:_CLASSES])
    sizes = np.bincount(labels, minlength=len(names))
    rows = [
        [names[at], f"{sizes[at]:,}", *(_share(values[at], at in few[method]) for method, values in shares.items())]
        for at in shown
    ]
    flagged = [f"{name} ({listed([names[at] for at in places[:8]])})" for name, places in few.items() if places]
    limit = f"less than {100 * STARVED:.0f} % of the classes' mean share"
    blocks: list[Block] = [f"Starved, with {limit}: {'; '.join(flagged)}." if flagged else f"No class has {limit}."]
    if len(names) > _CLASSES:
        blocks.append(f"Of {len(names)} classes the {_CLASSES} are shown of which a method keeps least.")
    head = ["class", "samples", *shares]
    return [*blocks, Table("Share of a class in a pruned epoch, mean over seeds", head, rows)]


def gallery(group: Group, data: Data) -> list[Block]:
    """Samples that were always kept, always pruned, and that changed most often, of each method's first run."""
    methods = pruning(group)
    count = min(_SAMPLES, max(3, _PLACES // (3 * len(methods))))
    side = 64 if 3 * count * len(methods) <= 100 else 32  # pixels: the page stays below a few megabytes
    blocks: list[Block] = ["Each method's first seed, with a sample's class and in how many pruned epochs it was kept."]
    charts: list[Chart] = []
    empty: dict[str, list[str]] = defaultdict(list)
    for method in methods:
        run = next(run for run in group.of(method) if run.kept is not None)
        for kind, positions in kinds(run, count).items():
            heading, captions = f"{method}: {kind}", [_caption(run, data, position) for position in positions]
            if not positions:
                empty[f"No sample was {kind}"].append(method)
            elif isinstance(data.train, Texts):
                texts = [_text(data.train.tokens[position], group) for position in positions]
                rows = [[*caption, text] for caption, text in zip(captions, texts)]
                blocks.append(Table(heading, ["class", "kept", "text"], rows))
            else:
                images = [_thumbnail(data.train[position][0], side) for position in positions]
                described = f"{heading}: samples of {listed(list(dict.fromkeys(label for label, _ in captions)))}"
                figure = plots.gallery(heading, images, ["\n".join(caption) for caption in captions])
                charts.append(Chart(f"{_file_name(kind)}_{_file_name(method)}", described, figure))
        if "switches" not in run.counts:
            empty["Which samples oscillated was not recorded"].append(method)
    blocks += [charts] if charts else []
    return [*blocks, *(f"{text}: {listed(names)}." for text, names in empty.items())]


def _caption(run: Run, data: Data, position: int) -> tuple[str, str]:
    """A sample's class, and how often it was kept."""
    label = data.train.labels[position].item()
    name = data.classes[int(label)] if data.classes else f"{label:.2f}"
    kept, switches = run.kept, run.counts.get("switches")
    assert kept is not None
    text = f"{kept[position]} of {len(run.pruned)}"
    if switches is not None and switches[position]:
        text += f", {counted(int(switches[position]), 'change')}"
    return name, text


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
    text = glue.tokenizer(settings.model if settings else "").decode(
        ids[mask.bool()].tolist(), skip_special_tokens=True
    )
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def _share(share: np.floating[Any], few: bool) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %" + ("\nstarved" if few else "")


def _selects_by_scores(run: Run) -> bool:
    method = (run.metrics or {})["method"]
    return method in METHODS and reads(method) != "nothing" and not (run.settings or {}).get("selection")


def _ends(what: str, table: np.ndarray) -> str:
    rows = table[np.isfinite(table).all(axis=1)]
    if not len(rows):
        return what
    first, last = ([f"{value:.3g}" for value in row[[2, 0, 4]]] for row in (rows[0], rows[-1]))
    return (
        f"{what}: median {first[0]} at first (nine tenths within {first[1]} and {first[2]}), "
        f"{last[0]} at last ({last[1]} to {last[2]})"
    )


def _file_name(text: str) -> str:
    """Text as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text)
