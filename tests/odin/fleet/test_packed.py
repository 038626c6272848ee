"""Packed models: what is written is read again, bit for bit; what others could have written, or is damaged, is not."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

import odin
from odin.fleet.executor import Models
from odin.fleet.opened import OpenModel, processor_form
from odin.fleet.packed import PackedFile, PackedFolder, PackedModelError
from odin.fleet.packing import pack_chain, pack_source, time_alone
from odin.fleet.program_data import NotPackableError, layer_from_data, layer_to_data
from odin.partitioner.chain import Chain, build_chain
from odin.stages.compute import opaque

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
BASELINE_S = {1: 0.001}


def net(seed: int, *, outputs: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, outputs),
    ).eval()


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        y = self.conv(x)
        return {"sum": y.sum((1, 2, 3)), "parts": (y, x.view(x.size(0), -1))}


def packed(folder: Path, model: nn.Module, name: str = "one", *, x: torch.Tensor = X[:1], **options) -> Chain:
    chain = build_chain(model, (x,), name=name)
    pack_chain(chain, folder, name=name, baseline_s=BASELINE_S, **options)
    return chain


def answer(opened: OpenModel, *inputs: torch.Tensor):
    values, _ = opened.run(opened.call.layout(opened.call.flatten(inputs)))
    return opened.call.unpack(values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir(mode=0o700)
    return made


@pytest.mark.parametrize("portable", [False, True])
def test_answers_are_those_of_the_unsplit_chain(folder: Path, portable: bool):
    chain = packed(folder, net(0), portable=portable)
    opened = OpenModel(PackedFolder(folder), "one")
    for x in (X[:1], X):
        assert torch.equal(answer(opened, x), chain(x))
    nan = X.clone()
    nan[0, 0, 0, 0] = torch.nan
    assert torch.equal(answer(opened, nan).isnan(), chain(nan).isnan())


def test_structures_of_results(folder: Path):
    chain = packed(folder, Several())
    result, expected = answer(OpenModel(PackedFolder(folder), "one"), X[:1]), chain(X[:1])
    assert list(result) == ["sum", "parts"]
    assert isinstance(result["parts"], tuple)
    assert torch.equal(result["sum"], expected["sum"])
    assert all(torch.equal(*pair) for pair in zip(result["parts"], expected["parts"], strict=True))


def test_models_of_one_architecture_share_their_code(folder: Path):
    for seed in range(2):
        packed(folder, net(seed), f"net{seed}")
    packed(folder, net(2, outputs=7), "other")
    heads = [PackedFolder(folder).head(name) for name in PackedFolder(folder).names()]
    assert [head.name for head in heads] == ["net0", "net1", "other"]
    assert heads[0].code == heads[1].code != heads[2].code
    assert heads[0].weights_sha256 != heads[1].weights_sha256


def mapped(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


def test_closing_unmaps(folder: Path):
    packed(folder, net(0))
    opened = OpenModel(PackedFolder(folder), "one")
    result = answer(opened, X)
    assert mapped(folder) == 1
    opened.close()
    assert mapped(folder) == 0
    assert result.shape == (2, 5)


@pytest.mark.skipif(not opaque.supported(), reason="this PyTorch cannot share packed weights")
def test_packed_for_another_processor(folder: Path):
    packed(folder, net(0))
    assert PackedFolder(folder).head("one").processor == processor_form()
    change_header(folder, processor="Another Processor")
    with pytest.raises(PackedModelError, match=r"'Another Processor'.*pack it again on this machine \(odin pack\)"):
        OpenModel(PackedFolder(folder), "one")
    assert mapped(folder) == 0


def change_header(folder: Path, **fields: object) -> None:
    """Write another header, with its checksum, as who packs elsewhere would."""
    import hashlib

    path = folder / "one.packed"
    data = path.read_bytes()
    magic, version, header_nbytes, code_nbytes, _ = struct.unpack_from("<8sIII32s", data)
    start = struct.calcsize("<8sIII32s")
    header = json.loads(data[start : start + header_nbytes])
    code = data[start + header_nbytes : start + header_nbytes + code_nbytes]
    weights = data[-header["weights_nbytes"] :]
    new = json.dumps(header | fields).encode()
    head = struct.pack("<8sIII32s", magic, version, len(new), len(code), hashlib.sha256(new + code).digest())
    head += new + code
    path.write_bytes(head + bytes(-len(head) % 4096) + weights)


def test_changed_and_damaged_files(folder: Path):
    packed(folder, net(0))
    path = folder / "one.packed"
    good = path.read_bytes()
    for data, problem in (
        (b"", "no packed model"),
        (b"x" * 5000, "no packed model"),
        (good[:8] + b"\x07" + good[9:], "format 7"),
        (good[:80] + b"!" + good[81:], "was changed"),
        (good[:-64], "ends early"),
    ):
        path.write_bytes(data)
        with pytest.raises(PackedModelError, match=problem):
            PackedFolder(folder).head("one")
    path.write_bytes(good[:-100] + b"!" + good[-99:])
    with pytest.raises(PackedModelError, match="weights do not have their checksum"):
        PackedFolder(folder).verify("one")
    path.write_bytes(good)
    PackedFolder(folder).verify("one")
    path.rename(folder / "two.packed")
    with pytest.raises(PackedModelError, match="was packed as 'one'"):
        PackedFolder(folder).head("two")


def test_files_and_folders_that_others_can_write(folder: Path):
    packed(folder, net(0))
    path = folder / "one.packed"
    path.chmod(0o666)
    with pytest.raises(PackedModelError, match=r"can be written by others.*chmod go-w .*one.packed"):
        PackedFolder(folder).head("one")
    path.chmod(0o600)
    folder.chmod(0o777)
    with pytest.raises(PackedModelError, match="can be written by others"):
        PackedFolder(folder)
    folder.chmod(0o700)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(PackedModelError, match=r"one.packed is a link, which is not followed"):
        PackedFolder(folder).head("one")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PackedModelError, match="is no file"):
        PackedFolder(folder).head("one")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("v1 = __import__('os').system('true')", "does not use"),
        ("v1 = f0.__globals__", "no such expression"),
        ("v1 = v0.set_(v0)", "does not call the method 'set_'"),
        ("v1 = v0._make_subclass(v0)", "does not call the method"),
        ("v1 = (lambda: 1)()", "does not call"),
        ("import os", "no such step"),
        ("v1 = [x for x in v0]", "no such expression"),
        ("if not within(v0, f0()): return None", "no such check"),
        ("within = v0", "does not use"),
    ],
)
def test_source_is_read_as_data(line: str, problem: str):
    chain = build_chain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (X[:1],))
    layer = chain.program.layers[0]
    data = layer_to_data(layer)
    limits, bounds = layer.limits, layer.output_bounds
    assert layer_from_data(data, limits=limits, output_bounds=bounds) == layer
    steps = data["source"].splitlines()
    source = "\n".join([*steps[:3], f"        {line}", *steps[3:]]) + "\n"
    with pytest.raises(NotPackableError, match=problem):
        layer_from_data({**data, "source": source}, limits=limits, output_bounds=bounds)


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "torch.load", "torch.from_file", "torch.hub.load", "builtins.eval", "torch.serialization.load",
        "torch.ops.aten.from_file.default", "torch.ops.profiler._record_function_enter.default",
        "operator.methodcaller",
    ],
)  # fmt: skip
def test_functions_that_a_file_may_not_name(name: str):
    chain = build_chain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (X[:1],))
    data = layer_to_data(chain.program.layers[0])
    with pytest.raises(NotPackableError, match=name):
        layer_from_data({**data, "functions": [name]}, limits=(), output_bounds=())


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1


def plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


torch.fx.wrap("plus_one")


class CallsOwn(nn.Module):
    def forward(self, x):
        return plus_one(x)


def test_models_that_cannot_be_packed(folder: Path):
    with pytest.raises(NotPackableError, match=r"plus_one.*serve it by a pipeline"):
        packed(folder, CallsOwn())
    with pytest.raises(ValueError, match="cannot be a packed model's name"):
        packed(folder, net(0), "../out")
    assert list(folder.iterdir()) == []


def test_every_built_in_model_can_be_packed():
    for name in ("mobilenet_v2", "resnet18"):
        source = odin.load_source(name, image_size=64)
        for layer in build_chain(source.torch_model, source.example_args).program.layers:
            layer_to_data(layer)


def test_a_source_brings_its_labels(folder: Path):
    source = dataclasses.replace(odin.load_source(net(0), example_input=X[:1]), labels=tuple("abcde"))
    pack_source(source, folder, name="one")
    head = PackedFolder(folder).head("one")
    assert head.labels == tuple("abcde")
    assert [samples for samples, _ in head.baseline_s] == [1, 2, 4, 8]
    assert head.facts.baseline_of(3) == pytest.approx((head.baseline_s[1][1] + head.baseline_s[2][1]) / 2)


def test_wrong_inputs(folder: Path):
    packed(folder, net(0))
    call = OpenModel(PackedFolder(folder), "one").call
    for inputs, problem in (
        ((), "takes 1 tensors"),
        ((X[:, :2],), r"expected shape \(any, 3, 16, 16\)"),
        ((X.double(),), "expected dtype float32"),
        (("x",), "is a str"),
        ((X[:0],), "leading size >= 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            call.flatten(inputs)


def test_times_alone():
    found = time_alone(build_chain(net(0), (X[:1],)))
    assert list(found) == [1, 2, 4, 8]
    assert all(seconds > 0 for seconds in found.values())


class Scaled(nn.Module):
    """Takes a number, and returns its weight as well, which is no view of what was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x):
        return x * self.weight, self.weight


class Inverse(nn.Module):
    """Fails on zeros, and on ones."""

    def forward(self, x):
        return torch.inverse(x)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(
    ("model", "x"), [(Scaled(), torch.tensor(3.0)), (Inverse(), torch.eye(3)[None] * 2)], ids=["a number", "an inverse"]
)
def test_models_with_inputs_that_are_no_images(folder: Path, model: nn.Module, x: torch.Tensor, portable: bool):
    chain = build_chain(model, (x,), name="one")
    pack_chain(chain, folder, name="one", portable=portable)
    models = Models(PackedFolder(folder), [PackedFile("one", PackedFolder(folder).head("one").code)])
    models.load(0)  # though it fails on the zeros that it is run on once
    outputs, _ = models.run(0, (x,))
    result = OpenModel(PackedFolder(folder), "one").call.unpack(outputs)
    expected = chain(x)
    pairs = zip(result, expected, strict=True) if isinstance(expected, tuple) else [(result, expected)]
    assert all(torch.equal(own, other) for own, other in pairs)
    models.close()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)


class Cholesky(nn.Module):
    def forward(self, x):
        return torch.cholesky(x)


@pytest.mark.parametrize(
    ("model", "x", "problem"),
    [
        (nn.Linear(4, 4), torch.zeros(0, 4), "the example input of one has no samples"),
        (Recurrent(), torch.rand(1, 3, 4), r"calls modules as a whole \(LSTM\)"),
        (Cholesky(), torch.eye(3)[None], r"one cannot be timed: with 1 random samples it raises _LinAlgError"),
    ],
    ids=["no samples", "a module", "it fails"],
)
def test_what_cannot_be_packed_is_said(folder: Path, model: nn.Module, x: torch.Tensor, problem: str):
    with pytest.raises(NotPackableError, match=problem):
        pack_chain(build_chain(model.eval(), (x,), name="one"), folder, name="one")
    assert list(folder.iterdir()) == []


def test_a_file_packed_anew_as_another_model_is_not_run(folder: Path):
    packed(folder, net(0))
    files = PackedFolder(folder)
    code = files.head("one").code
    packed(folder, net(1))  # other weights alone
    OpenModel(files, "one", code=code).close()
    packed(folder, net(0, outputs=7))
    with pytest.raises(PackedModelError, match=r"one.packed was packed anew as another model: .*fleet.refresh\(\)"):
        OpenModel(files, "one", code=code)


def test_two_files_with_the_same_digest_are_the_same(folder: Path):
    packed(folder, net(0))
    digests = [PackedFolder(folder).head("one").digest]
    for seed in (0, 1):
        packed(folder, net(seed))
        digests.append(PackedFolder(folder).head("one").digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_model_that_cannot_be_opened_at_the_start_stops_no_other(folder: Path):
    chain = packed(folder, net(0), name="good")
    (folder / "bad.packed").write_bytes(b"not a model")
    (folder / "bad.packed").chmod(0o600)
    files = PackedFolder(folder)
    models = Models(files, [PackedFile("bad", ""), PackedFile("gone", ""), PackedFile("good", files.head("good").code)])
    models.warm([0, 1, 2])
    models.load(2)
    values, _ = models.run(2, (X[:1].contiguous(memory_format=torch.channels_last),))
    assert torch.equal(values[0], chain(X[:1]))
    models.close()
