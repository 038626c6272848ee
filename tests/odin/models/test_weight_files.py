import pickle
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from odin.models.weight_files import WeightsError, file_digest, load_weights, read_weights


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(left, right):
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


class Dangerous:
    """Runs code when unpickled."""

    def __reduce__(self):
        return print, ("executed",)


# --- read_weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt"])
def test_state_dict_of_torch_save(tmp_path, suffix):
    state = net().state_dict()
    torch.save(state, tmp_path / f"w.{suffix}")
    assert same(read_weights(tmp_path / f"w.{suffix}"), state)


def test_file_of_torch_before_1_6(tmp_path):
    state = net().state_dict()
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "w.pth"), state)


def test_safetensors(tmp_path):
    state = net().state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    read = read_weights(str(tmp_path / "w.safetensors"))
    assert same({name: read[name] for name in state}, state)


@pytest.mark.parametrize("content", [Dangerous(), {"state_dict": net().state_dict(), "hook": Dangerous()}])
def test_pickled_code_is_refused_and_not_run(tmp_path, capsys, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"code from a file is never run.*model\.state_dict\(\)"):
        read_weights(tmp_path / "w.pth")
    assert "executed" not in capsys.readouterr().out


def test_a_plain_pickle_is_refused_and_not_run(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(WeightsError, match="never run"):
        read_weights(tmp_path / "w.pt")
    assert "executed" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_refused_with_its_class(tmp_path):
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"Sequential"):
        read_weights(tmp_path / "w.pth")


def test_torchscript_is_refused_with_the_remedy(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; its files exist
        torch.jit.save(torch.jit.script(net()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"TorchScript.*state_dict"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken archive"])
def test_a_broken_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights {tmp_path / name}: "):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(net().state_dict(), path)
    else:
        safetensors.torch.save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"not a readable|is broken"):
        read_weights(path)


@pytest.mark.parametrize("given", [4, {"weight": torch.zeros(3)}, [b"w.pth"]])
def test_what_is_no_path(given):
    with pytest.raises(WeightsError, match=rf"weights of type {type(given).__name__} are no file; give the path"):
        read_weights(given)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.pth", "no such file"), ("folder.pth", "is a folder"), ("w.onnx", r"unknown kind.*\.safetensors, \.pth")],
)
def test_not_a_weight_file(tmp_path, name, message):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "w.onnx").touch()
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"epoch": 3, "loss": 0.5}, "no state dict found among its entries epoch, loss"),
        ({}, "no state dict"),
    ],
)
def test_no_state_dict_inside(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "w.pth")


# --- load_weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_load_equals_the_saved_model(assign):
    saved = net(1)
    with torch.device("meta" if assign else "cpu"):
        model = net(2)
    state = {f"module.{name}": value for name, value in saved.state_dict().items()}
    load_weights(model, state, source="w", assign=assign)
    assert same(model.state_dict(), saved.state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_half_precision_weights_become_the_models_type(assign):
    state = {name: value.half() if value.is_floating_point() else value for name, value in net(1).state_dict().items()}
    with torch.device("meta" if assign else "cpu"):
        model = net(2)
    load_weights(model, state, source="w", assign=assign)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(model[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_from_before_batch_norms_counted(assign):
    state = {name: value for name, value in net(1).state_dict().items() if "num_batches" not in name}
    with torch.device("meta" if assign else "cpu"):
        model = net(2)
    load_weights(model, state, source="w", assign=assign)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[3].bias, state["3.bias"])


def test_what_does_not_fit_is_listed():
    state = dict(net().state_dict())
    del state["0.bias"], state["3.weight"]
    state |= {"head.weight": torch.zeros(1), "3.bias": torch.zeros(5)}
    with pytest.raises(WeightsError) as caught:
        load_weights(net(), state, source="w.pth")
    assert str(caught.value) == (
        "weights w.pth do not fit Sequential: 2 missing (0.bias, 3.weight); 1 unexpected (head.weight); "
        "1 of other shape (3.bias is (5,) where the model has (2,)). "
        "Build the model as it was when these weights were trained, or give its own weights"
    )


def test_only_a_few_names_are_listed():
    state = {"0.weight": net()[0].weight} | {f"x{index}": torch.zeros(1) for index in range(9)}
    expected = r": 7 missing \(0\.bias, 1\.weight, 1\.bias, 1\.running_mean, and 3 more\); "
    with pytest.raises(WeightsError, match=expected + r"9 unexpected \(x0, x1, x2, x3, and 5 more\)\. Build"):
        load_weights(net(), state, source="w")


def test_digest_is_the_start_of_the_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf"
