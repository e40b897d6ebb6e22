"""dataprune pretrain."""

from __future__ import annotations

from pathlib import Path

from ..lab.training.settings import CONTRASTIVE, Settings
from .options import AsJson, Out
from .output import plain
from .shell import takes_settings
from .training_run import carry_out

_OF_CLASSES = ("selection", "label_noise", "label_smoothing", "shift", "shift_mode", "flip", "recalibrate_bn")


@takes_settings(without=("task", "max_length", "statistics", "init", *_OF_CLASSES), defaults=CONTRASTIVE)
def pretrain(settings: Settings, out: Out = None, json_: AsJson = False) -> None:
    """Learn features without labels, contrastively (SimCLR), on fewer samples.

    `dataprune train --init FOLDER` goes on from them. The record's accuracy is that of a linear classifier of the
    features, knn_accuracy that of their nearest neighbours, both on the test set; with --val-fraction the history has
    the neighbours' accuracy of every epoch.
    """
    out = out or Path("runs") / f"pretrain-{plain(settings.data)}-{settings.method}-{settings.seed}-{settings.key()}"
    carry_out(settings, out, None, json_)
