"""dataprune pretrain."""

from __future__ import annotations

from ..lab.training.settings import CONTRASTIVE, Settings
from .options import AsJson, Out
from .output import default_out
from .runs import train_run
from .settings_options import takes_settings

_FOR_CLASSES = (
    "selection", "label_noise", "label_smoothing", "shift", "shift_mode", "resized_crop", "flip", "recalibrate_bn",
)  # fmt: skip


@takes_settings(without=("task", "max_length", "statistics", "init", *_FOR_CLASSES), defaults=CONTRASTIVE)
def pretrain(settings: Settings, out: Out = None, json_: AsJson = False) -> None:
    """Pre-train an encoder without labels (SimCLR) on fewer samples.

    `dataprune train --init FOLDER` fine-tunes it. The record has two accuracies on the test set: `accuracy` of a linear
    probe on the features, and `knn_accuracy` of their nearest neighbours. With --val-fraction the history has the
    nearest-neighbour accuracy of every epoch.
    """
    out = out or default_out("pretrain", settings.data, settings.method, str(settings.seed), settings.key())
    train_run(settings, out, json_)
