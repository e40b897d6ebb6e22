"""The model that scores: its tokens of a chat, and its passes over batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import finetuning
from ...errors import DataError, UsageError, needs
from ..data.folders import first_line
from ..training.device import choose_device
from ..training.tasks.glue import quiet
from .chats import Chat, last_answer

NO_TEMPLATE = "the tokenizer of {model} has no chat template: texts were scored as `Role:`, a line break, the message"
_UNLIMITED = 10**9  # tokenizers without a limit name a larger one


class Tokens:
    """A tokenizer, and the text that a chat becomes."""

    def __init__(self, model: str, max_length: int):
        with needs("--task sft with --model needs transformers", "hf"):
            from transformers import AutoTokenizer
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise unknown_model(model, error) from error
        self.templated = bool(self.tokenizer.chat_template)
        limit = self.tokenizer.model_max_length
        self.max_length = min(max_length, limit) if limit < _UNLIMITED else max_length

    def whole(self, chat: Chat) -> list[int]:
        """All of a chat, cut to `max_length`."""
        text = self._text(chat) if self.templated else _plain(chat)
        return self.tokenizer(text, add_special_tokens=not self.templated, truncation=True, max_length=self.max_length)[
            "input_ids"
        ]

    def prompt_and_answer(self, chat: Chat) -> tuple[list[int], list[int], list[int]]:
        """The prompt with what opens an answer, that opening alone, and the last answer; none is cut.

        Both texts begin with the token that the model's texts begin with, where there is one.
        """
        prompt, answer = last_answer(chat)
        opening, start = "Assistant:\n", self.tokenizer.bos_token_id
        first = [] if self.templated or start is None else [start]
        text = _plain(prompt) + opening
        if self.templated:
            text, before = self._text(prompt, add_generation_prompt=True), self._text(prompt)
            opening = text.removeprefix(before) if text.startswith(before) else ""
        whole = first + self._ids(text)
        alone = (whole[:1] if start in whole[:1] else []) + self._ids(opening)
        return whole, alone or ([] if start is None else [start]), self._ids(answer)

    def count(self, text: str) -> int:
        """The number of tokens of a text."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _text(self, chat: Chat, **options: Any) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return self.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        except TemplateError as error:
            raise DataError(f"does not fit the model's chat template ({first_line(error)})") from error


def _plain(chat: Chat) -> str:
    return "".join(f"{message['role'].capitalize()}:\n{message['content']}\n\n" for message in chat)


class Model:
    """An encoder or decoder in evaluation mode, with the tokens of its tokenizer."""

    def __init__(self, name: str, *, causal: bool, max_length: int, batch_size: int, device: str | None = None):
        self.tokens = Tokens(name, max_length)
        self.device, self.batch_size = choose_device(device), batch_size
        import transformers

        kind: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        dtype: Any = torch.float32 if self.device.type == "cpu" else "auto"
        try:
            with quiet():
                model = kind.from_pretrained(name, dtype=dtype).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise unknown_model(name, error) from error
        limit = model.config.to_dict().get("max_position_embeddings")
        self.tokens.max_length = min(self.tokens.max_length, limit or self.tokens.max_length)
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model
        if causal and not self._causal():
            raise UsageError(f"--model {name} sees what comes after a token, so that it has no loss of an answer: "
                             "--method ifd needs a causal language model")  # fmt: skip

    @torch.inference_mode()
    def _causal(self) -> bool:
        """Whether the outputs of a token do not depend on the next one."""
        tokens = torch.tensor([[0, 0], [0, 1]], device=self.device)
        first, second = self.model(input_ids=tokens).logits.float().diff(dim=0).squeeze(0)  # of the two texts
        return bool(first.norm() <= 1e-3 * second.norm())

    def digest(self) -> str:
        """Of all weights, by their sums, and of the chat template."""
        sums = [float(weight.sum(dtype=torch.float64)) for weight in self.model.state_dict().values()]
        text = json.dumps([sums, self.tokens.tokenizer.chat_template], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @torch.inference_mode()
    def embeddings(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(N, D) float32 on the CPU: position-weighted means of the last hidden states; no text may be empty."""
        order, means = [], []
        for places, ids, mask in self._batches(texts):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            order += places
            means.append(finetuning.position_mean(hidden, mask).cpu())
        return torch.cat(means)[torch.tensor(order).argsort()]

    @torch.inference_mode()
    def answer_losses(self, texts: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """(N,) float32 on the CPU: mean loss of each text's tokens from its start on; NaN where there are none."""
        losses = torch.full((len(texts),), torch.nan)
        for places, ids, mask in self._batches(texts):
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            first = torch.tensor([starts[place] for place in places], device=self.device)
            answer = (torch.arange(ids.shape[1], device=self.device) >= first[:, None]) & mask.bool()
            losses[torch.tensor(places)] = finetuning.answer_loss(logits, ids, answer).cpu()
        return losses

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Places, token ids and mask of texts of similar length, padded on the right; empty ones are left out."""
        places = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]), reverse=True)
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            ids = torch.zeros(len(batch), len(texts[batch[0]]), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, place in enumerate(batch):
                ids[row, : len(texts[place])] = torch.tensor(texts[place])
                mask[row, : len(texts[place])] = 1
            yield batch, ids.to(self.device), mask.to(self.device)


def unknown_model(name: str, error: Exception) -> UsageError:
    """The error for a model or tokenizer that transformers cannot load."""
    return UsageError(f"--model {name}: transformers cannot load it ({first_line(error)})")
