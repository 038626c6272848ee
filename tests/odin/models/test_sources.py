import os
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from odin.models.images import Preprocess
from odin.models.sources import Source, load_source
from odin.models.weight_files import WeightsError


def small(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


def library(name):
    return pytest.importorskip(name, exc_type=(ImportError, RuntimeError))


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Write a module into the working directory, which is not on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


# --- built-in ----------------------------------------------------------------------------------------------------


def test_builtin():
    source = load_source("resnet18")
    assert (source.name, source.random_weights, source.model.training) == ("resnet18", True, False)
    assert [tuple(tensor.shape) for tensor in source.example_args] == [(1, 3, 224, 224)]
    assert source.preprocess == Preprocess(resize=256, crop=(224, 224))
    assert len(source.labels) == 1000
    assert not any(parameter.requires_grad for parameter in source.model.parameters())


def test_random_weights_and_example_are_the_same_every_time():
    torch.manual_seed(1)
    first = load_source("mobilenet_v2")
    torch.manual_seed(2)
    second = load_source("mobilenet_v2")
    assert torch.equal(first.example_args[0], second.example_args[0])
    with torch.inference_mode():
        assert torch.equal(first.model(*first.example_args), second.model(*second.example_args))


def test_image_size():
    source = load_source("resnet18", image_size=96)
    assert source.example_args[0].shape == (1, 3, 96, 96)
    assert source.preprocess == Preprocess(resize=110, crop=(96, 96))


def test_trained_weights(tmp_path):
    trained = load_source("resnet18").model
    with torch.no_grad():
        trained.fc.bias.add_(3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "w.pth")
    source = load_source("resnet18", weights=tmp_path / "w.pth")
    assert not source.random_weights
    assert torch.equal(source.model.fc.bias, trained.fc.bias)
    assert {tensor.device.type for tensor in source.model.state_dict().values()} == {"cpu"}
    with torch.inference_mode():
        assert torch.equal(source.model(*source.example_args), trained(*source.example_args))


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("mobilenet_v2", "classifier.1")])
def test_number_of_classes_follows_the_weights(tmp_path, name, head):
    state = dict(load_source(name).model.state_dict())
    for part in ("weight", "bias"):
        state[f"{head}.{part}"] = state[f"{head}.{part}"][:7].clone()
    torch.save(state, tmp_path / "w.pth")
    source = load_source(name, weights=tmp_path / "w.pth")
    assert source.labels is None
    with torch.inference_mode():
        assert source.model(*source.example_args).shape == (1, 7)


def test_weights_of_another_model(tmp_path):
    torch.save(load_source("resnet18").model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit MobileNetV2: \d+ missing"):
        load_source("mobilenet_v2", weights=tmp_path / "w.pth")


def test_the_second_generation_of_published_weights_has_its_own_resize(tmp_path, monkeypatch):
    torch.save(load_source("mobilenet_v2").model.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr("odin.models.sources.file_digest", lambda path: "7ebf99e0")
    assert load_source("mobilenet_v2", weights=tmp_path / "w.pth").preprocess == Preprocess(resize=232)


def test_models_that_were_evaluated_with_another_resize_say_so_at_their_own_size():
    assert load_source("efficientnet_b0").preprocess == Preprocess(interpolation="bicubic")
    assert load_source("convnext_tiny").preprocess == Preprocess(resize=236)
    assert load_source("convnext_tiny", image_size=64).preprocess == Preprocess.for_size(64, 64)


def test_published_names_of_densenet(tmp_path):
    trained = load_source("densenet121").model.state_dict()
    names = (re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name) for name in trained)
    old = dict(zip(names, trained.values(), strict=True))
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    loaded = load_source("densenet121", weights=tmp_path / "w.pth").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())


# --- unknown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet51", r"unknown model 'resnet51' \(did you mean resnet50 or .*\)\. Built in: vgg16, resnet18"),
        ("nonsense", r"unknown model 'nonsense'\. Built in: .*package\.module:factory"),
        ("ResNet50", "did you mean resnet50"),
        ("", "unknown model ''"),
        ("resnet50.pth", "is a file of weights .*--weights"),
        ("gone.onnx", r"gone\.onnx: no such file"),
        ("gone.pt2", r"gone\.pt2: no such file"),
        (":", "unknown model ':'"),
        (os.getcwd(), r"is a folder, not a model: name a \.pt2 or \.onnx file"),
    ],
)
def test_unknown_model(spec, message):
    with pytest.raises(ValueError, match=message):
        load_source(spec)


def test_not_a_spec():
    with pytest.raises(ValueError, match="not int"):
        load_source(3)


# --- modules -----------------------------------------------------------------------------------------------------


def test_module():
    model = small()
    source = load_source(model)
    assert source.model is model
    assert source == Source("sequential", model, source.example_args, Preprocess(), None, False)
    assert not model.training
    assert source.example_args[0].shape == (1, 3, 224, 224)


def test_module_of_grey_images_reads_one_channel():
    source = load_source(small(channels=1), image_size=28)
    assert source.example_args[0].shape == (1, 1, 28, 28)
    assert source.preprocess is None


def test_module_with_weights(tmp_path):
    saved, model = small(), small()
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    load_source(model, weights=tmp_path / "w.pth")
    assert torch.equal(model[0].weight, saved[0].weight)


def test_module_on_another_device_is_refused():
    with torch.device("meta"):
        model = small()
    with pytest.raises(ValueError, match=r"0\.weight is on meta; .*model\.cpu\(\)"):
        load_source(model)


# --- example input -----------------------------------------------------------------------------------------------


def test_examples_of_every_kind():
    image = np.arange(3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)
    for example in (image, torch.from_numpy(image), (image,), [torch.from_numpy(image)]):
        [tensor] = load_source(small(), example_input=example).example_args
        assert torch.equal(tensor, torch.from_numpy(image))


def test_awkward_arrays():
    base = np.arange(3 * 8 * 8, dtype=">f4").reshape(1, 3, 8, 8)[..., ::-1]
    base.flags.writeable = False
    [tensor] = load_source(small(), example_input=base).example_args
    assert torch.equal(tensor, torch.arange(3 * 8 * 8, dtype=torch.float32).reshape(1, 3, 8, 8).flip(3))


def test_several_inputs_are_no_image():
    source = load_source(small(), example_input=(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2)))
    assert [tensor.shape for tensor in source.example_args] == [(1, 3, 8, 8), (1, 2)]
    assert source.preprocess is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example_input": "x.jpg"}, "not str"),
        ({"example_input": 3}, "not int"),
        ({"example_input": (torch.zeros(1), 3)}, "example input 1 is of type int"),
        ({"example_input": ()}, "empty"),
        ({"image_size": 0}, "image size 0"),
        ({"example_input": torch.zeros(0, 3, 8, 8)}, r"shape \(0, 3, 8, 8\) has no sample; give at least one"),
        ({"image_size": 64, "example_input": torch.zeros(1)}, "either an example input or an image size"),
    ],
)
def test_impossible_examples(options, message):
    with pytest.raises(ValueError, match=message):
        load_source(small(), **options)


# --- exported programs -------------------------------------------------------------------------------------------


def test_exported_program(tmp_path):
    model, image = small().eval(), torch.randn(1, 3, 16, 16)
    program = torch.export.export(model, (image,))
    torch.export.save(program, tmp_path / "net.pt2")
    source = load_source(str(tmp_path / "net.pt2"))
    assert (source.name, source.random_weights) == ("net", False)
    assert torch.equal(source.example_args[0], image)
    assert torch.equal(source.model.module()(image), model(image))
    assert source.preprocess == Preprocess.for_size(16, 16)
    assert load_source(program).model is program


def test_exported_program_takes_no_weights_and_no_size():
    program = torch.export.export(small().eval(), (torch.randn(1, 3, 16, 16),))
    with pytest.raises(ValueError, match="carries its weights"):
        load_source(program, weights="w.pth")
    with pytest.raises(ValueError, match="export it at 64"):
        load_source(program, image_size=64)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_a_broken_exported_program_is_told_in_one_message(tmp_path, capfd, part):
    """Torch printed a traceback first, for the older format that it then tries."""
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(small().eval(), (torch.randn(1, 3, 16, 16),)), path)
    capfd.readouterr()
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(ValueError, match=r"net\.pt2: not a program saved by torch\.export\.save"):
        load_source(path)
    assert capfd.readouterr().err == ""


def test_an_image_that_fits_into_no_memory():
    with pytest.raises(MemoryError, match=r"an input of 3x3000000x3000000 takes 1.01e\+05 GiB: give a smaller one"):
        load_source(small(), image_size=3_000_000)


# --- factories ---------------------------------------------------------------------------------------------------


def test_factory_in_the_working_directory(user_module):
    user_module("nets_of_mine", "from torch import nn\ndef tiny():\n    return nn.Sequential(nn.Conv2d(3, 2, 1))\n")
    source = load_source("nets_of_mine:tiny")
    assert (source.name, type(source.model), source.random_weights) == ("tiny", nn.Sequential, False)
    assert source.example_args[0].shape == (1, 3, 224, 224)


def test_factory_with_example(user_module):
    user_module("nets_with_example", "import torch\ndef f():\n    return torch.nn.Linear(5, 2), torch.ones(1, 5)\n")
    source = load_source("nets_with_example:f")
    assert torch.equal(source.example_args[0], torch.ones(1, 5))
    assert source.preprocess is None


def test_class_as_factory():
    assert isinstance(load_source("odin.models.builtin.mobilenet:MobileNetV2").model, nn.Module)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'"),
        ("torch.no_such_part:f", r"no module 'torch\.no_such_part'"),
        ("torch:no_such_factory", "torch has no 'no_such_factory'"),
        ("torch:__version__", "name a function or class"),
        ("builtins:dict", r"gave a dict, expected an nn\.Module"),
        ("..torch:nn", "is not the name of a module"),
    ],
)
def test_what_is_no_factory(spec, message):
    with pytest.raises(ValueError, match=message):
        load_source(spec)


def test_a_missing_import_inside_the_users_module_is_shown_as_such(user_module):
    user_module("nets_importing", "import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_source("nets_importing:f")


# --- libraries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_library_that_is_not_installed(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the package {name}: pip install {name}"):
        load_source(f"{name}:resnet18")


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_library_without_that_model(name):
    library(name)
    with pytest.raises(ValueError, match=rf"{name} has no model 'resnet19'; did you mean .*resnet18"):
        load_source(f"{name}:resnet19")


@pytest.mark.parametrize(
    ("name", "preprocess"),
    [
        ("resnet18", Preprocess()),
        ("inception_v3", Preprocess(resize=342, crop=(299, 299))),
        ("efficientnet_b0", Preprocess(interpolation="bicubic")),
    ],
)
def test_torchvision(name, preprocess):
    library("torchvision")
    source = load_source(f"torchvision:{name}")
    assert (source.name, source.preprocess, source.random_weights) == (name, preprocess, True)
    assert source.example_args[0].shape == (1, 3, *preprocess.crop)
    assert source.labels[0] == "tench"
    again = load_source(f"torchvision:{name}")
    assert all(map(torch.equal, source.model.parameters(), again.model.parameters()))


def test_torchvision_image_size_keeps_the_crops_share():
    library("torchvision")
    assert load_source("torchvision:resnet18", image_size=112).preprocess == Preprocess(resize=128, crop=(112, 112))


def test_torchvision_segmentation_has_no_classifiers_preprocessing():
    library("torchvision")
    source = load_source("torchvision:lraspp_mobilenet_v3_large")
    assert (source.preprocess, source.labels) == (None, None)


def test_torchvision_weights_that_are_published_are_recognised(tmp_path, monkeypatch):
    library("torchvision")
    torch.save(load_source("torchvision:inception_v3").model.state_dict(), tmp_path / "w.pth")
    unknown = load_source("torchvision:inception_v3", weights=tmp_path / "w.pth")
    monkeypatch.setattr("odin.models.zoo.file_digest", lambda path: "0cc3c7bd")
    published = load_source("torchvision:inception_v3", weights=tmp_path / "w.pth")
    assert (unknown.model.transform_input, published.model.transform_input) == (False, True)
    assert not published.random_weights


def test_torchvision_old_names_of_densenet(tmp_path):
    library("torchvision")
    trained = load_source("torchvision:densenet121").model
    old = {
        name.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): value
        for name, value in trained.state_dict().items()
    }
    torch.save(old, tmp_path / "w.pth")
    source = load_source("torchvision:densenet121", weights=tmp_path / "w.pth")
    assert all(map(torch.equal, source.model.parameters(), trained.parameters()))


@pytest.mark.parametrize(
    ("name", "preprocess"),
    [
        ("resnet18", Preprocess(resize=235, interpolation="bicubic")),
        (
            "inception_v4",
            Preprocess(resize=341, crop=(299, 299), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"),
        ),
    ],
)
def test_timm(name, preprocess):
    library("timm")
    source = load_source(f"timm:{name}")
    assert (source.name, source.preprocess, source.random_weights) == (name, preprocess, True)
    assert source.example_args[0].shape == (1, 3, *preprocess.crop)
    assert len(source.labels) == 1000
    again = load_source(f"timm:{name}")
    assert all(map(torch.equal, source.model.parameters(), again.model.parameters()))
