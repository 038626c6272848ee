"""``odin record``: what it prints, how it ends, that nothing is left, and how it explains wrong usage."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from loads import a_core, family, left_after, wait_for
from patience import PROMPT_S

from odin.stages.device import DeviceError
from odin_lab.commands import record
from odin_lab.inject.load import LoadError
from odin_lab.inject.named import NAMED
from odin_lab.timings import TimingsError, load_timings, synthetic_timings, write_timings

ON = f"cpu:{a_core()}"

TOY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers).eval(), (torch.zeros(1, 3, 32, 32),)
"""

COMMAND = """
import signal, sys
# A shell without job control starts what runs in its background with Ctrl-C ignored, and so its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
from odin.cli.main import main
status = main(["record", *sys.argv[1:]])
assert "torch" not in sys.modules and "ray" not in sys.modules
sys.exit(status)
"""

FEW = ("toy:make", "--on", ON, "--scenarios", "membw-25,cpu-100", "--rounds", "2", "--passes", "3", "--output", "out")


def run(*words):
    parser = argparse.ArgumentParser()
    record.add_parser(parser.add_subparsers())
    return record.run(parser.parse_args(["record", *words]))


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def lines_of(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def broken_off(folder, words, end):
    """Exit status and messages of a recording that got a signal after its first measurement; nothing of it is left."""
    partial = folder / "out" / "toy-make.partial.jsonl"
    for _ in range(20):
        process = start(folder, *words)
        try:
            ended = process.poll
            wait_for(lambda ended=ended: lines_of(partial) >= 2 or ended() is not None, what="the first measurement")
            children = family(process.pid)
            process.send_signal(end)
            _, err = process.communicate(timeout=PROMPT_S)
        finally:
            process.kill()
            process.wait()
        assert left_after(children) == []
        if process.returncode != 0:
            assert children, err
            return process.returncode, err
        shutil.rmtree(folder / "out")  # a machine so busy that it was done before we saw it begin
    raise AssertionError(err)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_all_that_it_started(folder, end, status):
    ended, err = broken_off(folder, [*FEW, "--passes", "400"], end)
    assert ended == status
    first, *rounds, last = err.splitlines()
    assert first == "toy:make: round 1 of 2 (0% done)"
    assert all(line.startswith("toy:make: round 2 of 2") for line in rounds)  # it may get there before the signal
    assert last == "broken off; the same command goes on from out/toy-make.partial.jsonl"


@pytest.mark.slow
def test_killed_it_leaves_nothing_and_the_same_command_goes_on(folder):
    words = [*FEW, "--passes", "400"]
    assert broken_off(folder, words, signal.SIGKILL)[0] == -signal.SIGKILL
    partial = folder / "out" / "toy-make.partial.jsonl"
    before = json.loads(partial.read_text().splitlines()[1])
    again = start(folder, *words)
    out, err = again.communicate(timeout=PROMPT_S)
    assert again.returncode == 0, err
    assert "written: out/toy-make.csv.gz" in err
    assert not partial.exists()
    table = load_timings(folder / "out" / "toy-make.csv.gz")
    assert table.scenarios == ("cpu-100", "membw-25")  # in one order, however they are asked for
    assert (table.rounds, table.passes, len(table.blocks)) == (2, 400, 12)
    assert table.blocks[0].layer_s == pytest.approx(np.array(before["before"]), rel=1e-2, abs=1e-8)
    assert "toy:make on" in out
    assert "cpu-100" in out


@pytest.mark.slow
def test_what_is_there_is_told_and_not_measured(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run(*FEW) == 0
    out, err = capsys.readouterr()
    assert "round 1 of 2 (0% done)" in err
    assert "round 2 of 2" in err
    assert "2 rounds of 3 passes" in " ".join(out.split())
    before = (folder / "out" / "toy-make.csv.gz").read_bytes()
    assert run(*FEW) == 0
    assert "out/toy-make.csv.gz is there, recorded 20" in capsys.readouterr().err
    assert (folder / "out" / "toy-make.csv.gz").read_bytes() == before
    with pytest.raises(TimingsError, match="passes is 3 there and 4 now"):
        run(*FEW, "--passes", "4")


@pytest.mark.slow
def test_a_model_that_is_none_is_told(folder):
    with pytest.raises(ValueError, match="unknown model 'nonsense'"):
        run("nonsense", "--on", ON, "--output", str(folder / "out"))
    with pytest.raises(LoadError, match="nonsense"):  # a module that is there, without it
        run("json:nonsense", "--on", ON, "--output", str(folder / "out"))
    assert list((folder / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "error", "problem"),
    [
        (("--scenarios", "paper13"), LoadError, "no scenario is named 'paper13'"),
        (("--scenarios", ""), LoadError, "no scenario is named ''"),
        (("--scenarios", "cpu-50,,cpu-25"), LoadError, "no scenario is named ''"),
        (("--scenarios", "cpu-50,cpu-50"), LoadError, "name it once"),
        (("--on", "cpu:9999"), DeviceError, "no usable core 9999"),
        (("--on", "gpu:0"), DeviceError, "loads of cores"),
        (("--on", "rain"), DeviceError, "'rain' is not a device"),
        (("--rounds", "0"), ValueError, "rounds is 0"),
        (("--passes", "-1"), ValueError, "passes is -1"),
        (("toy",), LoadError, "would both be kept in toy"),
        (("to/y", "to-y"), LoadError, r"to/y and to-y would both be kept in to-y\.csv\.gz"),
        (("--output", "/dev/null"), ValueError, "is a file; name a folder"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_measured(tmp_path, monkeypatch, words, error, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=problem):
        run("toy", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_machine_is_found_before_the_first_model_is_measured(tmp_path):
    write_timings(synthetic_timings(3), tmp_path / "second.csv.gz")
    with pytest.raises(TimingsError, match=r"second\.csv\.gz was recorded otherwise: model is synthetic-3 there"):
        run("first", "second", "--on", ON, "--output", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["second.csv.gz"]


def test_paper12_is_all_named_scenarios():
    parser = argparse.ArgumentParser()
    record.add_parser(parser.add_subparsers())
    (settings,) = record._settings(parser.parse_args(["record", "resnet50"]))
    assert settings.scenarios == tuple(NAMED)
    assert (settings.rounds, settings.passes, settings.quick) == (5, None, False)
    (settings,) = record._settings(parser.parse_args(["record", "resnet50", "--quick"]))
    assert (settings.rounds, settings.quick) == (1, True)
