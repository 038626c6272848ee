import hashlib

import pytest
import torch

from odin.models.builtin import BUILTIN_MODELS
from odin.models.builtin.initialize import initialize

# Parameters, and SHA-256 of the sorted lines "name shape" of the state dict: equal to torchvision 0.29's.
TORCHVISION = {
    "vgg16": (138_357_544, "ba63c2556d912509"),
    "resnet18": (11_689_512, "5191d63ec3989592"),
    "resnet34": (21_797_672, "f8de2a1812ef85e4"),
    "resnet50": (25_557_032, "a87e91cd6bd1f939"),
    "resnet101": (44_549_160, "dbc3ca74fffafc72"),
    "resnet152": (60_192_808, "7d486dbdc941506e"),
    "mobilenet_v2": (3_504_872, "e3eb10f890f74c6e"),
    "efficientnet_b0": (5_288_548, "98a6d92c040c4bca"),
    "densenet121": (7_978_856, "9c659ec278435e95"),
    "convnext_tiny": (28_589_128, "ddd0f74f783edf2b"),
}
SMALL = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny")


def build(name, *, num_classes=1000, seed=0):
    with torch.device("meta"):
        model = BUILTIN_MODELS[name](num_classes=num_classes)
    model.to_empty(device="cpu")
    initialize(model, seed=seed)
    return model.eval()


def image(seed=0, size=64):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_every_model_is_listed():
    assert set(BUILTIN_MODELS) == set(TORCHVISION)


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        model = BUILTIN_MODELS[name]()
    lines = sorted(f"{key} {tuple(tensor.shape)}" for key, tensor in model.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (sum(parameter.numel() for parameter in model.parameters()), digest) == TORCHVISION[name]


def test_some_names_that_checkpoints_have():
    with torch.device("meta"):
        keys = {name: set(BUILTIN_MODELS[name]().state_dict()) for name in BUILTIN_MODELS}
    assert {"features.28.weight", "classifier.6.bias"} <= keys["vgg16"]
    assert {"layer3.5.conv3.weight", "layer2.0.downsample.1.running_var", "fc.bias"} <= keys["resnet50"]
    assert {"features.0.1.num_batches_tracked", "features.2.conv.1.0.weight"} <= keys["mobilenet_v2"]
    assert {"features.6.3.block.2.fc1.bias", "features.1.0.block.2.0.weight"} <= keys["efficientnet_b0"]
    assert {"features.denseblock3.denselayer24.norm1.running_var", "features.norm5.bias"} <= keys["densenet121"]
    assert {"features.5.8.layer_scale", "features.5.8.block.5.bias", "classifier.2.weight"} <= keys["convnext_tiny"]


@pytest.mark.parametrize("name", SMALL)
def test_outputs_equal_torchvision_with_the_same_weights(name):
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    model, reference = build(name), models.get_model(name, weights=None).eval()
    reference.load_state_dict(model.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(model(image()), reference(image()))


@pytest.mark.parametrize("name", SMALL)
def test_random_weights_give_finite_outputs_that_depend_on_the_image(name):
    model = build(name)
    with torch.inference_mode():
        scores = torch.cat([model(image(0)), model(image(1))])
    assert scores.shape == (2, 1000)
    assert scores.isfinite().all()
    assert scores.std(dim=1).min() > 0.5
    assert scores.abs().max() < 1000  # so that half precision holds every activation
    assert (scores[0] - scores[1]).std() > 0.05 * scores.std()


def test_activations_of_the_deepest_model_do_not_grow():
    sizes = []
    model = build("resnet152")
    for block in model.layer3:
        block.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.std().item()))
    with torch.inference_mode():
        model(image())
    assert len(sizes) == 36
    assert max(sizes) < 10


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "convnext_tiny"])
def test_activations_neither_fade_nor_grow_from_group_to_group(name):
    sizes = []
    model = build(name)
    for group in model.features:
        group.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.std().item()))
    with torch.inference_mode():
        model(image())
    assert len(sizes) == len(model.features)
    assert min(sizes) > 0.2
    assert max(sizes) < 10


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "convnext_tiny"])
def test_a_small_change_of_a_large_image_stays_small(name):
    model, x = build(name), 4 * image()  # gates that amplified each other made 1e-3 of 1e-5
    with torch.inference_mode():
        scores, changed = model(x), model(x * (1 + 1e-5))
    assert (scores - changed).abs().max() < 1e-4 * scores.abs().max()


def test_every_branch_of_convnext_counts():
    model = build("convnext_tiny")
    for module in model.modules():
        if hasattr(module, "layer_scale"):
            assert (module.layer_scale.abs() > 0.1).all()  # 1e-6, where training begins, would hide what a block does


def test_initialisation_repeats_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = build("resnet18"), build("resnet18"), build("resnet18", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_batch_norms_are_not_trivial_to_fold():
    norm = build("resnet18").layer1[0].bn1
    for tensor, trivial in ((norm.running_mean, 0.0), (norm.running_var, 1.0), (norm.weight, 1.0), (norm.bias, 0.0)):
        assert (tensor != trivial).all()
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("name", SMALL)
def test_number_of_classes(name):
    with torch.inference_mode():
        assert build(name, num_classes=7)(image()).shape == (1, 7)


@pytest.mark.parametrize("size", [33, 96, 224])
def test_sizes_other_than_the_usual(size):
    with torch.inference_mode():
        assert build("resnet18")(image(size=size)).shape == (1, 1000)
