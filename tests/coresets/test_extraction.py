"""Extraction from models of three kinds, in dataset order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from dataprune import coresets
from dataprune.lab.models import build

SIZE = 21


def data(*shape: int, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(SIZE, *shape, generator=generator, dtype=dtype), torch.randint(3, (SIZE,), generator=generator)
    )


class Torchvision(nn.Module):
    """Backbone, then a classifier of several layers, as VGG and MobileNet have."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@dataclass
class ModelOutput(OrderedDict):
    logits: Tensor

    def __post_init__(self) -> None:
        self["logits"] = self.logits


class Transformer(nn.Module):
    """Called by name; a linear layer over all tokens comes before the classifier, and one after it that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(11, 6)
        self.dense = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 3)
        self.unused = nn.Linear(3, 3)
        self.seen: list[str] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        self.seen = ["input_ids"] + (["attention_mask"] if attention_mask is not None else [])
        pooled = torch.tanh(self.dense(self.embeddings(input_ids)))[:, 0]
        logits = self.classifier(pooled)
        self.unused(logits)
        return ModelOutput(logits)


class Tokens(Dataset):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = torch.arange(i, i + 4) % 11
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 3}


def test_our_models() -> None:
    model, dataset = build.build("lenet", (1, 16, 16), 3, seed=0), data(1, 16, 16)
    result = coresets.extract(model, DataLoader(dataset, batch_size=4))
    assert result.features.shape == (SIZE, 84) and result.logits.shape == (SIZE, 3)
    assert torch.equal(result.labels, dataset.tensors[1])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(result.logits, model(dataset.tensors[0]))
        torch.testing.assert_close(model.fc(result.features), result.logits)
    errors = result.errors()
    torch.testing.assert_close(errors.sum(1), torch.zeros(SIZE), atol=1e-6, rtol=0)
    assert bool((errors.gather(1, result.labels[:, None]) <= 0).all())


def test_models_as_torchvision_has_them_are_left_as_they_were() -> None:
    model, dataset = Torchvision(), data(1, 5, 5)
    model.features[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    result = coresets.extract(model, DataLoader(dataset, batch_size=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert result.features.shape == (SIZE, 7) and not result.features.requires_grad
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.classifier[-1](result.features), model(dataset.tensors[0]))


def test_models_as_transformers_has_them() -> None:
    model = Transformer()
    result = coresets.extract(model, DataLoader(Tokens(), batch_size=5))
    assert model.seen == ["input_ids", "attention_mask"]
    assert result.features.shape == (SIZE, 6)
    assert result.labels.tolist() == [i % 3 for i in range(SIZE)]
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(result.features), result.logits)


class Returning(nn.Linear):
    """Takes labels too, as models that return their loss do."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Pair(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


@pytest.mark.parametrize("batch_size", [4, 5, 21])  # the last batch may be of one sample
@pytest.mark.parametrize("kind", [Returning, nn.Linear])
def test_positions_after_the_labels_are_left_out(kind: type[nn.Linear], batch_size: int) -> None:
    x, y = data(4).tensors
    loader = DataLoader(TensorDataset(x, y, torch.arange(SIZE)), batch_size=batch_size)
    assert torch.equal(coresets.extract(kind(4, 3), loader).labels, y)


def test_an_index_that_is_no_position_is_no_label() -> None:
    x, y = data(4).tensors
    loader = DataLoader(TensorDataset(x, y, 100 + torch.arange(SIZE)), batch_size=4)
    with pytest.raises(ValueError, match=r"taken for labels, but holds 103.*without an index"):
        coresets.extract(Returning(4, 3), loader)
    mixed = torch.arange(SIZE)
    mixed[7] = 0
    with pytest.raises(ValueError, match="the first batch ends with"):
        coresets.extract(Returning(4, 3), DataLoader(TensorDataset(x, y, mixed), batch_size=4))
    loader = DataLoader(TensorDataset(x, x, y), batch_size=4)
    assert torch.equal(coresets.extract(Pair(4, 3), loader).labels, y)


def ordered(batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return default_collate(sorted(batch, key=lambda sample: float(sample[0].sum())))


def shuffled(batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    batch.sort(key=lambda sample: int(sample[1]))  # the list itself
    return default_collate(batch)


def stacked(batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in map(list, zip(*batch))]


def test_a_collate_fn_that_reorders_is_refused() -> None:
    model, dataset = nn.Linear(4, 3), data(4)
    for collate in (ordered, shuffled):
        with pytest.raises(TypeError, match="collate_fn changes the order"):
            coresets.extract(model, DataLoader(dataset, batch_size=5, collate_fn=collate))
    result = coresets.extract(model, DataLoader(dataset, batch_size=5, collate_fn=stacked))
    assert torch.equal(result.labels, dataset.tensors[1])


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_says_whether_it_has_a_bias(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias))
    assert coresets.extract(model, DataLoader(data(4), batch_size=5)).bias is bias


def test_a_real_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config)
    result = coresets.extract(model, DataLoader(Tokens(), batch_size=5))
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(result.features), result.logits)


def test_lists_of_batches_other_outputs_and_half_precision() -> None:
    model = nn.Linear(4, 3)
    x, y = data(4).tensors
    parts = list(zip(x.split(8), y.to(torch.int32).split(8)))
    result = coresets.extract(model, parts)
    torch.testing.assert_close(result.features, x)
    assert result.labels.dtype == torch.int64 and torch.equal(result.labels, y)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3).bfloat16()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x.bfloat16()).float(), x

    assert coresets.extract(Pair(), parts).features.dtype == torch.float32
    assert coresets.extract(nn.Linear(4, 3).double(), [(x.double(), y)]).logits.dtype == torch.float64


def test_what_is_not_in_dataset_order_is_refused() -> None:
    dataset, model = data(4), nn.Linear(4, 3)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(dataset)

    for loader, message in [
        (DataLoader(dataset, batch_size=4, shuffle=True), "RandomSampler"),
        (DataLoader(dataset, batch_size=4, sampler=SubsetRandomSampler([1, 2])), "SubsetRandomSampler"),
        (DataLoader(dataset, batch_size=4, sampler=[2, 1, 0]), "list"),
        (DataLoader(dataset, batch_sampler=[[1], [0]]), "list"),
        (DataLoader(dataset, batch_size=None, sampler=RandomSampler(dataset)), "RandomSampler"),
        (DataLoader(Stream(), batch_size=4), "streams"),
        (DataLoader(dataset, batch_size=4, drop_last=True), "drops the last 1"),
    ]:
        with pytest.raises(TypeError, match=message):
            coresets.extract(model, loader)
    assert len(coresets.extract(model, DataLoader(dataset, batch_size=7, drop_last=True)).labels) == SIZE


def test_bad_models_and_batches() -> None:
    x, y = data(4).tensors

    class Softmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).softmax(1)

    plain = nn.Linear(4, 3)
    for model, batches, error, message in [
        (Softmax(), [(x, y)], ValueError, "no nn.Linear"),
        (nn.Flatten(), [(x, y)], ValueError, "no nn.Linear"),
        (plain, [x], TypeError, "a batch must be"),
        (plain, [{"x": x}], TypeError, "neither `labels`"),
        (plain, [(x, y[:-1])], ValueError, "class ids"),
        (plain, [], ValueError, "no batch"),
        (nn.Sequential(plain, nn.Flatten(0)), [(x, y)], TypeError, "logits"),
    ]:
        model.train()
        with pytest.raises(error, match=message):
            coresets.extract(model, batches)
        assert model.training and not any(module._forward_hooks for module in model.modules())
