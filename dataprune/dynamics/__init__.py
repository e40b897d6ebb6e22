"""Training dynamics: statistics of every sample, recorded during one training run.

recorder = dynamics.Recorder(len(train_set), {"aum": dynamics.aum(), "tdds": dynamics.tdds(window=10)})
for epoch in range(90):
    for index, x, y in loader:
        logits = model(x)
        recorder.update(index, logits, y)
        ...
    recorder.end_epoch()
scores = recorder.scores()  # {"aum": (N,), "tdds": (N,)}, highest is most important
"""

from .recorder import Recorder, average
from .statistics import (
    STATISTICS,
    Statistic,
    aum,
    difficulty,
    dual,
    dyn_unc,
    el2n,
    entropy,
    forgetting,
    grand,
    least_confidence,
    loss,
    margin,
    tdds,
)
from .table import Scores, load_scores, save_scores

__all__ = [
    "STATISTICS", "Recorder", "Scores", "Statistic", "aum", "average", "difficulty", "dual", "dyn_unc", "el2n",
    "entropy", "forgetting", "grand", "least_confidence", "load_scores", "loss", "margin", "save_scores", "tdds",
]  # fmt: skip
