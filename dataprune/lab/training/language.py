"""Fine-tuning an encoder of language on a GLUE task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modules import evaluation
from ..data import glue
from ..data.datasets import Images, Streamed, Texts
from ..data.named import Data
from .evaluate import batches
from .settings import Settings
from .setup import choose_device


class Language:
    """Cross-entropy of a sentence's or a pair's class, or the squared error of a score; what a run of GLUE learns.

    Args:
        settings: of the run.
        data: of the run.
    """

    def __init__(self, settings: Settings, data: Data):
        self.settings, self.data = settings, data
        self.counts = bool(data.classes)  # right and wrong

    def model(self) -> nn.Module:
        """The pretrained encoder with a new head.

        Raises:
            UsageError: if the model cannot be loaded.
        """
        from transformers import AutoModelForSequenceClassification

        name, tokens = self.settings.model, glue.tokenizer(self.settings.model)
        cpu = choose_device(self.settings.device).type == "cpu"
        try:
            with _quiet(), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.settings.seed)
                model = AutoModelForSequenceClassification.from_pretrained(
                    name,
                    num_labels=max(1, len(self.data.classes)),
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,  # the head of another task
                    attn_implementation="eager" if cpu else None,  # a step there takes a fifth less than with the fused
                )
        except (OSError, ValueError) as error:
            raise glue.unknown_model(name, error) from error
        model.config.pad_token_id = tokens.pad_token_id
        return model

    def inputs(self, tokens: Tensor, index: Tensor | None = None, epoch: int = 0) -> dict[str, Tensor]:
        """Token ids, mask and segments, as long as the longest text of the batch."""
        longest = int(tokens[:, 1].sum(dim=1).max())
        ids, mask, kind = tokens[:, :, :longest].long().unbind(dim=1)
        known = glue.tokenizer(self.settings.model).model_input_names
        return {"input_ids": ids, "attention_mask": mask} | (
            {"token_type_ids": kind} if "token_type_ids" in known else {}
        )

    def losses(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, logits or predictions, and how many are right."""
        logits = output.logits.float()
        if not self.counts:
            made = logits.squeeze(1)
            return (made - labels) ** 2, made, None
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.settings.label_smoothing)
        return losses, logits, (logits.detach().argmax(dim=1) == labels).sum()

    def validate(self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device) -> float:
        """The task's first metric."""
        return next(iter(self._metrics(model, part, device).values()))

    def test(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """All the task's metrics; `accuracy` is the first of them, whose name is in `metric`."""
        found = self._metrics(model, self.data.test, device)
        metric = next(iter(found))
        return {**found, "accuracy": found[metric], "metric": metric}

    def save(self, model: nn.Module, out: Path) -> None:
        """Leave the model in `model/`, as transformers loads it."""
        with _quiet():
            model.save_pretrained(out / "model")  # type: ignore[operator]
        glue.tokenizer(self.settings.model).save_pretrained(out / "model")

    def _metrics(self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device) -> dict[str, float]:
        made, wanted = [], []
        with evaluation(model), torch.no_grad():
            for tokens, labels in batches(part, 64, device, self.settings.workers):
                made.append(model(**self.inputs(tokens)).logits.float())
                wanted.append(labels)
        logits = torch.cat(made)
        return glue.metrics(self.settings.glue, logits if self.counts else logits.squeeze(1), torch.cat(wanted))


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of transformers', nor its note that the head is new."""
    from transformers.utils import logging

    said, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(said)
        if bars:
            logging.enable_progress_bar()
