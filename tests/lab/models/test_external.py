import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from dataprune.errors import UsageError
from dataprune.lab.models.build import build
from dataprune.lab.training.tasks.images import headless
from dataprune.modules import last_layer

SMALL, LARGE = (3, 32, 32), (3, 224, 224)


@pytest.fixture
def transformers():
    return pytest.importorskip(
        "transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'"
    )


def count(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("swin_t_imagenet", LARGE, 1000, 28_288_354),
        ("mobilenet_v2_imagenet", LARGE, 1000, 3_504_872),
        ("mobilenet_v2", SMALL, 1000, 3_504_872),
        # 12 tables of the biases of 13² positions are of 7²: (3·2 + 6·2 + 12·6 + 24·2)·120; patches of 3 values, not 48
        ("swin_t", SMALL, 1000, 28_288_354 - 138 * 120 - 45 * 96),
    ],
)
def test_parameter_counts_are_the_published_ones(transformers, name, shape, classes, parameters):
    assert count(build(name, shape, classes, 0)) == parameters


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v2"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 25, 40)])
def test_images_of_other_shapes(transformers, name, shape):
    model = build(name, shape, 7, 0)
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t_imagenet", "mobilenet_v2_imagenet"])
def test_the_imagenet_form_learns(transformers, name):
    model = build(name, LARGE, 7, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, labels = torch.randn(4, *LARGE), torch.arange(4)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_swin_refuses_images_without_a_whole_window(transformers):
    with pytest.raises(UsageError, match=r"swin_t takes images from 25 pixels a side, got \(3, 24, 32\)"):
        build("swin_t", (3, 24, 32), 10, 0)
    with pytest.raises(UsageError, match=r"swin_t_imagenet takes images from 193 pixels.*or take swin_t$"):
        build("swin_t_imagenet", (3, 192, 224), 10, 0)


@pytest.mark.parametrize(("name", "side"), [("mobilenet_v2", 4), ("mobilenet_v2_imagenet", 1)])
def test_strides_of_the_mobilenet(transformers, name, side):
    model = build(name, SMALL, 10, 0).eval()
    model.backbone.model.pooler.register_forward_hook(lambda _, inputs, output: maps.append(inputs[0].shape))
    maps = []
    model(torch.zeros(1, *SMALL))
    assert maps == [(1, 1280, side, side)]


def test_mobilenet_has_the_usual_batch_norm_of_torch(transformers):
    norms = [layer for layer in build("mobilenet_v2", SMALL, 10, 0).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 52 and {(layer.momentum, layer.eps) for layer in norms} == {(0.1, 1e-5)}


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v2"])
def test_weights_follow_the_seed_and_global_state_is_untouched(transformers, name):
    before = torch.get_rng_state()
    first, again, other = (build(name, SMALL, 10, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v2", "resnet20", "resnet18_imagenet"])
def test_features_are_what_the_last_layer_reads(request, name):
    if not name.startswith("resnet"):
        request.getfixturevalue("transformers")
    model = build(name, SMALL, 10, 0)
    head = model.fc
    assert last_layer(model, torch.zeros(2, *SMALL)) is head
    encoder, width = headless(model, SimpleNamespace(shape=SMALL))
    assert encoder.eval()(torch.rand(2, *SMALL)).shape == (2, width) == (2, head.in_features)


@pytest.mark.parametrize("name", ["swin_t", "mobilenet_v2", "resnet20", "resnet18_imagenet"])
def test_channels_last_and_autocast(request, name):
    if not name.startswith("resnet"):
        request.getfixturevalue("transformers")
    model, images = build(name, SMALL, 10, 0).eval(), torch.randn(2, *SMALL)
    with torch.no_grad():
        plain = model(images)
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images), plain, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(images)
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(1).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("swin_t", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("resnet20", marks=pytest.mark.slow),
        pytest.param("resnet18_imagenet", marks=pytest.mark.slow),
    ],
)
def test_models_compile(request, name):
    if not name.startswith("resnet"):
        request.getfixturevalue("transformers")
    model, images = build(name, SMALL, 10, 0), torch.randn(2, *SMALL)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")  # traced, without a compiler
    model.eval()
    torch.testing.assert_close(compiled(images), model(images))
    compiled.train()(images).logsumexp(1).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.fixture
def torchvision(monkeypatch):
    """As much of torchvision.models as is called: the same attributes, and fewer layers."""
    models = ModuleType("torchvision.models")
    models.calls = []

    def vgg(name, norm):
        def make(**named):
            models.calls.append((name, named))
            model, channels = nn.Module(), 3
            model.features = nn.Sequential()
            for out in (8, 16, 16, 32, 512):
                model.features.append(nn.Conv2d(channels, out, 3, padding=1))
                model.features.extend([nn.BatchNorm2d(out)] if norm else [])
                model.features.extend([nn.ReLU(True), nn.MaxPool2d(2)])
                channels = out
            model.avgpool = nn.AdaptiveAvgPool2d((7, 7))
            model.classifier = nn.Sequential(
                nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, named["num_classes"])
            )
            return model

        return make

    class Shuffle(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(True))
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            self.stage2 = nn.Conv2d(24, 32, 3, 2, 1)
            self.fc = nn.Linear(32, num_classes)

        def forward(self, x):
            self.map = self.stage2(self.maxpool(self.conv1(x)))
            return self.fc(self.map.mean([2, 3]))

    def shuffle(**named):
        models.calls.append(("shufflenet_v2_x1_0", named))
        return Shuffle(**named)

    models.vgg16, models.vgg16_bn, models.shufflenet_v2_x1_0 = vgg("vgg16", False), vgg("vgg16_bn", True), shuffle
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return models


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("vgg16", "vgg16_bn"),
        ("vgg16_imagenet", "vgg16"),
        ("shufflenet_v2", "shufflenet_v2_x1_0"),
        ("shufflenet_v2_imagenet", "shufflenet_v2_x1_0"),
    ],
)
def test_models_of_torchvision(torchvision, name, function):
    model = build(name, SMALL, 7, 0)
    assert torchvision.calls == [(function, {"num_classes": 7})]  # no weights, so nothing is loaded
    assert last_layer(model, torch.zeros(2, *SMALL)) is model.fc and list(model.children())[-1] is model.fc
    logits = model(torch.rand(2, *SMALL))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_forms_of_the_models_of_torchvision(torchvision):
    small, large = build("vgg16", SMALL, 7, 0), build("vgg16_imagenet", SMALL, 7, 0)
    assert small.fc.in_features == 512 and small.fc.bias.count_nonzero() == 0
    assert count(large) == count(torchvision.vgg16(num_classes=7))  # nothing got lost
    for name, side in (("shufflenet_v2", 16), ("shufflenet_v2_imagenet", 4)):
        model = build(name, SMALL, 7, 0)
        model(torch.rand(2, *SMALL))
        assert model.map.shape[2:] == (side, side)


def test_models_of_torchvision_refuse_unsuitable_images(torchvision):
    for name in ("vgg16", "shufflenet_v2"):
        with pytest.raises(UsageError, match=rf"{name} takes images of 3 channels, got \(1, 32, 32\)"):
            build(name, (1, 32, 32), 10, 0)
    with pytest.raises(UsageError, match="vgg16 halves images five times and takes them from 32 pixels"):
        build("vgg16", (3, 28, 28), 10, 0)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("swin_t", "transformers", r"pip install -c constraints.txt -e '\.\[hf\]'"),
        ("mobilenet_v2", "transformers", r"pip install -c constraints.txt -e '\.\[hf\]'"),
        ("vgg16", "torchvision", r"pip install torchvision, in the release that goes with torch \d"),
        ("shufflenet_v2", "torchvision", r"pip install torchvision, in the release that goes with torch \d"),
    ],
)
def test_a_missing_library_names_its_installation(monkeypatch, name, module, remedy):
    for loaded in (module, f"{module}.models"):
        monkeypatch.setitem(sys.modules, loaded, None)  # importing it fails
    with pytest.raises(UsageError, match=f"model {name} needs {module}: {remedy}"):
        build(name, SMALL, 10, 0)


def test_a_library_that_does_not_load_or_is_too_old(torchvision, monkeypatch):
    del torchvision.vgg16_bn
    with pytest.raises(UsageError, match=r"needs torchvision: pip install.*no attribute 'vgg16_bn'"):
        build("vgg16", SMALL, 10, 0)

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("dataprune.lab.models.external.importlib.import_module", broken)
    with pytest.raises(UsageError, match=r"needs torchvision.*nms does not exist"):
        build("vgg16", SMALL, 10, 0)
