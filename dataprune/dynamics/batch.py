"""A batch whose quantities are computed once for all statistics, and the log-probabilities of each sample before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import distributed

FLOOR = -65504.0  # of log-probabilities: the least float16, so that both precisions of storage agree on it
_OFFICIAL = 1e-8  # added to a probability before its logarithm in the code of TDDS
_CHUNK = 1 << 22  # values sent to the other ranks at a time


@dataclass
class Batch:
    """A batch and quantities derived from it, computed when first read and shared by all statistics."""

    outputs: Float[Tensor, "b c"]  # logits, detached
    targets: Int[Tensor, " b"]  # class ids in [0, c), on the device of the outputs
    features: Float[Tensor, "b d"] | None = None  # input of the last linear layer
    before: Float[Tensor, "b c"] | None = None  # log-probabilities when last recorded, NaN at the first record

    @cached_property
    def logs(self) -> Float[Tensor, "b c"]:
        """Log-probabilities, at least -65504: a class at -inf must give 0 * finite, not NaN."""
        dtype = torch.promote_types(self.outputs.dtype, torch.float32)
        return torch.log_softmax(self.outputs, dim=1, dtype=dtype).clamp_(min=FLOOR)

    @cached_property
    def probabilities(self) -> Float[Tensor, "b c"]:
        """softmax(outputs)."""
        return self.logs.exp()

    def _at_target(self, values: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        return values.gather(1, self.targets[:, None]).squeeze(1)

    # -- observations of a `Statistic`, (b,) each; statistics that name the same one share its values ----------------

    def correct(self) -> Float[Tensor, " b"]:
        """1 where the target has the highest logit, else 0; of equal logits the first class counts as predicted."""
        return (self.outputs.argmax(dim=1) == self.targets).float()

    def error_norm(self) -> Float[Tensor, " b"]:
        """‖p − onehot(y)‖₂."""
        # p_y - 1 from log p_y: the difference would lose a well-learned sample's last digits
        minus = torch.expm1(self.target_log_probability())
        error = self.probabilities.scatter(1, self.targets[:, None], minus[:, None])
        return torch.linalg.vector_norm(error, dim=1)

    def last_layer_norm(self) -> Float[Tensor, " b"]:
        """Norm of the gradient of the last layer's weight and bias, ‖p − onehot(y)‖₂ · √(1 + ‖features‖²)."""
        return self.error_norm() * torch.sqrt(1 + self._feature_square())

    def last_weight_norm(self) -> Float[Tensor, " b"]:
        """Norm of the gradient of the last layer's weight, ‖p − onehot(y)‖₂ · ‖features‖."""
        return self.error_norm() * torch.sqrt(self._feature_square())

    def _feature_square(self) -> Float[Tensor, " b"]:
        assert self.features is not None
        features = self.features.to(torch.promote_types(self.features.dtype, torch.float32))
        return features.square().sum(dim=1)

    def logit_lead(self) -> Float[Tensor, " b"]:
        """The target's logit minus the highest other."""
        return self._lead(self.outputs.to(torch.promote_types(self.outputs.dtype, torch.float32)))

    def probability_lead(self) -> Float[Tensor, " b"]:
        """The target's probability minus the highest other."""
        return self._lead(self.probabilities)

    def _lead(self, values: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        others = values.scatter(1, self.targets[:, None], -torch.inf)
        return self._at_target(values) - others.amax(dim=1)

    def entropy(self) -> Float[Tensor, " b"]:
        """−Σ p · log p."""
        return -(self.probabilities * self.logs).sum(dim=1)

    def least_confidence(self) -> Float[Tensor, " b"]:
        """1 − the highest probability."""
        return -torch.expm1(self.logs.amax(dim=1))  # 1 - p would call all well-learned samples equal

    def minus_margin(self) -> Float[Tensor, " b"]:
        """The second highest probability minus the highest."""
        first, second = self.probabilities.topk(2, dim=1).values.unbind(dim=1)
        return second - first

    def cross_entropy(self) -> Float[Tensor, " b"]:
        """−log p_y."""
        return -self.target_log_probability()

    def target_probability(self) -> Float[Tensor, " b"]:
        """p_y."""
        return self.target_log_probability().exp()

    def target_log_probability(self) -> Float[Tensor, " b"]:
        """log p_y."""
        return self._at_target(self.logs)

    def official_target_log_probability(self) -> Float[Tensor, " b"]:
        """log (p_y + 1e-8), as in the code of TDDS."""
        return torch.log(self.target_probability() + _OFFICIAL)

    def divergence(self) -> Float[Tensor, " b"]:
        """Σ p · (log p − log p before)."""
        assert self.before is not None
        return (self.probabilities * (self.logs - self.before)).sum(dim=1)

    def official_divergence(self) -> Float[Tensor, " b"]:
        """The divergence as in the code of TDDS, which adds 1e-8 under a logarithm."""
        return self._official_terms().sum(dim=1)

    def official_magnitudes(self) -> Float[Tensor, " b"]:
        """The sum of the absolute terms of `official_divergence`."""
        return self._official_terms().abs().sum(dim=1)

    def _official_terms(self) -> Float[Tensor, "b c"]:
        assert self.before is not None
        now, before = self.probabilities, self.before.exp()
        return now * (torch.log(now + _OFFICIAL) - torch.log(before + _OFFICIAL))


class Rows:
    """Last log-probabilities (N, C) of every sample, on the device of the outputs; allocated by the first batch."""

    def __init__(self, size: int, dtype: torch.dtype):
        self.size, self.dtype = size, dtype
        self.values: Tensor | None = None

    def allocate(self, classes: int, device: torch.device) -> Tensor:
        """Return the rows, NaN where nothing was recorded."""
        if self.values is None:
            self.values = torch.full((self.size, classes), torch.nan, dtype=self.dtype, device=device)
        elif self.values.device != device:
            self.values = self.values.to(device)
        return self.values

    def swap(self, index: Int[Tensor, " b"], logs: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Store a batch and return what it replaces; a repeated index replaces its own earlier occurrence.

        Nothing here waits for the device: repetitions are found by sorting, not by counting.
        """
        rows = self.allocate(logs.shape[1], logs.device)
        new = logs.to(self.dtype)
        order = index.argsort(stable=True)
        grouped = index[order]
        repeated = torch.zeros_like(grouped, dtype=torch.bool)
        repeated[1:] = grouped[1:] == grouped[:-1]
        earlier = torch.zeros_like(order)  # row in the batch of a repeated index's last occurrence
        earlier[order] = order.roll(1)
        is_repeated = torch.zeros_like(repeated)
        is_repeated[order] = repeated
        before = torch.where(is_repeated[:, None], new[earlier], rows[index])
        last = order[torch.searchsorted(grouped, index, right=True) - 1]
        rows[index] = new[last]  # all occurrences write the same
        return before.to(logs.dtype)

    def share(self, owned: list[Int[Tensor, " k"]]) -> None:
        """Give every rank the rows of all ranks. Collective; `owned` holds the positions of each rank's rows."""
        rows = self.values
        if rows is None:
            return
        for rank, positions in enumerate(owned):
            for part in positions.to(rows.device).split(max(1, _CHUNK // rows.shape[1])):
                rows[part] = distributed.spread(rows[part], rank)
