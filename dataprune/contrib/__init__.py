"""Methods of the field whose claims are not confirmed here yet; they are in `METHODS` beside the others.

A file has one method: its criterion or policy, and its recipe. What the comparisons of this project confirm moves to
`methods`. Static methods are in `contrib.coresets`, and in `coresets.METHODS`.
"""

from ._orderdp import orderdp, random_then_top
from ._seta import seta, sliding_window

__all__ = ["orderdp", "random_then_top", "seta", "sliding_window"]

RECIPES = (orderdp, seta)
