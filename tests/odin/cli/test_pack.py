"""``odin pack``."""

from __future__ import annotations

import errno
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


def test_what_cannot_be_written_is_said_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("odin.models.sources.load_source", lambda *args, **options: pytest.fail("it was loaded"))
    file, shared = tmp_path / "file", tmp_path / "shared"
    file.write_text("")
    shared.mkdir()
    shared.chmod(0o777)
    for words, problem in (
        (["--into", str(file)], "is a file; name a folder"),
        (["--into", str(file / "in")], "is a file; name a folder"),
        (["--into", str(shared)], "can be written by others"),
        (["--into", str(tmp_path / "new"), "--name", "../up"], "'../up' cannot be a packed model's name"),
    ):
        assert main(["pack", "resnet18", *words]) == 2
        assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "models"
    words = ["pack", "mobilenet_v2", "--image-size", "32", "--into", str(folder), "--name", "small"]
    assert main(words) == 0
    before = (folder / "small.packed").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fdatasync", full)
    assert main(words) == 1
    assert "small.packed: No space left on device" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["small.packed"]
    assert (folder / "small.packed").read_bytes() == before
