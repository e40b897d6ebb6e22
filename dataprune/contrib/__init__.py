"""Methods of the field whose claims are not confirmed here yet; they are in `METHODS` beside the others.

A file has one method: its criterion or policy, and its recipe. What the comparisons of this project confirm moves to
`methods`. Static methods are in `contrib.coresets`, and in `coresets.METHODS`.
"""

from ._classes import loss_and_class, right_and_class
from ._groups import GroupBook
from ._ies import LossBook, ies, still_changing
from ._kakurenbo import hide_lowest, kakurenbo, loss_and_certainty
from ._metriq import error_quotas, metriq
from ._orderdp import orderdp, random_then_top
from ._rcap import loss_quotas, rcap
from ._repb import local_window, loss_and_window, repb
from ._seta import seta, sliding_window

__all__ = [
    "GroupBook",
    "LossBook",
    "error_quotas",
    "hide_lowest",
    "ies",
    "kakurenbo",
    "local_window",
    "loss_and_certainty",
    "loss_and_class",
    "loss_and_window",
    "loss_quotas",
    "metriq",
    "orderdp",
    "random_then_top",
    "rcap",
    "repb",
    "right_and_class",
    "seta",
    "sliding_window",
    "still_changing",
]

RECIPES = (orderdp, seta, rcap, metriq, repb, kakurenbo, ies)
