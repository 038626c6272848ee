"""Calibration: how it is measured, and how it is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest
from loads import a_core, alive, family

from odin.stages.device import Device, DeviceError, cpu_model
from odin_lab.inject.calibrate import calibrate, measure_effects
from odin_lab.inject.calibration import Calibration, Effect, calibration_path, load_calibrations, store_calibration
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load, LoadError, LoadFailedError
from odin_lab.inject.measure import Reference, measure_load
from odin_lab.inject.named import named_load
from odin_lab.inject.sizes import buffer_nbytes

CPU1 = Device("cpu", (1,))
SLOWDOWN = {"cpu-50": (2.0, 3.0), "membw-100": (2.0, 6.0)}


class FakeWorld:
    """A model of two layers whose passes take as long as the load that is there says, and who starts loads."""

    pids = ()

    def __init__(self, *, dies=()):
        self.now, self.noted, self.dies, self.drift, self.stopped = "", [], dies, 1.0, 0

    # the model
    def run(self, count):
        self.noted.append((self.now, count))
        first, second = SLOWDOWN.get(self.now, (1.0, 1.0))
        return [[first * self.drift * (1 + 0.5 * (number % 2)), second * self.drift] for number in range(count)]

    # the loads
    def start(self, load, *, name="", idle=False):
        assert idle
        self.drift *= 2  # the machine grows slower and slower
        self.name, self.running, self.ended, self.now, self.load = name, True, "process 1 was killed", "", load
        return self

    def set_intensity(self, intensity):
        self.now = self.name if intensity else ""
        self.running = self.name not in self.dies

    def stop(self):
        self.now = ""
        self.stopped += 1


def test_each_load_is_compared_with_the_time_just_before_it():
    world, told = FakeWorld(), []
    effects, alone_s = measure_effects(
        world, world, CPU1, ["cpu-50", "membw-100"], rounds=2, passes=4, notify=lambda *what: told.append(what)
    )
    # alone 2 or 2.5, median 2.25; disturbed 2 + 3 or 3 + 3, and 2 + 6 or 3 + 6; layers alone 1.25 and 1
    assert effects[0].name == "cpu-50"
    assert effects[0].slowdown == pytest.approx(5.5 / 2.25)
    assert (effects[0].low, effects[0].high) == pytest.approx((5 / 2.25, 6 / 2.25))
    assert effects[0].layer_slowdown == pytest.approx((2.5 / 1.25, 3.0))
    assert effects[1].slowdown == pytest.approx(8.5 / 2.25)
    assert effects[1].layer_slowdown == pytest.approx((2.0, 6.0))
    assert alone_s == pytest.approx((2.25 * 4 + 2.25 * 8) / 2, rel=0.3)
    assert [(done, total) for _, done, total in told] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert sorted(name for name, _, _ in told) == ["cpu-50", "cpu-50", "membw-100", "membw-100"]
    # two passes to settle, alone, two to settle, under load
    assert world.noted[:4] == [("", 2), ("", 4), (told[0][0], 2), (told[0][0], 4)]


def test_a_load_that_dies_is_no_measurement():
    world = FakeWorld(dies=("cpu-50",))
    with pytest.raises(LoadFailedError, match=r"cpu@cpu:1\*0\.5: process 1 was killed"):
        measure_effects(world, world, CPU1, ["cpu-50"], rounds=1, passes=3)
    assert world.stopped == 1


@pytest.mark.parametrize("name", ["cpu-50", "membw-100"])
def test_passes_alone_may_follow(name):
    world = FakeWorld()
    found = measure_load(world, world, named_load(name, CPU1), name=name, alone=3, loaded=5, after=2, settle=1)
    assert world.noted == [("", 1), ("", 3), (name, 1), (name, 5), ("", 1), ("", 2)]
    assert [len(passes) for passes in found] == [3, 5, 2]
    assert found.loaded[0] == [2.0 * SLOWDOWN[name][0], 2.0 * SLOWDOWN[name][1]]
    assert found.after[0] == [2.0, 2.0]
    assert world.stopped == 1


@pytest.mark.slow
def test_arrays_are_there_before_anything_is_measured():
    seen = []
    with Injector() as injector:

        class Looks:
            def run(self, count):
                (handle,) = injector.handles
                seen.append((handle.intensity, psutil.Process(handle.pids[0]).memory_info().rss))
                return [[1.0]] * count

        load = Load("membw", Device("cpu", (a_core(),)), 0.25)
        measure_load(Looks(), injector, load, name="m", alone=1, loaded=1)
    assert [intensity for intensity, _ in seen] == [0.0, 0.0, 0.25, 0.25]
    assert seen[0][1] >= 0.9 * buffer_nbytes(load)
    assert seen[3][1] <= 1.1 * seen[0][1]


# ---------------------------------------------------------------- keeping
def calibration(model="resnet50", created="2026-01-01T00:00:00+00:00", processor="Some CPU"):
    effects = (Effect("cpu-50", 1.5, 1.25, 1.75, (1.0, 2.0)), Effect("cpu-100", 2.0, 1.9, 2.1, (2.0, 2.0)))
    return Calibration(model, "cpu:1", processor, "Linux 6", created, "2.6", 5, 12, 0.12, ("a", "b"), effects)


def test_a_calibration_is_read_back(tmp_path):
    path = store_calibration(calibration(), directory=tmp_path)
    assert path.parent == tmp_path
    assert load_calibrations("Some CPU", directory=tmp_path) == (calibration(),)
    assert load_calibrations("Another CPU", directory=tmp_path) == ()
    assert calibration().effect("cpu-100").slowdown == 2.0
    assert calibration().effect("membw-50") is None


def test_the_latest_comes_first_and_replaces_the_one_before(tmp_path):
    for model, created in (("resnet50", "2026-01-01"), ("torchvision:vgg16", "2026-01-03"), ("resnet50", "2026-01-02")):
        store_calibration(calibration(model, created), directory=tmp_path)
    found = load_calibrations("Some CPU", directory=tmp_path)
    assert [(item.model, item.created) for item in found] == [
        ("torchvision:vgg16", "2026-01-03"),
        ("resnet50", "2026-01-02"),
    ]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"format":"odin-inject-calibration","version":2}'],
)
def test_other_files_are_passed_over(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    assert load_calibrations("Some CPU", directory=tmp_path) == ()


def test_damaged_values_are_passed_over(tmp_path):
    path = store_calibration(calibration(), directory=tmp_path)
    values = json.loads(path.read_text())
    values["effects"][0]["slowdown"] = -1.0
    path.write_text(json.dumps(values))
    assert load_calibrations("Some CPU", directory=tmp_path) == ()


def test_it_lies_beside_the_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("ODIN_CACHE_DIR", str(tmp_path))
    path = calibration_path("torchvision:vgg16", "Some CPU")
    assert path.parent == tmp_path / "inject"
    assert path.name.startswith("torchvision-vgg16-")


# ---------------------------------------------------------------- for real
@pytest.fixture
def in_tests(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2] / "helpers")  # where bench_models lies


@pytest.mark.slow
def test_a_small_model_is_calibrated(in_tests):
    device = Device("cpu", (a_core(),))
    found = calibrate("bench_models:residual", device, quick=True, names=["cpu-100", "membw-25"])
    assert [effect.name for effect in found.effects] == ["cpu-100", "membw-25"]
    assert (found.cpu_model, found.device, found.rounds) == (cpu_model(), str(device), 1)
    assert all(len(effect.layer_slowdown) == len(found.layers) for effect in found.effects)
    assert all(0 < effect.low <= effect.slowdown <= effect.high for effect in found.effects)
    assert found.alone_s > 0


@pytest.mark.slow
def test_an_unknown_model_is_told():
    with pytest.raises(LoadError, match="nonsense"):
        Reference("nonsense", Device("cpu", (a_core(),)))


@pytest.mark.slow
def test_a_fine_chain_has_more_layers_of_the_same_model_and_a_reference_that_dies_is_told_and_none_is_left(in_tests):
    device = Device("cpu", (a_core(),))
    before = set(family(os.getpid()))
    with Reference("bench_models:deep", device) as coarse:
        (pid,) = set(family(os.getpid())) - before
        with Reference("bench_models:deep", device, fine=True) as fine:
            assert len(fine.layers) > len(coarse.layers)
            assert sum(fine.intensity) > 0
            assert (fine.cut_nbytes[0], fine.cut_nbytes[-1]) == (coarse.cut_nbytes[0], coarse.cut_nbytes[-1])
            assert len(fine.run(1)[0]) == len(fine.layers)
        (seconds,) = coarse.run(1)
        assert len(seconds) == len(coarse.layers)
        os.kill(pid, 9)
        with pytest.raises(LoadFailedError, match="the process that runs the model"):
            coarse.run(1)
    assert alive(set(family(os.getpid())) - before) == []
    assert alive([pid]) == []


@pytest.mark.slow
def test_wrong_devices_are_refused_before_anything_is_loaded():
    with pytest.raises(DeviceError, match="the named scenarios are loads of cores"):
        calibrate("resnet50", Device("gpu", (0,)))
    with pytest.raises(DeviceError, match="no usable core 9999"):
        calibrate("resnet50", Device("cpu", (9999,)))
