"""Sections that say which samples were kept: how often, by what score, of which class, and what they look like."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.datasets import Texts
from ..data.named import Data
from ..training import setup
from . import charts
from .content import Cell, Chart, Charts, Gallery, Sample, Section, Table, counted, listed
from .findings import STARVED, histogram, kinds, pruning, retention, starved
from .records import Group, Run

_CLASSES = 20  # rows of the table of classes
_TEXT = 240  # letters of a text
_UNREAD = ("full", "rs2", "random", "fixed")  # methods that select without reading the scores
_PLACES = 320  # samples in all galleries


def load(group: Group) -> Data | str:
    """The training data of a group's runs, or why it cannot be had."""
    settings = group.settings()
    if settings is None:
        return "the runs have not kept their settings, which say what the data is"
    try:
        return setup.load_data(settings)
    except Exception as error:  # whatever readers, tokenizers, a hub or its network raise: the report goes on without
        return " ".join(str(error).split()) or type(error).__name__


def fitting(group: Group, data: Data | str) -> Data | str:
    """The data, if it is what the runs were trained on."""
    sizes = sorted({run.size for run in group.runs if run.metrics} - {0})
    if isinstance(data, str) or sizes in ([], [len(data.train)]):
        return data
    had = listed([f"{size:,}" for size in sizes])
    return f"it has {counted(len(data.train), 'training sample')} now, and the runs had {had}"


def counts(group: Group) -> Section:
    """How many samples were selected in none, one ... all pruned epochs."""
    title, methods = "How often samples were selected", pruning(group)
    if not methods:
        return Section("counts", title, [_uncounted(group)])
    shown, rows, color = [], [], charts.colors(group)
    for method in methods:
        mine = group.of(method)
        values, most = histogram(mine)
        size = values.sum()
        unseen = np.mean([np.count_nonzero(run.counts["selected"] == 0) for run in mine if run.counts])
        cells = [values[0], values[most], unseen]
        rows.append([method, str(most), *(f"{cell:,.0f} ({100 * cell / size:.1f} %)" for cell in cells)])
        told = (
            f"{method}: of {size:,.0f} samples {values[0]:,.0f} were selected in no pruned epoch and "
            f"{values[most]:,.0f} in all {most}; the mean is {values @ np.arange(most + 1) / size:.2f} epochs"
        )
        shown.append(Chart(f"selected_{_plain(method)}", method, told, charts.histogram(values, color[method])))
    head = ["method", "pruned epochs", "in no pruned epoch", "in every pruned epoch", "never trained on at all"]
    return Section(
        "counts",
        title,
        [
            "Pruned epochs only: full epochs, as the first is in a comparison, train everything. The hatched bar is "
            "those that no pruned epoch selected.",
            Charts(shown),
            Table("Samples by how often they were selected, mean over seeds", head, rows),
        ],
    )


def trajectories(group: Group) -> Section:
    """Score and loss quantiles over the epochs, and the scores of single samples; of each method's first run."""
    title, color = "Scores and losses over time", charts.colors(group)
    shown, without = [], []
    for method in (line["method"] for line in group.result["summary"]):
        run = next((one for one in group.of(method) if one.trajectories), None)
        if run is None:
            without.append(method)
            continue
        tables = run.trajectories
        losses, scores, single = tables["losses"], tables["scores"], tables["single"]
        if (run.metrics or {})["method"] not in _UNREAD and _changes(scores):
            told = f"{method}, seed {run.seed}: {_ends('scores', scores)}"
            figure = charts.bands(scores, color[method], "score")
            shown.append(Chart(f"scores_{_plain(method)}", f"{method}: scores of all samples", told, figure))
            told = (
                f"{method}, seed {run.seed}: scores of {single.shape[1]} samples, chosen at random, after every epoch"
            )
            figure = charts.singles(single, color[method], "score")
            shown.append(Chart(f"single_{_plain(method)}", f"{method}: scores of single samples", told, figure))
        if np.isfinite(losses).any():
            told = f"{method}, seed {run.seed}: {_ends('losses of trained samples', losses)}"
            figure = charts.bands(losses, color[method], "loss")
            shown.append(Chart(f"losses_{_plain(method)}", f"{method}: losses of trained samples", told, figure))
    blocks: list[Any] = []
    if shown:
        blocks.append(
            "The line is the median, the dark band half of the samples around it, the light band nine tenths; of each "
            "method's first seed. Scores as they are after each epoch, of the samples that have one; losses are of "
            "what the epoch trained, so that they rise where hard samples are chosen. Methods that select without "
            "reading scores have losses alone."
        )
        blocks.append(Charts(shown))
    if without:
        blocks.append(
            f"Not recorded by this run: scores and losses of {listed(without)} (no trajectories.safetensors)."
        )
    return Section("trajectories", title, blocks)


def classes(group: Group, data: Data | str) -> Section:
    """Share of each class that a pruned epoch selects."""
    title, methods = "Retention by class", pruning(group)
    if not methods:
        return Section("classes", title, [_uncounted(group)])
    if isinstance(data, str):
        return Section("classes", title, [f"The data could not be loaded again: {data}."])
    if not data.classes:
        return Section("classes", title, ["Its labels are scores, not classes."])
    labels, names = data.train.labels.numpy(), data.classes
    shares = {method: retention(group.of(method), labels, len(names)) for method in methods}
    few = {method: starved(values) for method, values in shares.items()}
    worst = np.nanmin(np.where(np.isnan(list(shares.values())), np.inf, list(shares.values())), axis=0)
    shown = sorted(np.argsort(worst, kind="stable")[:_CLASSES]) if len(names) > _CLASSES else range(len(names))
    sizes = np.bincount(labels, minlength=len(names))
    rows = [
        [names[at], f"{sizes[at]:,}", *(_kept(values[at], at in few[method]) for method, values in shares.items())]
        for at in shown
    ]
    flagged = [f"{method} ({listed([names[at] for at in few[method][:8]])})" for method in methods if few[method]]
    limit = f"less than {100 * STARVED:.0f} % of the classes' mean share"
    blocks: list[Any] = [f"Starved, with {limit}: {'; '.join(flagged)}." if flagged else f"No class has {limit}."]
    if len(names) > _CLASSES:
        blocks.append(f"Of {len(names)} classes the {_CLASSES} are shown of which a method keeps least.")
    head = ["class", "samples", *methods]
    return Section(
        "classes", title, [*blocks, Table("Share of a class in a pruned epoch, mean over seeds", head, rows)]
    )


def gallery(group: Group, data: Data | str, side: int, count: int) -> Section:
    """Samples that were always kept, always pruned, and that came and went most, of each method's first run.

    Args:
        group: whose runs.
        data: theirs, or why it is not there.
        side: pixels of a thumbnail, at most.
        count: samples of a kind, at most.
    """
    title, methods = "Samples kept and pruned", pruning(group)
    if not methods:
        return Section("gallery", title, [_uncounted(group)])
    if isinstance(data, str):
        return Section("gallery", title, [f"The data could not be loaded again: {data}."])
    count = min(count, max(3, _PLACES // (3 * len(methods))))
    blocks: list[Any] = [
        "Of each method's first seed. Below a sample: its class, and in how many pruned epochs it was kept."
    ]
    settings = group.settings()
    for method in methods:
        run = next(one for one in group.of(method) if one.kept is not None)
        for kind, places in kinds(run, count).items():
            made = _samples(run, data, places, side, settings.model if settings else "")
            if made:
                blocks.append(Gallery(f"{method}: {kind}", made))
            else:
                blocks.append(f"{method}: no sample was {kind}.")
        if "switches" not in run.counts:
            blocks.append(f"{method}: which samples oscillated was not recorded by this run.")
    return Section("gallery", title, blocks)


def _samples(run: Run, data: Data, places: Sequence[int], side: int, model: str) -> list[Sample]:
    kept, switches, made = run.kept, run.counts.get("switches"), []
    assert kept is not None
    for place in places:
        label = data.train.labels[place].item()
        name = data.classes[int(label)] if data.classes else f"{label:.2f}"
        told = f"{kept[place]} of {len(run.pruned)}"
        told += f", {counted(int(switches[place]), 'change')}" if switches is not None and switches[place] else ""
        if isinstance(data.train, Texts):
            made.append(Sample(None, _text(data.train.tokens[place], model), name, told))
        else:
            made.append(Sample(_thumbnail(data.train[place][0], side), None, name, told))
    return made


def _thumbnail(pixels: torch.Tensor, side: int) -> bytes:
    from PIL import Image

    shown = pixels if len(pixels) == 3 else pixels[:1]
    array = shown.permute(1, 2, 0).squeeze(2).numpy() if len(shown) == 1 else shown.permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _text(tokens: torch.Tensor, model: str) -> str:
    from ..data import glue

    ids, mask, _ = tokens
    text = glue.tokenizer(model).decode(ids[mask.bool()].tolist(), skip_special_tokens=True)
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def embedded(image: bytes) -> str:
    """PNG bytes as the address of an image."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _uncounted(group: Group) -> str:
    if any("selected" in run.counts for run in group.runs):
        return "No run left samples out."
    return "Not recorded by this run: how often each sample was selected (no selection_counts.safetensors)."


def _kept(share: float, few: bool) -> str | Cell:
    if np.isnan(share):
        return "–"
    return Cell(f"{100 * share:.1f} %, starved", "bad") if few else f"{100 * share:.1f} %"


def _changes(table: np.ndarray) -> bool:
    """Whether there are scores at all."""
    numbers = table[np.isfinite(table)]
    return bool(len(numbers)) and float(np.ptp(numbers)) > 0


def _ends(what: str, table: np.ndarray) -> str:
    rows = table[np.isfinite(table).all(axis=1)]
    if not len(rows):
        return what
    first, last = ([f"{value:.3g}" for value in row[[2, 0, 4]]] for row in (rows[0], rows[-1]))
    return (
        f"{what}: median {first[0]} at first (nine tenths within {first[1]} and {first[2]}), "
        f"{last[0]} at last ({last[1]} to {last[2]})"
    )


def _plain(name: str) -> str:
    """A method's name in a file's."""
    return re.sub(r"[^\w.-]+", "-", name)
