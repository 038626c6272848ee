"""``odin inject``: what it prints and logs, how it ends, and how it explains wrong usage."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

import pytest
from loads import a_core, family, left_after
from patience import PROMPT_S

from odin.monitor.events import LoadChanged, from_json
from odin.stages.device import DeviceError, cpu_model
from odin_lab.commands import inject
from odin_lab.inject.calibration import Calibration, Effect, store_calibration
from odin_lab.inject.load import LoadError

ON = f"cpu:{a_core()}"

COMMAND = """
import signal, sys
# A shell without job control starts what runs in its background with Ctrl-C ignored, and so its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
from odin.cli.main import main
status = main(["inject", *sys.argv[1:]])
assert "torch" not in sys.modules and "ray" not in sys.modules
sys.exit(status)
"""


def run(*words):
    parser = argparse.ArgumentParser()
    inject.add_parser(parser.add_subparsers())
    return inject.run(parser.parse_args(["inject", *words]))


def start(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def without_times(lines):
    """Lines of changes without seconds and process ids."""
    return [" ".join(word for word in line.split()[2:] if not word.rstrip(":").isdigit()) for line in lines]


# ---------------------------------------------------------------- what it does
@pytest.mark.slow
def test_a_line_for_every_change(capsys):
    assert run("cpu", "--on", ON, "--intensity", "0.5", "--threads", "2", "--seconds", "0.2") == 0
    out, err = capsys.readouterr()
    assert without_times(out.splitlines()) == [f"{ON} cpu 50% pid integer arithmetic", f"{ON} cpu 0% pid"]
    assert len(out.splitlines()[0].split("pid ")[1].split(":")[0].split()) == 2
    assert err == ""


@pytest.mark.slow
def test_a_named_scenario_with_a_ramp(capsys):
    assert run("--scenario", "cpu-100x2", "--on", ON, "--seconds", "0.5", "--ramp", "0.1") == 0
    out = capsys.readouterr().out.splitlines()
    assert without_times(out) == [
        f"{ON} cpu-100x2 50% pid integer arithmetic",
        f"{ON} cpu-100x2 100% pid",
        f"{ON} cpu-100x2 50% pid",
        f"{ON} cpu-100x2 0% pid",
    ]


@pytest.mark.slow
def test_records_are_appended_to_a_log(tmp_path, capsys):
    log = tmp_path / "run.jsonl"
    log.write_text('{"event":"other"}\n')
    assert run("cpu", "--on", ON, "--seconds", "0.1", "--log", str(log)) == 0
    other, *lines = log.read_text().splitlines()
    assert other == '{"event":"other"}'
    events = [from_json(line) for line in lines]
    assert [(event.name, event.load, event.on, event.intensity) for event in events] == [
        ("cpu", f"cpu@{ON}", ON, 1.0),
        ("cpu", f"cpu@{ON}", ON, 0.0),
    ]
    assert all(isinstance(event, LoadChanged) and event.pid for event in events)


@pytest.mark.slow
def test_a_scenario_file(tmp_path, capsys):
    path = tmp_path / "some.toml"
    path.write_text(
        f'[[load]]\nscenario="cpu-25"\non="{ON}"\nend_s=0.2\n'
        f'[[load]]\nname="job"\nprogram="sleep 60"\non="{ON}"\nstart_s=0.3\nduration_s=60\n'
    )
    assert run("--scenario", str(path), "--seconds", "0.5") == 0
    out = capsys.readouterr().out.splitlines()
    assert without_times(out) == [
        f"{ON} cpu-25 25% pid integer arithmetic",
        f"{ON} cpu-25 0% pid",
        f"{ON} job 100% pid",
        f"{ON} job 0% pid",
    ]
    times = [float(line.split()[0]) for line in out]
    assert times[0] == 0.0
    assert times == sorted(times)


@pytest.mark.slow
def test_times_begin_with_the_scenarios(tmp_path, capsys):
    """And go on with when loads really changed; that they do in time is tried with a clock of its own."""
    path = tmp_path / "some.toml"
    path.write_text(f'[[load]]\nkind="cpu"\non="{ON}"\nstart_s=0.25\nend_s=0.35\n')
    assert run("--scenario", str(path)) == 0
    begin, end = (float(line.split()[0]) for line in capsys.readouterr().out.splitlines())
    assert begin == 0.25
    assert end > begin


@pytest.mark.slow
def test_a_program_that_ends_by_itself_ends_the_command(capsys):
    assert run("--program", "true", "--on", ON) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"true on {ON} ended by itself"
    assert err == ""


@pytest.mark.slow
def test_a_program_that_fails_is_told(capsys):
    assert run("--program", "sh -c 'echo no disk >&2; exit 4'", "--on", ON) == 1
    assert capsys.readouterr().err.endswith("sh ended with status 4: no disk\n")


@pytest.mark.slow
def test_a_load_that_does_not_start_is_told(capsys):
    assert run("gpu", "--on", "gpu:4000", "--seconds", "1") == 1
    assert "there is no gpu:4000" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_it_and_its_loads(tmp_path, number, status):
    log = tmp_path / "run.jsonl"
    with start("cpu", "--on", ON, "--log", str(log)) as process:
        assert process.stdout.readline()
        below = family(process.pid)
        assert len(below) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=PROMPT_S)
    assert process.returncode == status
    assert left_after(below) == []
    assert err == ""
    intensities = [from_json(line).intensity for line in log.read_text().splitlines()]
    assert intensities == ([1.0] if number == signal.SIGKILL else [1.0, 0.0])
    assert len(out.splitlines()) == len(intensities) - 1


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_all_and_the_end_is_in_order(tmp_path):
    """A terminal signals the whole group; the loads are not in it, so their end is told as usual."""
    with start("--program", "sleep 600", "--on", ON, start_new_session=True) as process:
        assert process.stdout.readline()
        below = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PROMPT_S)
    assert process.returncode == 130
    assert without_times(out.splitlines()) == [f"{ON} sleep 0% pid"]
    assert err == ""
    assert left_after(below) == []


@pytest.mark.slow
def test_it_goes_on_when_nobody_reads():
    with start("cpu", "--on", ON, "--seconds", "0.5") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PROMPT_S) == 0
        assert process.stderr.read() == ""


# ---------------------------------------------------------------- wrong usage
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing does yet"),
        ("cpu --program ls --on cpu:0", "not by kind and program together"),
        ("cpu", "say where: --on cpu:1"),
        ("--scenario cpu-50", "say where"),
        ("cpu --on cpu:0 --intensity 1.5", "intensity 1.5 is not within 0 to 1"),
        ("cpu --on cpu:0 --intensity -1", "intensity -1 is not within 0 to 1"),
        ("cpu --on cpu:0 --intensity 0", "--intensity 0 is no load"),
        ("cpu --on cpu:0 --threads 0", "--threads 0 is not at least 1"),
        ("cpu --on cpu:0 --seconds 0", "--seconds 0 is not a positive number"),
        ("cpu --on cpu:0 --seconds nan", "--seconds nan is not a positive number"),
        ("cpu --on cpu:0 --seconds 1 --ramp 1", "too short to rise and fall"),
        ("cpu --on cpu:0 --period 0", "a period of 0 s"),
        ("cpu --on cpu:0 --load copy", "--load copy is for a GPU"),
        ("cpu --on cpu:0 --seed 1", "--seed means nothing with a kind"),
        ("cpu --on gpu:0", "does not run on gpu:0; kind 'gpu' does"),
        ("--program ls --on cpu:0 --intensity 0.5", "--intensity means nothing with --program"),
        ("--program nosuchprogram --on cpu:0", "no program 'nosuchprogram'"),
        ("--scenario cpu-10 --on cpu:0", "did you mean 'cpu-100'"),
        ("--scenario cpu-50 --on cpu:0 --threads 2", "--threads means nothing with a named scenario"),
        ("--scenario nothing.toml", "cannot read the scenario nothing.toml"),
        ("--scenario nothing.toml --on cpu:0", "--on means nothing with a scenario file"),
        ("--list --quick", "--quick means nothing with --list"),
        ("--calibrate --on cpu:0 cpu:1", "2 devices to calibrate on: name one"),
        ("cpu --on cpu:0 --log /no/such/folder/x", "cannot write to the log /no/such/folder/x: No such file"),
    ],
)
def test_wrong_usage_is_explained(words, message):
    with pytest.raises(LoadError if "log" not in words else ValueError, match=message):
        run(*words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cpu --on cpu:9999", "there is no usable core 9999"),
        ("cpu --on core1", "'core1' is not a device: write cpu:3"),
        ("cpu --on edge7/cpu:1", "edge7/cpu:1 is on another node, .*: run it there"),
        ("--calibrate --on gpu:0", "gpu:0: the named scenarios are loads of cores"),
    ],
)
def test_wrong_devices_are_explained(words, message):
    with pytest.raises(DeviceError, match=message):
        run(*words.split())


# ---------------------------------------------------------------- the named ones
def test_the_list_says_how_to_calibrate(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path))
    assert run("--list") == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + 12 + 1
    assert out[4].split() == ["cpu-100", "cpu", "100%", "1"]
    assert out[-1] == "not calibrated on this kind of processor: odin inject --calibrate --on cpu:1"


def test_the_list_shows_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path))
    effects = (Effect("cpu-100", 2.0, 1.875, 2.25, (2.0, 2.0)),)
    for model, processor in (("resnet50", cpu_model()), ("vgg16", cpu_model()), ("resnet18", "another")):
        store_calibration(
            Calibration(model, ON, processor, "Linux", "2026-01-01", "2.6", 5, 4, 0.125, ("a", "b"), effects)
        )
    assert run("--list") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[4].split() == ["cpu-100", "cpu", "100%", "1", *["2.00", "(1.88", "to", "2.25)"] * 2]
    assert out[5].split() == ["cpu-100x2", "cpu", "100%", "2", "-", "-"]
    assert [line.split(":")[0] for line in out[13:]] == ["resnet50", "vgg16"]
    assert "alone (125 ms), median (and quartiles) of 20 passes" in out[13]
    assert run("--list", "--model", "vgg16") == 0
    assert "resnet50" not in capsys.readouterr().out
