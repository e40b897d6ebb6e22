"""Which prompts to roll out next, in reinforcement learning with rewards that a program can verify.

In GRPO and its kin a prompt whose answers are all right or all wrong has no advantage and no gradient, yet costs as
many rollouts as any other. A policy remembers the rewards of every prompt and proposes those likely to teach something.

    prompts = Prompts(len(train_set), greso())
    for step in range(steps):
        ids = prompts.propose(64)        # (64,), the same on all ranks
        rewards = roll_out(ids)          # (64, G), in [0, 1]
        prompts.record(ids, rewards)
        ...                              # the optimizer step
"""

from ._policies import Policy, filter_after, greso, mopps, uniform
from ._prompts import Prompts
from ._records import Groups
from ._walk import Walk

__all__ = ["Groups", "Policy", "Prompts", "Walk", "filter_after", "greso", "mopps", "uniform"]
