"""``odin pack``."""

from __future__ import annotations

import json

import pytest

from odin.cli.main import main
from odin.fleet.packed import PackedFolder


def test_a_model_is_packed_and_verified(tmp_path, capsys):
    folder = tmp_path / "models"
    assert main(["pack", "mobilenet_v2", "--image-size", "32", "--into", str(folder), "--name", "small", "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert told["name"] == "small"
    assert list(told["baseline_s"]) == ["1", "2", "4", "8"]
    assert "random weights" in said.err
    head = PackedFolder(folder).head("small")
    assert (head.random_weights, head.inputs[0].shape) == (True, (1, 3, 32, 32))
    assert head.preprocess is not None
    assert head.preprocess["crop"] == [32, 32]
    assert main(["pack", "--verify", "--into", str(folder)]) == 0
    assert capsys.readouterr().out == "1 packed models are as they were packed, 0 are not\n"
    path = folder / "small.packed"
    data = path.read_bytes()
    path.write_bytes(data[:-200] + b"?" + data[-199:])
    assert main(["pack", "--verify", "--into", str(folder)]) == 1
    assert "small.packed: its weights do not have their checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "name the MODEL"),
        (["resnet18", "--verify"], "--verify checks all models of the folder: leave out 'resnet18'"),
        (["nothing_known"], "nothing_known"),
    ],
)
def test_wrong_usage(words, problem, tmp_path, capsys):
    assert main(["pack", *words, "--into", str(tmp_path / "models")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
