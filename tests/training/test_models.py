import sys

import pytest
import torch
from torch import nn

from dataprune.errors import UsageError
from dataprune.training.models import MODELS, build

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 30)]
PUBLISHED = {  # parameters with 10 classes
    ("resnet18", (3, 32, 32)): 11_173_962,
    ("resnet34", (3, 32, 32)): 21_282_122,
    ("resnet50", (3, 32, 32)): 23_520_842,
    ("lenet", (1, 28, 28)): 61_706,
}


@pytest.mark.parametrize(("name", "shape"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, shape):
    assert sum(weight.numel() for weight in build(name, shape, 10, 0).parameters()) == PUBLISHED[name, shape]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_every_shape(name):
    for shape in SHAPES[:2] if name in ("resnet34", "resnet50") else SHAPES:
        model = build(name, shape, 7, 0)
        logits = model(torch.rand(2, *shape))
        assert logits.shape == (2, 7) and logits.isfinite().all()
        logits.sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())
        assert isinstance(model.fc, nn.Linear) and list(model.children())[-1] is model.fc


def test_stages_keep_the_sizes_of_the_cifar_form():
    model = build("resnet18", (3, 32, 32), 10, 0)
    seen = {}
    for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(
            lambda *args, name=name: seen.update({name: tuple(args[2].shape[1:])})
        )
    model(torch.zeros(1, 3, 32, 32))
    assert list(seen.values()) == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_small_cnn_has_its_four_convolutions():
    convolutions = [layer for layer in build("small_cnn", (1, 28, 28), 10, 0).modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size, layer.stride) for layer in convolutions] == [
        (channels, (3, 3), (stride, stride)) for channels, stride in ((16, 2), (32, 1), (48, 2), (64, 1))
    ]


def test_a_basic_block_is_the_reference():
    block = build("resnet18", (3, 32, 32), 10, 0).layer2[0].eval()
    convolutions = [layer.weight for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    x = torch.randn(2, 64, 8, 8)
    scale = (1 + 1e-5) ** -0.5  # of a fresh batch norm in evaluation

    def convolve(x, weight, stride):
        return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2) * scale

    inner = convolve(convolve(x, convolutions[0], 2).relu(), convolutions[1], 1)
    torch.testing.assert_close(block(x), (inner + convolve(x, convolutions[2], 2)).relu())


def test_weights_follow_the_seed_and_global_state_is_untouched():
    before = torch.get_rng_state()
    first, again, other = (build("small_cnn", (1, 8, 8), 10, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_global_state_is_restored_when_a_model_fails(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_models.py").write_text(
        "import torch\n"
        "def linear(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
        "def broken(shape, classes):\n"
        "    torch.rand(1)\n"
        "    raise RuntimeError('broken')\n"
        "def nothing(shape, classes):\n"
        "    return None\n"
        "number = 3\n"
    )
    assert build("own_models:linear", (1, 4, 4), 3, 0)(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match=r"called with \(shape, classes\).*broken"):
        build("own_models:broken", (1, 4, 4), 3, 0)
    assert torch.equal(torch.get_rng_state(), before)
    for name, message in {
        "own_models:nothing": "must return a torch.nn.Module, not NoneType",
        "own_models:number": "is not a function",
        "own_models:absent": "cannot import model 'own_models:absent'",
        "own_modules:linear": "No module named 'own_modules'",
        ":linear": "cannot import model",
    }.items():
        with pytest.raises(UsageError, match=message):
            build(name, (1, 4, 4), 3, 0)
    sys.modules.pop("own_models")


def test_an_unknown_model_is_told_the_nearest():
    with pytest.raises(UsageError, match="unknown model 'resnet-18'; did you mean 'resnet18'"):
        build("resnet-18", (3, 32, 32), 10, 0)
