import sys

import pytest
import torch
from torch import nn

from dataprune.errors import UsageError
from dataprune.lab.models.build import MODELS, build
from dataprune.lab.models.resnet import PaddedBlock
from dataprune.lab.training.settings import Settings

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 30)]
SMALL, LARGE = (3, 32, 32), (3, 224, 224)
PUBLISHED = {  # image, classes -> parameters
    ("resnet18", SMALL, 10): 11_173_962,
    ("resnet34", SMALL, 10): 21_282_122,
    ("resnet50", SMALL, 10): 23_520_842,
    ("lenet", (1, 28, 28), 10): 61_706,
    ("resnet20", SMALL, 10): 269_722,
    ("resnet32", SMALL, 10): 464_154,
    ("resnet44", SMALL, 10): 658_586,
    ("resnet56", SMALL, 10): 853_018,
    ("resnet18_imagenet", LARGE, 1000): 11_689_512,
    ("resnet34_imagenet", LARGE, 1000): 21_797_672,
    ("resnet50_imagenet", LARGE, 1000): 25_557_032,
}
# their layers are another library's: tests/lab/models/test_external.py
BORROWED = ("mobilenet_v2", "swin_t", "vgg16", "shufflenet_v2")
OWN = [name for name in MODELS if not name.startswith(BORROWED)]


@pytest.mark.parametrize(("name", "shape", "classes"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, shape, classes):
    model = build(name, shape, classes, 0)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name, shape, classes]


def test_the_help_names_every_model():
    text = Settings.__dataclass_fields__["model"].metadata["help"]
    assert all(name.removesuffix("_imagenet") in text for name in MODELS)


@pytest.mark.parametrize("name", OWN)
def test_every_model_takes_every_shape(name):
    for shape in SHAPES[:2] if name.startswith(("resnet34", "resnet50")) else SHAPES:
        model = build(name, shape, 7, 0)
        logits = model(torch.rand(2, *shape))
        assert logits.shape == (2, 7) and logits.isfinite().all()
        logits.sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())
        assert isinstance(model.fc, nn.Linear) and list(model.children())[-1] is model.fc


def sizes(model, names, image):
    """What the named stages make of an image."""
    seen = {}
    for name in names:
        getattr(model, name).register_forward_hook(
            lambda *args, name=name: seen.update({name: tuple(args[2].shape[1:])})
        )
    model.eval()(torch.zeros(1, *image))
    return [seen[name] for name in names]


def test_stages_keep_the_sizes_of_the_cifar_form():
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    assert sizes(build("resnet18", SMALL, 10, 0), names, SMALL) == [
        (64, 32, 32),
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
    ]


def test_stages_keep_the_sizes_of_the_imagenet_form():
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    shapes = sizes(build("resnet18_imagenet", (3, 64, 64), 10, 0), names, (3, 64, 64))
    assert shapes == [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_cifar_resnets_keep_the_sizes_of_the_paper():
    model = build("resnet32", SMALL, 100, 0)
    assert sizes(model, ("layer1", "layer2", "layer3"), SMALL) == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in model.modules()) == 32  # no other has weights


@pytest.mark.parametrize("side", [7, 8])
def test_a_padded_shortcut_is_the_reference(side):
    block = PaddedBlock(3, 5, 2).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        body, made = block.body(x), block(x)
    for position in torch.cartesian_prod(*map(torch.arange, made.shape)).tolist():
        image, channel, row, column = position
        shortcut = x[image, channel, 2 * row, 2 * column] if channel < 3 else 0
        expected = max(0.0, float(body[image, channel, row, column] + shortcut))
        assert float(made[image, channel, row, column]) == pytest.approx(expected, abs=1e-6)


def test_the_imagenet_form_computes_what_the_resnet_of_transformers_does():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=64, depths=[3, 4, 6, 3], num_labels=1000)
    reference = transformers.ResNetForImageClassification(config).eval()
    model = build("resnet50_imagenet", (3, 64, 64), 1000, 0).eval()
    copy = dict(zip(("stem.0", "stem.1"), reference.resnet.embedder.embedder.children()))
    for stage, layers in enumerate(reference.resnet.encoder.stages, start=1):
        for number, layer in enumerate(layers.layers):
            parts = [part for three in layer.layer for part in (three.convolution, three.normalization)]
            copy |= {f"layer{stage}.{number}.body.{at}": part for at, part in zip((0, 1, 3, 4, 6, 7), parts)}
            if number == 0:
                copy |= {f"layer{stage}.0.shortcut.{at}": part for at, part in enumerate(layer.shortcut.children())}
    copy["fc"] = reference.classifier[1]
    weights = {f"{name}.{field}": value for name, part in copy.items() for field, value in part.state_dict().items()}
    assert sum(weight.numel() for weight in reference.parameters()) == 25_557_032
    model.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images), reference(images).logits)


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


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(UsageError, match="unknown model 'resnet-18'; did you mean 'resnet18'"):
        build("resnet-18", (3, 32, 32), 10, 0)
