"""Recording: what is measured in which order, and that it goes on where it was broken off."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from loads import a_core

from odin.partitioner.transfer import TransferCost
from odin.stages.device import Device, DeviceError
from odin_lab.inject.load import LoadError, LoadFailedError
from odin_lab.inject.measure import Compared
from odin_lab.timings import TimingsError, load_timings
from odin_lab.timings.partial import Measured, Partial
from odin_lab.timings.recorder import Settings, find_recorded, partial_path, record, schedule

CORE = Device("cpu", (a_core(),))
SETTINGS = Settings("toy", CORE, ("cpu-50", "cpu-100"), rounds=3, passes=4)
SLOWDOWN = {"cpu-50": 2.0, "cpu-100": 3.0, "membw-25": 1.5}
TRANSFER = TransferCost(100e-6, 1e-9)


class World:
    """A model of two layers, and who starts loads beside it; breaks after some measurements if told to."""

    layers = ("first", "second")
    torch_version = "2.6"
    fingerprint = "abc"
    intensity = (10.0, 20.0)
    cut_nbytes = (1000, 2000, 3000)
    pids = ()

    def __init__(self, *, alone_s=0.2, breaks_after=None, error=KeyboardInterrupt):
        self.alone_s, self.breaks_after, self.error = alone_s, breaks_after, error
        self.now, self.started, self.counts, self.running = "", [], [], True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.now = ""

    def run(self, count):
        self.counts.append((self.now, count))
        factor = SLOWDOWN.get(self.now, 1.0)
        return [[self.alone_s * 0.25 * factor, self.alone_s * 0.75 * factor] for _ in range(count)]

    def start(self, load, *, name="", idle=False):
        if len(self.started) == self.breaks_after:
            raise self.error(f"{name} is broken off")
        self.started.append(name)
        self.name, self.load = name, load
        return self

    def set_intensity(self, intensity):
        self.now = self.name if intensity else ""

    def stop(self):
        self.now = ""


def measure(world, folder, settings=SETTINGS, **options):
    return record(
        settings,
        folder,
        start_model=lambda settings: world,
        start_loads=lambda: nullcontext(world),
        transfer=lambda: TRANSFER,
        **options,
    )


ORDER = [step.scenario for step in schedule(SETTINGS.scenarios, 3, 0)]


# ---------------------------------------------------------------- what is measured
def test_the_table_says_what_was_measured(tmp_path):
    measure(World(), tmp_path)
    table = load_timings(tmp_path / "toy.csv.gz")
    assert (table.model, table.device, table.layers) == ("toy", str(CORE), ("first", "second"))
    assert (table.rounds, table.passes, table.passes_alone, table.quick) == (3, 4, 3, False)
    assert table.loads == (f"cpu@{CORE}*0.5", f"cpu@{CORE}")
    assert table.slowdown("cpu-50").tolist() == pytest.approx([2.0, 2.0])
    assert table.round_slowdowns("cpu-100").tolist() == pytest.approx([3.0] * 3)
    assert table.baseline_s().tolist() == pytest.approx([0.05, 0.15])
    assert table.send_s.tolist() == pytest.approx([51e-6, 52e-6, 53e-6])
    assert table.receive_s.tolist() == pytest.approx([50e-6] * 3)
    assert table.intensity.tolist() == [10.0, 20.0]
    assert [block.scenario for block in table.blocks[1::3]] == ORDER
    assert {block.scenario for block in (*table.blocks[::3], *table.blocks[2::3])} == {"alone"}
    assert [path.name for path in tmp_path.iterdir()] == ["toy.csv.gz"]


def test_passes_of_each_measurement(tmp_path):
    world = World()
    measure(world, tmp_path, replace(SETTINGS, rounds=1))
    first = ORDER[0]
    # two to warm up, three to see how long one takes; then settle, alone, settle, under load, settle, alone
    expected = [("", 2), ("", 3), ("", 1), ("", 3), (first, 1), (first, 4), ("", 1), ("", 3)]
    assert world.counts[: len(expected)] == expected


@pytest.mark.parametrize(
    ("alone_s", "quick", "passes", "alone"),
    [(0.27, False, 4, 3), (0.08, False, 12, 6), (0.012, False, 60, 30), (5.0, False, 3, 3), (0.012, True, 21, 11)],
)
def test_a_second_of_passes_in_each_measurement(tmp_path, alone_s, quick, passes, alone):
    settings = replace(SETTINGS, passes=None, rounds=1, quick=quick)
    table = measure(World(alone_s=alone_s), tmp_path, settings)
    assert (table.passes, table.passes_alone) == (passes, alone)


def test_every_round_has_all_scenarios_in_an_order_of_its_own():
    names = tuple("abcdefghijkl")
    steps = schedule(names, 5, 0)
    rounds = [[step.scenario for step in steps if step.round == number] for number in range(5)]
    assert all(sorted(found) == list(names) for found in rounds)
    assert len(set(map(tuple, rounds))) == 5
    assert steps == schedule(names, 5, 0)
    assert steps != schedule(names, 5, 1)
    assert steps[:24] == schedule(names, 2, 0)


def test_progress_is_told_before_each_measurement(tmp_path):
    told = []
    measure(World(), tmp_path, notify=told.append)
    assert [progress.step for progress in told] == list(schedule(SETTINGS.scenarios, 3, 0))
    assert told[0].done == 0
    assert told[-1].done + told[-1].step.weight == told[0].total


# ---------------------------------------------------------------- broken off
@pytest.mark.parametrize("after", range(6))
def test_it_goes_on_where_it_was_broken_off(tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        measure(World(breaks_after=after), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.partial.jsonl"]
    world, told = World(alone_s=0.1), []
    table = measure(world, tmp_path, notify=told.append)
    assert world.started == ORDER[after:]
    assert told[0].done == sum(step.weight for step in schedule(SETTINGS.scenarios, 3, 0)[:after])
    assert [block.scenario for block in table.blocks[1::3]] == ORDER
    assert [block.layer_s[0].sum() for block in table.blocks[::3]] == pytest.approx([0.2] * after + [0.1] * (6 - after))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.csv.gz"]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_line_that_was_being_written_is_measured_again(tmp_path, keep):
    with pytest.raises(KeyboardInterrupt):
        measure(World(breaks_after=3), tmp_path)
    path = partial_path(tmp_path, "toy")
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[: int(len(last) * keep)])
    world = World()
    table = measure(world, tmp_path)
    assert world.started == ORDER[2:]
    assert [block.scenario for block in table.blocks[1::3]] == ORDER


def test_a_first_line_that_was_being_written_is_begun_anew(tmp_path):
    partial_path(tmp_path, "toy").write_bytes(b'{"format": "odin-tim')
    world = World()
    measure(world, tmp_path)
    assert world.started == ORDER


def test_a_load_that_dies_keeps_what_was_measured(tmp_path):
    with pytest.raises(LoadFailedError):
        measure(World(breaks_after=2, error=LoadFailedError), tmp_path)
    world = World()
    measure(world, tmp_path)
    assert world.started == ORDER[2:]


def test_nothing_is_left_if_nothing_was_measured(tmp_path):
    def no_model(settings):
        raise LoadError(f"no model {settings.model}")

    with pytest.raises(LoadError, match="no model toy"):
        record(SETTINGS, tmp_path / "new", start_model=no_model)
    assert list((tmp_path / "new").iterdir()) == []


def test_fine_tables_have_a_name_of_their_own(tmp_path):
    measure(World(), tmp_path)
    measure(World(), tmp_path, replace(SETTINGS, fine=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy-fine.csv.gz", "toy.csv.gz"]
    assert load_timings(tmp_path / "toy-fine.csv.gz").model == "toy-fine"


def test_a_finished_table_is_not_measured_again(tmp_path):
    first = measure(World(), tmp_path)
    world = World(alone_s=0.4)
    assert measure(world, tmp_path).alone_s == pytest.approx(first.alone_s)
    assert world.counts == []
    assert measure(world, tmp_path, restart=True).alone_s == pytest.approx(0.4)
    assert load_timings(tmp_path / "toy.csv.gz").alone_s == pytest.approx(0.4)


OTHERWISE = [
    ({"rounds": 4}, "rounds is 3 there and 4 now"),
    ({"seed": 1}, "seed is 0 there and 1 now"),
    ({"passes": 5}, "is 4 there and 5 now"),
    ({"quick": True}, "quick is False there and True now"),
    ({"scenarios": ("cpu-50", "membw-25")}, "scenarios is cpu-50,cpu-100 there and cpu-50,membw-25 now"),
]


@pytest.mark.parametrize(("values", "problem"), OTHERWISE)
@pytest.mark.parametrize("breaks_after", [1, None])
def test_other_settings_are_refused_before_a_model_is_loaded(tmp_path, values, problem, breaks_after):
    with pytest.raises(KeyboardInterrupt) if breaks_after else nullcontext():
        measure(World(breaks_after=breaks_after), tmp_path)
    world = World()
    with pytest.raises(TimingsError, match=rf"{problem}. Give the same settings .* or measure anew with --restart"):
        measure(world, tmp_path, replace(SETTINGS, **values))
    assert world.counts == []
    table = measure(world, tmp_path, replace(SETTINGS, **values), restart=True)
    assert len(table.blocks) == 3 * 2 * table.rounds


@pytest.mark.parametrize("breaks_after", [1, None])
def test_another_machine_is_refused(tmp_path, monkeypatch, breaks_after):
    with pytest.raises(KeyboardInterrupt) if breaks_after else nullcontext():
        measure(World(breaks_after=breaks_after), tmp_path)
    monkeypatch.setattr("odin_lab.timings.recorder.cpu_model", lambda: "Another CPU")
    with pytest.raises(TimingsError, match=r"cpu_model is .* there and Another CPU now"):
        measure(World(), tmp_path)


def test_other_layers_and_another_torch_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(World(breaks_after=1), tmp_path)
    world = World()
    world.fingerprint = "xyz"
    with pytest.raises(TimingsError, match="the model has other layers now"):
        measure(world, tmp_path)
    world = World()
    world.torch_version = "2.7"
    with pytest.raises(TimingsError, match=r"torch_version is 2\.6 there and 2\.7 now"):
        measure(world, tmp_path)
    assert len(partial_path(tmp_path, "toy").read_text().splitlines()) == 2  # it was not touched


def test_something_else_in_the_file_is_told_and_left_alone(tmp_path):
    path = partial_path(tmp_path, "toy")
    for content in ("my notes", "my notes\n", '{"format": "x", "version": 1}\n', "[]\n", '{"format": 1'):
        path.write_text(content)
        if content.endswith("\n") or not content.startswith('{"format"'):
            with pytest.raises(TimingsError, match="is no recording that can be gone on with"):
                measure(World(), tmp_path)
            assert path.read_text() == content
    (tmp_path / "toy.csv.gz").write_text("my notes")
    with pytest.raises(TimingsError, match="is no timing table"):
        find_recorded(SETTINGS, tmp_path)


def test_two_recordings_of_one_file_are_refused(tmp_path):
    path = partial_path(tmp_path, "toy")
    with Partial(path) as partial:
        partial.begin({"a": 1})
        with pytest.raises(TimingsError, match="is being written by another 'odin record'"):
            measure(World(), tmp_path)
        partial.add(Measured(0, "cpu-50", Compared([[1.0]], [[2.0]], [[1.0]])))
    assert json.loads(path.read_text().splitlines()[1])["loaded"] == [[2.0]]
    with Partial(path) as partial:
        assert partial.header == {"a": 1}
        assert partial.measured == [Measured(0, "cpu-50", Compared([[1.0]], [[2.0]], [[1.0]]))]


def test_times_are_kept_to_the_nanosecond(tmp_path):
    path = partial_path(tmp_path, "toy")
    with Partial(path) as partial:
        partial.begin({})
        partial.add(Measured(0, "cpu-50", Compared([[1.23456789012]], [[2e-7]], [])))
    with Partial(path) as partial:
        assert partial.measured[0].passes == Compared([[1.234567890]], [[2e-7]], [])


# ---------------------------------------------------------------- wrong settings
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rounds": 0}, "rounds is 0; measure at least 1"),
        ({"passes": 2}, "passes is 2; a median takes at least 3"),
        ({"scenarios": ()}, "no scenario to measure; there is cpu-25, cpu-50"),
        ({"scenarios": ("cpu-5",)}, "no scenario is named 'cpu-5'"),
        ({"scenarios": ("cpu-50", "cpu-50")}, "cpu-50 is named 2 times"),
        ({"device": Device("cpu", (9999,))}, "no usable core 9999"),
        ({"device": Device("gpu", (0,))}, "the named scenarios are loads of cores"),
        ({"device": Device("cpu", (0,), "edge")}, "is on another node"),
    ],
)
def test_wrong_settings_are_told(values, problem):
    with pytest.raises((ValueError, DeviceError), match=problem):
        replace(SETTINGS, **values)


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TimingsError, match=r"cannot write .*; choose another --output"):
        measure(World(), tmp_path / "file" / "folder")


def test_medians_within_rounds_are_robust_to_the_machines_drift(tmp_path):
    class Drifting(World):
        def run(self, count):
            self.alone_s *= 1.01
            return super().run(count)

    table = measure(Drifting(), tmp_path)
    assert table.passes_s().sum(axis=1).max() > 1.3 * table.passes_s().sum(axis=1).min()
    assert table.round_slowdowns("cpu-50") == pytest.approx([2.0] * 3, rel=0.002)
    assert np.abs(table.slowdown("cpu-100") - 3.0).max() < 0.003
