"""Losses per sample and scores against float64 references, and what is back-propagated, for each kind of task."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from integrations.hf_tiny import Items, Stock, arguments, bert, bert_tokens, llama, train
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration

import dataprune
from dataprune import distributions
from dataprune.integrations.huggingface import PrunedTrainerMixin, sample_losses
from dataprune.integrations.huggingface.sample_losses import read, token_losses

SIZE = 48
BETA = 5.0


def reference(
    logits: Any, labels: Any, *, shift: bool = False, smoothing: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and mean entropy of each sample over its valid tokens, one token after the other, in float64."""
    logits, labels = logits.detach().double().numpy(), labels.numpy()
    if logits.ndim == 2:
        logits, labels = logits[:, None], labels[:, None]
    losses, entropies = [], []
    for row, row_labels in zip(logits, labels, strict=True):
        loss, entropy, valid = 0.0, 0.0, 0
        for token in range(len(row) - int(shift)):
            label = row_labels[token + int(shift)]
            if label == -100:
                continue
            logs = row[token] - np.log(np.exp(row[token]).sum())
            loss += -(1 - smoothing) * logs[label] - smoothing * logs.mean()
            entropy += -(np.exp(logs) * logs).sum()
            valid += 1
        losses.append(loss / max(valid, 1))
        entropies.append(entropy / max(valid, 1))
    return np.array(losses), np.array(entropies)


def still(**changes: Any) -> dict[str, Any]:
    """One full epoch without learning, so that all scores belong to the first weights."""
    return {"learning_rate": 0.0, "weight_decay": 0.0, "max_steps": 6} | changes


def emp(size: int = SIZE) -> Any:
    return dataprune.emp(size, keep=0.3125, epochs=4)


# -- scores, through the Trainer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("build", "labels", "shift"), [(bert, "class", False), (bert_tokens, "tokens", False), (llama, "language", True)]
)
def test_scores_are_loss_plus_entropy(build: Any, labels: str, shift: bool, smoothing: float, accumulate: int) -> None:
    model, data = build().eval(), Items(labels=labels)
    with torch.no_grad():
        logits = model(input_ids=data.ids).logits
    losses, entropies = reference(logits, data.labels, shift=shift, smoothing=smoothing)
    changes = still(label_smoothing_factor=smoothing, gradient_accumulation_steps=accumulate, max_steps=6 // accumulate)
    ours = train(model=model, data=data, pruner=emp(), **changes)
    assert ours.pruner.book.score.numpy() == pytest.approx(losses + BETA * entropies, rel=1e-4, abs=1e-4)
    ours = train(model=model, data=data, pruner=dataprune.loss(SIZE, keep=0.5, epochs=4), **changes)
    assert ours.pruner.book.score.numpy() == pytest.approx(losses, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_regression_has_no_entropy() -> None:
    model, data = bert(labels=1).eval(), Items(labels="number")
    with torch.no_grad():
        errors = (model(input_ids=data.ids).logits[:, 0] - data.labels).double() ** 2
    for pruner in (emp(), dataprune.loss(SIZE, keep=0.5, epochs=4)):
        ours = train(model=model, data=data, pruner=pruner, **still())
        assert ours.pruner.book.score.numpy() == pytest.approx(errors.numpy(), rel=1e-4)
    with pytest.raises(ValueError, match="has no memory term: use `loss`"):
        train(model=model, data=data, pruner=dataprune.memory(SIZE, keep=0.5, epochs=4), **still())


def test_regression_of_several_numbers_has_no_entropy_either() -> None:
    model, data = bert(problem_type="regression").eval(), Items(labels="several")
    with torch.no_grad():
        errors = ((model(input_ids=data.ids).logits - data.labels).double() ** 2).mean(dim=1)
    ours = train(model=model, data=data, pruner=emp(), **still())
    assert ours.pruner.book.score.numpy() == pytest.approx(errors.numpy(), rel=1e-4)


def test_several_labels_at_once() -> None:
    model, data = bert().eval(), Items(labels="several")
    with torch.no_grad():
        p = model(input_ids=data.ids).logits.double().sigmoid()
    losses = -(data.labels * p.log() + (1 - data.labels) * (1 - p).log()).mean(dim=1)
    entropies = -(p * p.log() + (1 - p) * (1 - p).log()).mean(dim=1)
    ours = train(model=model, data=data, pruner=emp(), **still())
    assert ours.pruner.book.score.numpy() == pytest.approx((losses + BETA * entropies).numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("hot", [1, 2])
@pytest.mark.parametrize("distribution", [None, "bernoulli"])
def test_several_labels_are_scored_as_in_a_plain_loop(hot: int, distribution: Any) -> None:
    model, data = bert(problem_type="multi_label_classification").eval(), Items(labels="several")
    data.labels = torch.zeros(SIZE, 3).scatter_(1, torch.rand(SIZE, 3).argsort(dim=1)[:, :hot], 1.0)
    options = {"keep": 0.3125, "epochs": 4, "distribution": distribution}
    plain = dataprune.memory(SIZE, **(options | {"distribution": "bernoulli"}))
    plain.select(0)
    with torch.no_grad():
        logits = model(input_ids=data.ids).logits
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, data.labels, reduction="none").mean(dim=1)
    plain.update(torch.arange(SIZE), losses, logits, data.labels)
    plain.sync()
    # also where each sample has one label, which alone would look like soft classes
    ours = train(model=model, data=data, pruner=dataprune.memory(SIZE, **options), **still())
    assert torch.allclose(ours.pruner.book.score, plain.book.score, atol=1e-5)


def test_encoder_and_decoder_do_not_shift() -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=100, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    ).eval()  # fmt: skip
    data = Items(labels="language")
    with torch.no_grad():
        logits = model(input_ids=data.ids, labels=data.labels).logits
    losses, entropies = reference(logits, data.labels)
    ours = train(model=model, data=data, pruner=emp(), **still())
    assert ours.pruner.book.score.numpy() == pytest.approx(losses + BETA * entropies, rel=1e-4)


class OnlyLoss(torch.nn.Module):
    """A model that tells its mean loss and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, input_ids: Any, labels: Any = None) -> dict[str, Any]:
        return {"loss": self.inner(input_ids=input_ids, labels=labels).loss}


@pytest.mark.parametrize("recipe", ["emp", "loss", "infobatch"])
def test_a_model_without_logits_scores_whole_batches(recipe: str) -> None:
    pruner = getattr(dataprune, recipe)(SIZE, keep=0.5, epochs=4)
    with pytest.warns(UserWarning, match="no losses per sample can be read from dict: every sample of a batch") as seen:
        ours = train(model=OnlyLoss(), pruner=pruner, gradient_accumulation_steps=2, max_steps=3, learning_rate=0.0)
    assert len(seen) == 1
    model, data = bert(), Items()
    for _, ids in ours.seen:
        expected = model(input_ids=data.ids[ids], labels=data.labels[ids]).loss.item()
        assert pruner.book.score[ids].tolist() == pytest.approx([expected] * len(ids), rel=1e-5)


def test_memory_needs_more_than_the_loss_of_a_batch() -> None:
    pruner = dataprune.memory(SIZE, keep=0.5, epochs=4)
    with (
        pytest.warns(UserWarning, match="no losses per sample"),
        pytest.raises(ValueError, match="has no memory term"),
    ):
        train(model=OnlyLoss(), pruner=pruner)


# -- what is back-propagated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("smoothing", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
@pytest.mark.parametrize(("build", "labels"), [(bert_tokens, "tokens"), (llama, "language")])
def test_full_is_the_stock_trainer_for_tokens_too(build: Any, labels: str, smoothing: float, accumulate: int) -> None:
    options: dict[str, Any] = {
        "train_sampling_strategy": "sequential", "gradient_accumulation_steps": accumulate,
        "label_smoothing_factor": smoothing, "data": Items(44, labels), "num_train_epochs": 2,
    }  # fmt: skip
    stock = train(Stock, pruner=None, model=build(), **options)
    ours = train(pruner=dataprune.full(44, epochs=2), model=build(), **options)
    assert ours.column("loss") == stock.column("loss") and ours.column("grad_norm") == stock.column("grad_norm")
    for weight, expected in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(weight, expected)


class weighs(dataprune.policies.Policy):
    """A policy that keeps everything, with weights 0.5, 1.5, 2.5, 0.5 ... of samples, or their means of batches."""

    when_full = True

    def __init__(self, by_batch: bool):
        self.by_batch = by_batch

    def __call__(self, book: Any, count: int, key: dataprune.Key) -> dataprune.Selection:
        index = torch.arange(book.size if hasattr(book, "size") else len(book.score))
        return dataprune.Selection(index, 0.5 + (index % 3).float(), self.by_batch)


def weights_of(ids: list[int], by_batch: bool) -> torch.Tensor:
    """The weights of micro-batches of 8."""
    weight = 0.5 + (torch.tensor(ids) % 3).float()
    parts = [part.mean().expand_as(part) for part in weight.split(8)]
    assert not any(bool((part == 1).all()) for part in parts)
    return torch.cat(parts) if by_batch else weight


def weighted(size: int, by_batch: bool = False) -> dataprune.Pruner:
    return dataprune.Pruner(
        size, dataprune.criteria.loss, weighs(by_batch), dataprune.schedules.constant(1.0), epochs=1, seed=0
    )


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("build", "labels", "shift"), [(bert, "class", False), (bert_tokens, "tokens", False), (llama, "language", True)]
)
def test_weights_multiply_each_samples_share(
    build: Any, labels: str, shift: bool, accumulate: int, by_batch: bool
) -> None:
    model, data = build(), Items(16, labels)
    before = copy.deepcopy(model)
    ours = train(
        model=model, data=data, pruner=weighted(16, by_batch), gradient_accumulation_steps=accumulate,
        num_train_epochs=1, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", learning_rate=1.0,
        max_steps=1,
    )  # fmt: skip
    ids = [i for _, batch in ours.seen for i in batch]
    each = torch.stack(
        [
            torch.nn.functional.cross_entropy(row[:-1] if shift else row, y[1:] if shift else y, reduction="sum")
            if row.ndim == 2
            else torch.nn.functional.cross_entropy(row, y)
            for row, y in zip(before(input_ids=data.ids[ids]).logits, data.labels[ids], strict=True)
        ]
    )
    valid = (data.labels[ids][:, 1:] if shift else data.labels[ids]) != -100
    weight = weights_of(ids, by_batch)
    if build is llama:  # divides by what all micro-batches of the step hold
        loss = (weight * each).sum() / valid.sum()
    else:  # BERT's heads take the mean of each micro-batch, which nobody divides by their number
        loss = sum((weight * each)[part].sum() / valid[part].sum() for part in torch.arange(len(ids)).split(8))
    loss.backward()
    assert ours.column("loss") == pytest.approx([loss.item()], rel=1e-5)
    for trained, initial in zip(ours.model.parameters(), before.parameters(), strict=True):
        if initial.grad is not None:
            torch.testing.assert_close(trained, initial - initial.grad, rtol=1e-4, atol=1e-5)


def test_weights_need_the_loss_of_the_model() -> None:
    class Penalised(Stock):
        def compute_loss(self, *given: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*given, **kwargs) + 1.0

    mixed = type("Mixed", (PrunedTrainerMixin, Penalised), {})
    trainer = mixed(bert(), arguments(num_train_epochs=1), train_dataset=Items(16), pruner=weighted(16))
    with pytest.raises(
        ValueError, match=r"weights samples, but the mean of their losses is .* where the Trainer's loss is"
    ):
        trainer.train()
    plain = mixed(bert(), arguments(num_train_epochs=1), train_dataset=Items(16), pruner=dataprune.full(16, epochs=1))
    assert plain.train().global_step == 2  # without weights any loss will do


# -- a loss of one's own -----------------------------------------------------------------------------------------------


def focal(outputs: Any, labels: Any) -> torch.Tensor:
    p = outputs.logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return -((1 - p) ** 2) * p.log()


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_per_sample_loss(accumulate: int, by_batch: bool) -> None:
    model, data = bert(), Items(16)
    before = copy.deepcopy(model)
    ours = train(
        model=model, data=data, pruner=weighted(16, by_batch), per_sample_loss=focal,
        gradient_accumulation_steps=accumulate, num_train_epochs=1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", learning_rate=1.0, max_steps=1, eval_dataset=data,
    )  # fmt: skip
    ids = [i for _, batch in ours.seen for i in batch]
    losses = focal(before(input_ids=data.ids[ids]), data.labels[ids])
    assert ours.pruner.book.score[ids].tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    (weights_of(ids, by_batch) * losses).mean().backward()
    for trained, initial in zip(ours.model.parameters(), before.parameters(), strict=True):
        if initial.grad is not None:
            torch.testing.assert_close(trained, initial - initial.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = focal(ours.model.eval()(input_ids=data.ids), data.labels).mean().item()
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_per_sample_loss_that_is_reduced() -> None:
    with pytest.raises(ValueError, match="losses is a single number, one per sample is needed"):
        train(pruner=emp(), per_sample_loss=lambda outputs, labels: focal(outputs, labels).mean())
    with pytest.raises(ValueError, match="losses without a gradient: leave out detach"):
        train(pruner=emp(), per_sample_loss=lambda outputs, labels: focal(outputs, labels).detach())


def test_emp_with_a_custom_loss_reads_the_logits() -> None:
    model, data = bert().eval(), Items()
    ours = train(model=model, data=data, pruner=emp(), per_sample_loss=focal, **still())
    with torch.no_grad():
        outputs = model(input_ids=data.ids)
        expected = focal(outputs, data.labels).double().numpy() + BETA * reference(outputs.logits, data.labels)[1]
    assert ours.pruner.book.score.numpy() == pytest.approx(expected, rel=1e-4)


# -- pieces ------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers that any new tensor held."""

    most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {item.untyped_storage().data_ptr() for item in args if isinstance(item, torch.Tensor)}
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, item.numel())
        return result


@pytest.mark.parametrize(("batch", "tokens", "classes"), [(4, 32, 512), (1, 128, 512), (64, 2, 512)])
def test_token_losses_and_entropies_make_no_second_tensor_of_logits(
    batch: int, tokens: int, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_losses, "_CHUNK", 8 * classes)
    monkeypatch.setattr(distributions, "_CHUNK", 8 * classes)
    logits, labels = torch.randn(batch, tokens, classes), torch.randint(classes, (batch, tokens))
    labels[:, -1] = -100
    with torch.no_grad(), Largest() as seen:
        each = read({"logits": logits}, labels, shift=True)
        assert each is not None
        dataprune.criteria.entropy(each.mean(), each.outputs, each.targets)
    assert seen.most <= max(8 * classes, batch * classes)
    losses, _ = reference(logits, labels, shift=True)
    assert each.mean().numpy() == pytest.approx(losses, rel=1e-4)


def test_a_sample_without_a_valid_token_scores_as_the_others_do() -> None:
    """Masks are drawn anew in each pass: a short text that happens to have none must not sink to the lowest score."""
    labels = torch.full((3, 3), -100)
    logits = torch.randn(3, 3, 5)
    each = read({"logits": logits}, labels)
    assert each is not None and each.mean().tolist() == [0.0, 0.0, 0.0]
    labels[0, 1], labels[2] = 4, torch.tensor([1, 2, 3])
    each = read({"logits": logits}, labels)
    assert each is not None
    first, none, last = each.mean().tolist()
    assert none == pytest.approx((first + last) / 2) and each.total[1] == 0
    entropies = dataprune.criteria.entropy(each.mean(), each.outputs, each.targets)
    log_p = logits.log_softmax(dim=2)
    assert entropies[1] == pytest.approx(float(-(log_p.exp() * log_p)[1].sum(dim=1).mean()))
    cut = read({"logits": logits}, labels, shift=True)  # an answer that was cut off has nothing to teach in any pass
    assert cut is not None and cut.mean()[1] == 0
    assert token_losses(torch.randn(2, 0, 5), labels[:, :0]).shape == (2, 0)


def test_half_precision_is_summed_in_single() -> None:
    logits, labels = torch.randn(4, 9, 50).bfloat16(), torch.randint(50, (4, 9))
    each = read({"logits": logits}, labels)
    assert each is not None and each.total.dtype == torch.float32
    assert each.mean().numpy() == pytest.approx(reference(logits.float(), labels)[0], rel=1e-5)


def test_outputs_with_an_entropy_carry_it() -> None:
    entropy = torch.tensor([0.0, 1e-3, 1.0, math.log(150_000)])
    carried = sample_losses.shaped_by(entropy)
    assert dataprune.criteria.entropy(torch.zeros(4), carried, None).tolist() == pytest.approx(
        entropy.tolist(), rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        ({"loss": torch.tensor(1.0)}, torch.zeros(4)),
        ({"logits": torch.zeros(4, 3)}, None),
        ({"logits": torch.zeros(4, 3, 5, 5)}, torch.zeros(4, 5, 5, dtype=torch.int64)),  # segmentation
        ({"logits": torch.zeros(4, 9, 3)}, torch.zeros(4, 7, dtype=torch.int64)),  # virtual tokens
        ({"logits": torch.zeros(4, 9, 3)}, torch.zeros(4, 9)),
        ({"logits": torch.zeros(4, 1)}, torch.zeros(5)),
    ],
)
def test_unreadable_outputs_give_none(outputs: Any, labels: Any) -> None:
    assert read(outputs, labels) is None


def test_tuples_are_read() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    each = read((torch.tensor(0.0), logits), labels)
    assert each is not None and each.mean()[3] == 0.0
    assert each.mean()[:3].numpy() == pytest.approx(reference(logits[:3], labels[:3])[0], rel=1e-5)
