"""Fine-tuning of a language encoder on a GLUE task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data import glue
from ...data.datasets import Samples
from ...data.named import Data
from ..device import choose_device
from ..evaluate import batches, outputs
from ..settings import Settings
from . import Task


class Language(Task):
    """Cross-entropy of a class, or the squared error of a score, of sentences or pairs."""

    def __init__(self, settings: Settings, data: Data):
        super().__init__(settings, data)
        self.classifies = bool(data.classes)

    def model(self) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        name, tokens = self.settings.model, glue.tokenizer(self.settings.model)
        cpu = choose_device(self.settings.device).type == "cpu"
        try:
            with quiet(), torch.random.fork_rng(devices=[]):
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

    def inputs(self, samples: Tensor, index: Tensor | None = None, epoch: int = 0) -> dict[str, Tensor]:
        """Make token ids, mask and types, cut to the longest text of the batch."""
        longest = int(samples[:, 1].sum(dim=1).max())
        ids, mask, kind = samples[:, :, :longest].long().unbind(dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kind}
        known = glue.tokenizer(self.settings.model).model_input_names
        return {name: value for name, value in inputs.items() if name != "token_type_ids" or name in known}

    def take(self, inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Take rows, and cut the padding that none of them needs."""
        longest = int(inputs["attention_mask"][rows].sum(dim=1).max())
        return {name: value[rows, :longest] for name, value in inputs.items()}

    def losses(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        logits = output.logits.float()
        if self.classifies:
            return self.cross_entropy(logits, labels)
        predictions = logits.squeeze(1)
        return (predictions - labels) ** 2, predictions, None

    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        return next(iter(self._metrics(model, part, device).values()))

    def test(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Compute all metrics; `accuracy` is the first of them, named by `metric`."""
        metrics = self._metrics(model, self.data.test, device)
        metric = next(iter(metrics))
        return {**metrics, "accuracy": metrics[metric], "metric": metric}

    def save(self, model: nn.Module, out: Path) -> None:
        """Save the model in `model/`, as transformers loads it."""
        with quiet():
            model.save_pretrained(out / "model")  # type: ignore[operator]
        glue.tokenizer(self.settings.model).save_pretrained(out / "model")

    def _metrics(self, model: nn.Module, part: Samples, device: torch.device) -> dict[str, float]:
        encoded = batches(part, device, self.inputs, batch_size=64, workers=self.settings.workers)
        logits, targets = outputs(model, encoded)
        return glue.metrics(self.settings.glue, logits if self.classifies else logits.squeeze(1), targets)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its warning that the head is new."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
