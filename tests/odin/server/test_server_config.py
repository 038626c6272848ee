"""The files that say which models are served, and what is wrong with a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from odin.server.config import Limits, find_models, parse_model, read_model


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_whole_file(tmp_path: Path):
    path = write(
        tmp_path,
        "cats",
        """
        source = "mobilenet_v2"
        weights = "cats.safetensors"
        version = "2026-11"
        stages = ["cpu:0", "cpu:1"]
        deadline_ms = 250
        priority_deadlines_ms = [100, 1000]
        labels = "/somewhere/labels.txt"
        """,
    )
    config = read_model(path)
    assert (config.name, config.version, config.stages) == ("cats", "2026-11", ("cpu:0", "cpu:1"))
    assert config.weights == tmp_path / "cats.safetensors"  # beside the file that names it
    assert config.labels == Path("/somewhere/labels.txt")
    assert (config.deadline_ms, config.priority_deadlines_ms) == (250.0, (100.0, 1000.0))


def test_files_of_models_lie_beside_it_too(tmp_path: Path):
    config = read_model(write(tmp_path, "a", 'source = "sub/a.onnx"'))
    assert config.source == str(tmp_path / "sub/a.onnx")
    assert read_model(write(tmp_path, "b", 'source = "/x/b.pt2"')).source == "/x/b.pt2"
    assert read_model(write(tmp_path, "c", 'source = "timm:resnet18"')).source == "timm:resnet18"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'source' is missing"),
        ('source = "resnet50"\nstage = "cpu:0"', "there is no field 'stage' (did you mean stages?); there are "),
        ('source = "resnet50"\nbatch = 0', "batch = 0: "),
        ('source = "resnet50"\ndeadline_ms = -1', "deadline_ms = -1: "),
        ('source = "resnet50"\nbatch = "four"', "batch = 'four': "),
        ('source = "resnet50"\nversion = "a/b"', "version = 'a/b': "),
        ('source = "resnet50"\nname = "other"', "name = 'other': clients ask for it as 'm', by the file's name"),
        ("source = resnet50", "no TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name_field_and_value(tmp_path: Path, text: str, told: str):
    path = write(tmp_path, "m", text)
    with pytest.raises(ValueError, match=r"m\.toml") as refused:
        read_model(path)
    assert told in str(refused.value)


def test_a_name_that_no_path_can_have_is_refused():
    with pytest.raises(ValueError, match="name = 'a/b'"):
        parse_model({"source": "resnet50"}, name="a/b", folder=Path(), where="here")


def test_stages_may_be_one_text():
    stages = parse_model({"source": "resnet50", "stages": "cpu:0,cpu:1"}, name="m", folder=Path(), where="").stages
    assert stages == ("cpu:0", "cpu:1")


def test_models_of_a_folder(tmp_path: Path):
    for name in ("b", "a", ".hidden"):
        write(tmp_path, name, "")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.toml").mkdir()
    assert [path.stem for path in find_models(tmp_path)] == ["a", "b"]


def test_limits_are_checked():
    assert Limits(request_mib=0.5).request_nbytes == 2**19
    with pytest.raises(ValueError, match="requests"):
        Limits(requests=0)


def test_a_latency_to_keep_is_a_positive_number(tmp_path: Path):
    assert read_model(write(tmp_path, "m", 'source = "resnet18"\nlatency_ms = 250')).latency_ms == 250.0
    with pytest.raises(ValueError, match=r"latency_ms = 0: input should be greater than 0"):
        read_model(write(tmp_path, "n", 'source = "resnet18"\nlatency_ms = 0'))
    with pytest.raises(ValueError, match=r"latency_ms = inf: input should be a finite number"):
        read_model(write(tmp_path, "o", 'source = "resnet18"\nlatency_ms = inf'))


def test_a_model_may_be_planned_with_others_and_held_to_a_share(tmp_path: Path):
    path = write(tmp_path, "dogs", 'source = "resnet50"\npolicy = "together"\nshare = 0.5\n')
    config = read_model(path)
    assert (config.policy, config.share) == ("together", 0.5)
    assert read_model(write(tmp_path, "cats", 'source = "resnet50"\n')).share == 1.0
    for share in ("0.001", "2", '"half"'):
        with pytest.raises(ValueError, match=r"wrong.toml: share = "):
            read_model(write(tmp_path, "wrong", f'source = "resnet50"\nshare = {share}\n'))
