"""Choose what to fine-tune on, before training: scores of chats, and the order in which they are kept.

    order = finetuning.round_robin(finetuning.similarity(rows, queries).T, count=1000)   # rds
    order = finetuning.by_ifd(finetuning.ifd(with_prompt, alone))[:1000]                  # ifd

These are the formulas; `dataprune select --task sft` reads files of chats, runs the model and writes the subset.
"""

from __future__ import annotations

from ._ifd import answer_loss, by_ifd, ifd
from ._order import descending
from ._rds import position_mean, round_robin, similarity

__all__ = ["answer_loss", "by_ifd", "descending", "ifd", "position_mean", "round_robin", "similarity"]
