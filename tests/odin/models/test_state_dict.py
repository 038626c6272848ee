"""Weights as training scripts and wrappers leave them: found in their file, or refused with the names that matter."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from odin.models.images import Preprocess
from odin.models.sources import load_source
from odin.models.weight_files import WeightsError, load_weights, read_weights


def net(seed=0):
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), block, nn.Flatten(), nn.Linear(4, 2))


def trained(seed=1):
    return dict(net(seed).state_dict())


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def load(tmp_path, content):
    """Load a file of this content into a model; its state afterwards."""
    torch.save(content, tmp_path / "w.pth")
    model = net(7)
    load_weights(model, read_weights(tmp_path / "w.pth"), source=tmp_path / "w.pth")
    return model.state_dict()


def equal(state, wanted):
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


T = torch.tensor
FOUND = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 90},
    "model and args": lambda s: {"model": s, "optimizer": {"lr": 0.1}, "args": None},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "two deep": lambda s: {"model": {"state_dict": s}},
    "other model beside": lambda s: {"model": s, "model_ema": {"n": torch.ones(1)}},
    "a name of one's own": lambda s: {"generator_weights": {"net": s}},
    "optimizer's state": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 3, 3, 3)}}}},
    "DeepSpeed": lambda s: {"module": s, "buffer_names": [], "ds_version": "0.14", "global_steps": 3},
    "EMA alone": lambda s: {"ema_state_dict": s, "decay": 0.999},
    "EMA's shadow": lambda s: {"ema": {"decay": 0.9, "shadow": s}},
    "AveragedModel": lambda s: {"n_averaged": T(7), **under("module.", s)},
    "AveragedModel, nested": lambda s: {"swa": {"n_averaged": T(7), **under("module.", s)}},
    "DataParallel": lambda s: under("module.", s),
    "torch.compile": lambda s: under("_orig_mod.", s),
    "both": lambda s: under("module._orig_mod.", s),
    "both, other way": lambda s: under("_orig_mod.module.", s),
    "FSDP": lambda s: under("_fsdp_wrapped_module.", s),
    "inner torch.compile": lambda s: {name.replace("2.", "2._orig_mod."): t for name, t in s.items()},
    "inner FSDP": lambda s: {name.replace("2.", "2._fsdp_wrapped_module."): t for name, t in s.items()},
    "inner checkpoints": lambda s: {
        f"_fsdp_wrapped_module.{name.replace('2.', '2._checkpoint_wrapped_module.')}": t for name, t in s.items()
    },
    "net.": lambda s: under("net.", s),
    "backbone.": lambda s: under("backbone.", s),
    "encoder., nested": lambda s: {"state_dict": under("model.encoder.", s)},
    "Lightning": lambda s: {
        "state_dict": {
            **under("model.", s),
            "loss.weight": torch.ones(2),
            "train_acc.correct": T(3.5),
            "criterion.pos_weight": torch.ones(2),
        },
        "pytorch-lightning_version": "2.4",
        "hyper_parameters": {"lr": 0.1},
    },
    "backbone beside a head": lambda s: {**under("backbone.", s), "head.weight": torch.ones(9, 2), "loss": T(0.3)},
    "one key beside a prefix": lambda s: {**under("module.", s), "best_acc": T(0.9)},
    "counters": lambda s: {
        **s,
        "n_averaged": T(3),
        "2.0.total_ops": torch.zeros(1),
        "2.0.total_params": torch.zeros(1),
    },
    "without batch norm's counters": lambda s: {n: t for n, t in under("model.", s).items() if "num_batches" not in n},
    "the same twice": lambda s: {"model": s, "state_dict": {name: t.clone() for name, t in s.items()}},
    "double precision": lambda s: {"model": {n: t.double() if t.is_floating_point() else t for n, t in s.items()}},
}


@pytest.mark.parametrize("wrap", FOUND.values(), ids=FOUND)
def test_weights_are_found(tmp_path, wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = load(tmp_path, wrap(trained()))
    assert equal(state, trained())


def test_safetensors_with_a_prefix(tmp_path):
    safetensors.torch.save_file(under("model.encoder.", trained()), tmp_path / "w.safetensors")
    model = net(7)
    load_weights(model, read_weights(tmp_path / "w.safetensors"), source="w")
    assert equal(model.state_dict(), trained())


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (lambda: {"model": trained(1), "ema": trained(2)}, "'ema'"),
        (lambda: {"state_dict": trained(1), "state_dict_ema": trained(2)}, "'state_dict_ema'"),
        (lambda: {"model": trained(1), "model_ema": under("module.", trained(2))}, "'model_ema'"),
        (
            lambda: {"state_dict": under("model.", trained(1)) | under("ema_model.", trained(2))},
            "names after 'ema_model.'",
        ),
        (lambda: {"net": trained(1), "ema": {"decay": 0.9, "shadow": trained(2)}}, "'ema.shadow'"),
    ],
)
def test_a_running_average_is_preferred_and_told(tmp_path, content, place):
    with pytest.warns(UserWarning, match=r"w\.pth: .* fit the model; taken is the running average") as told:
        state = load(tmp_path, content())
    assert place in str(told[0].message).partition("taken is")[2]
    assert equal(state, trained(2))


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"student": trained(1), "teacher": trained(2)},
        lambda: under("student.", trained(1)) | under("teacher.", trained(2)),
        lambda: {"state_dict": under("student.", trained(1)) | under("teacher.", trained(2))},
    ],
)
def test_two_that_fit_are_refused_by_name(tmp_path, content):
    with pytest.raises(WeightsError, match=r"2 sets of weights .*student.*teacher.*save the one that you want alone"):
        load(tmp_path, content())


def test_a_key_too_many_is_named_and_nothing_else(tmp_path):
    """One key that had no prefix made every other name of the file unexpected, and every name of the model missing."""
    content = {"state_dict": under("module.", trained()) | {"module.extra.weight": torch.ones(3)}}
    with pytest.raises(
        WeightsError,
        match=r"\(in its 'state_dict', names after 'module\.'\): 1 unexpected \(extra\.weight\)\. .*save the file",
    ):
        load(tmp_path, content)


def test_a_missing_key_is_named_below_a_prefix(tmp_path):
    state = under("backbone.", trained())
    del state["backbone.4.bias"]
    with pytest.raises(WeightsError, match=r"\(in its names after 'backbone\.'\): 1 missing \(4\.bias\)\. Build"):
        load(tmp_path, state)


def test_a_deeper_model_of_the_same_kind_is_not_cut_down(tmp_path):
    """Every tensor of a ResNet-18 has its like in a ResNet-34's file."""
    torch.save({"model": load_source("resnet34").model.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"\d+ unexpected \(layer1\.2\.conv1\.weight"):
        load_source("resnet18", weights=tmp_path / "w.pth")


def test_integers_are_no_float_weights(tmp_path):
    state = trained()
    state["4.weight"] = torch.ones(2, 4, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"4\.weight is torch\.int8 where the model has torch\.float32"):
        load(tmp_path, {"model": state})


def test_a_model_with_a_child_called_module_keeps_it():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    for prefix in ("", "module.", "net."):
        wanted = {"module.weight": torch.rand(2, 2), "module.bias": torch.rand(2)}
        load_weights(model, under(prefix, wanted), source="w")
        assert equal(model.state_dict(), wanted)


def test_old_names_of_densenet_below_a_prefix():
    model = nn.Module()
    model.denselayer1 = nn.Module()
    model.denselayer1.norm1 = nn.LayerNorm(2)
    state = {"module.denselayer1.norm.1.weight": torch.rand(2), "module.denselayer1.norm.1.bias": torch.rand(2)}
    load_weights(model, state, source="w")
    assert torch.equal(model.denselayer1.norm1.weight, state["module.denselayer1.norm.1.weight"])


def test_a_module_that_renames_what_older_versions_saved_still_does():
    class Renaming(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest):
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}kernel")
            super()._load_from_state_dict(state_dict, prefix, *rest)

    model, kernel = nn.Sequential(Renaming(2, 2)), torch.rand(2, 2)
    load_weights(model, {"0.kernel": kernel, "0.bias": torch.zeros(2)}, source="w")
    assert torch.equal(model[0].weight, kernel)


def test_a_file_of_shadow_parameters_without_names(tmp_path):
    torch.save({"shadow_params": [torch.ones(2)], "decay": 0.9}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no state dict found among its entries shadow_params, decay"):
        read_weights(tmp_path / "w.pth")


# --- numbers of classes ------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """With an auxiliary head, as Inception has one."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.aux, self.fc = nn.Linear(4, num_classes), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.conv1(x).mean((2, 3)))


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for torchvision and timm, with the entry points that are used."""
    transforms = types.SimpleNamespace(
        resize_size=[256], crop_size=[224], mean=[0.5] * 3, std=[0.5] * 3,
        interpolation=types.SimpleNamespace(value="bilinear"),
    )  # fmt: skip
    entry = types.SimpleNamespace(
        url="https://x/y-01234567.pth", meta={"categories": ["x"] * 1000}, transforms=lambda: transforms
    )

    class Weights(list):
        DEFAULT = entry

    def builder(*, weights=None, **options):
        return Classifier(**options)

    torchvision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.get_model_builder = lambda name: builder
    models.get_model_weights = lambda name: Weights([entry])
    timm, data = types.ModuleType("timm"), types.ModuleType("timm.data")
    timm.is_model = lambda name: True
    timm.create_model = lambda name, pretrained, **options: Classifier(**options)
    data.resolve_model_data_config = lambda model: {
        "input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3,
        "interpolation": "bicubic",
    }  # fmt: skip
    for module in (torchvision, models, timm, data):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_library_models_adapt_to_the_classes_in_the_file(tmp_path, libraries, library, classes):
    wanted = Classifier(classes).state_dict()
    torch.save({"model": under("module.", wanted)}, tmp_path / "w.pth")
    source = load_source(f"{library}:classifier", weights=tmp_path / "w.pth")
    assert equal(source.model.state_dict(), wanted)
    assert (source.labels is None) is (classes != 1000)
    assert isinstance(source.preprocess, Preprocess)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_heads_that_differ_among_themselves_are_refused(tmp_path, libraries, library):
    state = Classifier(7).state_dict() | {"aux.weight": torch.ones(5, 4), "aux.bias": torch.ones(5)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"4 of other shape \(aux\.weight is \(5, 4\)"):
        load_source(f"{library}:classifier", weights=tmp_path / "w.pth")


def test_builtin_models_adapt_below_wrappers_too(tmp_path):
    state = dict(load_source("resnet18").model.state_dict())
    state |= {f"fc.{part}": state[f"fc.{part}"][:7].clone() for part in ("weight", "bias")}
    torch.save({"state_dict": under("model.net.", state) | {"loss.bias": torch.ones(3)}}, tmp_path / "w.pth")
    source = load_source("resnet18", weights=tmp_path / "w.pth")
    assert (source.model.fc.out_features, source.labels) == (7, None)
