"""Scenarios: their changes over time, the random ones, their files, and how they are played."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from odin.stages.device import Device, DeviceError, usable_cores
from odin_lab.inject.load import Load, LoadError
from odin_lab.inject.play import play
from odin_lab.inject.scenario import Change, Scenario, Step

CPU0, CPU1 = Device("cpu", (0,)), Device("cpu", (1,))
HERE = Device("cpu", usable_cores()[:1])
EXAMPLE = Path(__file__).parents[3] / "examples" / "interference.toml"


# ---------------------------------------------------------------- steps
def test_a_step_begins_and_ends():
    assert Step(Load("cpu", CPU1, 0.5), 2.0, 5.0).levels() == ((2.0, 0.5), (5.0, 0.0))
    assert Step(Load("cpu", CPU1, 0.5), 2.0).levels() == ((2.0, 0.5),)


def test_a_ramp_rises_and_falls_in_levels():
    levels = Step(Load("cpu", CPU1), 1.0, 3.0, ramp_s=0.2).levels()
    times, intensities = zip(*levels, strict=True)
    assert intensities == pytest.approx((0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0))
    assert times == pytest.approx((1.0, 1 + 0.2 / 3, 1 + 0.4 / 3, 1.2, 2.8, 2.8 + 0.2 / 3, 2.8 + 0.4 / 3, 3.0))


def test_a_long_ramp_has_levels_of_a_twentieth():
    levels = Step(Load("cpu", CPU1, 0.5), ramp_s=190.0).levels()
    assert [at_s for at_s, _ in levels] == pytest.approx([10.0 * i for i in range(20)])
    assert [intensity for _, intensity in levels] == pytest.approx([0.025 * (i + 1) for i in range(20)])


def test_ramps_may_meet():
    levels = Step(Load("cpu", CPU1), 0.0, 2.0, ramp_s=1.0).levels()
    assert [at_s for at_s, _ in levels] == sorted({at_s for at_s, _ in levels})
    assert max(intensity for _, intensity in levels) == 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step(Load("cpu", CPU1), -1.0), "starts at -1 s"),
        (lambda: Step(Load("cpu", CPU1), math.nan), "starts at nan s"),
        (lambda: Step(Load("cpu", CPU1), math.inf), "starts at inf s"),
        (lambda: Step(Load("cpu", CPU1), 2.0, 2.0), "ends at 2 s, not after its start at 2 s"),
        (lambda: Step(Load("cpu", CPU1), 2.0, math.nan), "ends at nan s"),
        (lambda: Step(Load("cpu", CPU1), 0.0, 10.0, ramp_s=6.0), "too short to rise and fall over 6 s each"),
        (lambda: Step(Load("cpu", CPU1), ramp_s=-1.0), "a ramp of -1 s"),
        (lambda: Step(Load("program", CPU1, program="ls"), ramp_s=1.0), "leave the ramp out"),
        (lambda: Scenario(()), "at least one load"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(LoadError, match=message):
        make()


# ---------------------------------------------------------------- scenarios
def test_changes_are_in_order_and_falls_come_first():
    scenario = Scenario(
        (
            Step(Load("cpu", CPU1), 5.0, 9.0),
            Step(Load("cpu", CPU0, 0.5), 0.0, 5.0),
            Step(Load("membw", CPU1), 5.0),
        )
    )
    assert [str(step.load) for step in scenario.steps] == ["cpu@cpu:0*0.5", "cpu@cpu:1", "membw@cpu:1"]
    assert scenario.changes() == (
        Change(0.0, 0, 0.5),
        Change(5.0, 0, 0.0),
        Change(5.0, 1, 1.0),
        Change(5.0, 2, 1.0),
        Change(9.0, 1, 0.0),
    )
    assert scenario.end_s == math.inf
    assert scenario.devices == (CPU0, CPU1)


def test_what_is_there_at_a_time():
    scenario = Scenario((Step(Load("cpu", CPU1), 1.0, 3.0), Step(Load("membw", CPU0), 2.0, 40.0, ramp_s=19.0)))
    assert scenario.loads_at(0.999) == ()
    assert scenario.loads_at(1.0) == (Load("cpu", CPU1),)
    assert scenario.loads_at(2.5) == (Load("cpu", CPU1), Load("membw", CPU0, 0.05))
    assert scenario.loads_at(3.0) == (Load("membw", CPU0, 0.1),)
    assert scenario.loads_at(40.0) == ()


def test_a_scenario_can_be_broken_off():
    steps = (Step(Load("cpu", CPU1), 1.0), Step(Load("cpu", CPU0), 2.0, 3.0), Step(Load("cpu", CPU0), 9.0))
    assert Scenario(steps).until(4.0).steps == (Step(Load("cpu", CPU1), 1.0, 4.0), steps[1])
    assert Scenario((Step(Load("cpu", CPU1), ramp_s=10.0),)).until(8.0).steps[0].ramp_s == 4.0
    assert Scenario(steps).until(math.inf) == Scenario(steps)
    with pytest.raises(LoadError, match=r"starts at 1 s, and all is to end at 0\.5 s"):
        Scenario(steps).until(0.5)


def test_a_random_scenario_is_the_same_for_the_same_seed():
    def make(seed):
        return Scenario.random(
            [CPU0, CPU1], ["cpu-50", "membw-100", "cache"], period_s=10.0, duration_s=4.0, length_s=45.0, seed=seed
        )

    assert [(str(step.load), step.start_s, step.end_s, step.name) for step in make(3).steps] == [
        ("membw@cpu:0", 10.0, 14.0, "membw-100"),
        ("membw@cpu:0", 20.0, 24.0, "membw-100"),
        ("cpu@cpu:1*0.5", 30.0, 34.0, "cpu-50"),
        ("cache@cpu:0", 40.0, 44.0, "cache"),
    ]
    assert make(3) == make(3) != make(4)


def test_random_times_have_the_means_asked_for():
    scenario = Scenario.random([CPU1], period_s=2.0, duration_s=0.5, length_s=20_000.0, seed=1, spacing="random")
    starts = [0.0, *(step.start_s for step in scenario.steps)]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    lengths = [step.end_s - step.start_s for step in scenario.steps]
    assert 1.9 < sum(gaps) / len(gaps) < 2.1
    assert 0.48 < sum(lengths) / len(lengths) < 0.54  # those below 0.1 s are made longer
    assert min(lengths) >= 0.1 - 1e-9 or scenario.end_s == 20_000.0
    assert len({step.name for step in scenario.steps}) == 12


def test_the_last_event_is_cut_off():
    scenario = Scenario.random([CPU1], ["cpu"], period_s=10.0, duration_s=8.0, length_s=25.0, seed=0)
    assert [(step.start_s, step.end_s) for step in scenario.steps] == [(10.0, 18.0), (20.0, 25.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": []}, "0 devices and 12 loads leave nothing to choose from"),
        ({"names": []}, "1 devices and 0 loads"),
        ({"names": ["cpu-1000"]}, "did you mean 'cpu-100'"),
        ({"names": ["program"]}, "no scenario is named 'program'"),
        ({"names": ["gpu"]}, "a load 'gpu' does not run on cpu:1"),
        ({"period_s": 0.0}, "a period of 0 s"),
        ({"duration_s": -1.0}, "a duration of -1 s"),
        ({"length_s": math.inf}, "a length of inf s"),
        ({"length_s": 5.0}, "no event begins within 5 s"),
        ({"spacing": "odd"}, "spacing 'odd' is neither"),
    ],
)
def test_what_cannot_be_random_is_refused(options, message):
    with pytest.raises(LoadError, match=message):
        Scenario.random(
            **{"devices": [CPU1], "period_s": 10.0, "duration_s": 5.0, "length_s": 60.0, "seed": 0, **options}
        )


# ---------------------------------------------------------------- files
def read(tmp_path, text, **options):
    path = tmp_path / "some.toml"
    path.write_text(text)
    return Scenario.load(path, **options)


def test_the_example_is_what_it_says():
    scenario = Scenario.load(EXAMPLE)
    assert [(str(step.load), step.start_s, step.end_s, step.name, step.ramp_s) for step in scenario.steps] == [
        ("cpu@cpu:1", 10.0, 30.0, "batch job", 0.0),
        ("membw@cpu:0*0.5", 40.0, 60.0, "membw-50", 0.0),
        ("cache@cpu:0*0.8x2~0.05s", 65.0, 95.0, "cache", 10.0),
        ("cache@cpu:1*0.8x2~0.05s", 65.0, 95.0, "cache", 10.0),
        ("program@cpu:1 sh -c 'while :; do :; done'", 100.0, 110.0, "sh", 0.0),
    ]


def test_a_table_of_random_events_is_the_library_call(tmp_path):
    text = """
        [random]
        on = ["cpu:0", "cpu:1"]
        loads = ["cpu-50", "membw-100"]
        period_s = 10
        duration_s = 4.5
        length_s = 60
        spacing = "random"
        seed = 7
    """
    expected = [
        Scenario.random(
            [CPU0, CPU1],
            ["cpu-50", "membw-100"],
            period_s=10.0,
            duration_s=4.5,
            length_s=60.0,
            seed=seed,
            spacing="random",
        )
        for seed in (7, 8)
    ]
    assert read(tmp_path, text) == expected[0]
    assert read(tmp_path, text, seed=8) == expected[1] != expected[0]


def test_random_events_come_on_top_of_others(tmp_path):
    text = '[[load]]\nkind="cpu"\non="cpu:0"\n[random]\non="cpu:1"\nperiod_s=1\nduration_s=1\nlength_s=3.5\n'
    assert [step.start_s for step in read(tmp_path, text).steps] == [0.0, 1.0, 2.0, 3.0]


LOAD = '[[load]]\nkind = "cpu"\non = "cpu:1"\n'
RANDOM = '[random]\non = "cpu:1"\nperiod_s = 1.0\nduration_s = 1.0\nlength_s = 9.0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"some.toml: there is no load in it: write \[\[load\]\] entries"),
        ("load = 3", r"loads are written as \[\[load\]\]"),
        ('[load]\nkind = "cpu"', r"loads are written as \[\[load\]\], with two brackets"),
        ("loads = 3", r"there is no 'loads'; did you mean 'load'\?"),
        ("= 3", "is not TOML: .*line 1"),
        (LOAD + LOAD + "intensty = 0.5", r"\[\[load\]\] 2: there is no 'intensty'; did you mean 'intensity'\?"),
        (LOAD + "intensity = 2", r"\[\[load\]\] 1: intensity 2 is not within 0 to 1"),
        (LOAD + 'intensity = "half"', "intensity = 'half' is not a number"),
        (LOAD + "intensity = true", "intensity = True is not a number"),
        (LOAD + "intensity = nan", "intensity = nan is not a number"),
        (LOAD + "threads = 1.5", "threads = 1.5 is not a whole number"),
        (LOAD + "name = 3", "name = 3 is not text in quotes"),
        (LOAD + "start_s = 5\nend_s = 4", "ends at 4 s, not after its start at 5 s"),
        (LOAD + "end_s = 5\nduration_s = 5", "'end_s' and 'duration_s'; write one of them"),
        (LOAD + "start_s = -1", "starts at -1 s"),
        (LOAD + 'scenario = "cpu-50"', "by 2 of 'kind', 'scenario' and 'program'; write exactly one"),
        ('[[load]]\non = "cpu:1"', "by 0 of 'kind', 'scenario' and 'program'"),
        ('[[load]]\nkind = "disk"\non = "cpu:1"', "there is no load 'disk'; there is cpu"),
        ('[[load]]\nkind = "cpu"', 'where is missing: write on = "cpu:1"'),
        ('[[load]]\nkind = "cpu"\non = "core 1"', "'core 1' is not a device: write cpu:3"),
        ('[[load]]\nkind = "cpu"\non = []', "'on' has to be text, or a list of texts"),
        ('[[load]]\nscenario = "cpu-1000"\non = "cpu:1"', r"\[\[load\]\] 1: no scenario is named 'cpu-1000'"),
        ('[[load]]\nscenario = "cpu-50"\non = "cpu:1"\nthreads = 2', "a named scenario has its own 'threads'"),
        ('[[load]]\nprogram = "ls"\non = "cpu:1"\nintensity = 0.5', "ls decides itself how hard it works"),
        ('[[load]]\nprogram = ""\non = "cpu:1"', "needs a command line"),
        ("random = 3", r"written as \[random\]"),
        ('[random]\non = "cpu:1"', r"\[random\]: 'period_s' is missing: write period_s = 10.0"),
        (RANDOM + 'loads = ["cpu-1000"]', r"\[random\]: no scenario is named 'cpu-1000'"),
        (RANDOM + 'spacing = "odd"', r"\[random\]: spacing 'odd' is neither"),
        (RANDOM + "seed = 0.5", "seed = 0.5 is not a whole number"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    with pytest.raises(LoadError, match=message) as raised:
        read(tmp_path, text)
    assert "some.toml" in str(raised.value)


def test_a_seed_for_what_is_not_random_is_refused(tmp_path):
    with pytest.raises(LoadError, match="a seed means nothing"):
        read(tmp_path, LOAD, seed=1)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(LoadError, match=r"cannot read the scenario .*nothing.toml: No such file"):
        Scenario.load(tmp_path / "nothing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(LoadError, match=r"bytes\.toml is not TOML"):
        Scenario.load(tmp_path / "bytes.toml")


# ---------------------------------------------------------------- playing
class FakeHandle:
    def __init__(self, play, load, name):
        self.play, self.load, self.name, self.failed, self.over = play, load, name, False, False

    def set_intensity(self, intensity):
        self.play.record(self, intensity)

    def stop(self):
        self.over = True
        self.play.record(self, 0.0)

    def wait(self, timeout_s=None):
        return self.over


class AtOnce(Executor):
    """Does everything when it is asked to."""

    def submit(self, function, /, *args, **options):
        future = Future()
        future.set_result(function(*args, **options))
        return future


class FakeInjector:
    """Notes what happens when; its clock goes on only while somebody waits."""

    def __init__(self):
        self.now_s, self.started, self.noted, self.handles = 100.0, [], [], []
        self.at = {}

    def play(self, scenario, **options):
        return play(scenario, self, pool=AtOnce(), clock=self.clock, wait=self.wait, **options)

    def clock(self):
        return self.now_s

    def wait(self, stop, timeout_s):
        self.now_s += timeout_s
        for at_s in [at_s for at_s in self.at if at_s <= self.now_s]:
            self.at.pop(at_s)()
        return stop.is_set()

    def start(self, load, *, name="", idle=False):
        handle = FakeHandle(self, load, name)
        self.handles.append(handle)
        self.started.append((round(self.now_s - 100.0, 6), str(load), idle))
        if not idle:
            self.record(handle, load.intensity)
        return handle

    def record(self, handle, intensity):
        self.noted.append((round(self.now_s - 100.0, 6), handle.name, intensity))


def test_a_scenario_is_played_in_time():
    injector = FakeInjector()
    scenario = Scenario(
        (
            Step(Load("cpu", HERE), 0.0, 5.0),
            Step(Load("membw", HERE, 0.5), 8.0, 10.0, "neighbour"),
            Step(Load("program", HERE, program="ls -l"), 5.0, 9.0),
        )
    )
    begun = []
    assert injector.play(scenario, on_begin=lambda step, _: begun.append(step.name))
    assert injector.noted == [
        (0.0, "cpu", 1.0),
        (5.0, "cpu", 0.0),
        (5.0, "ls", 1.0),
        (8.0, "neighbour", 0.5),
        (9.0, "ls", 0.0),
        (10.0, "neighbour", 0.0),
    ]
    # Two seconds ahead, and idle; a program cannot wait.
    assert [when for when, load, idle in injector.started if idle] == [0.0, 6.0]
    assert [(when, load) for when, load, idle in injector.started if not idle] == [(5.0, f"program@{HERE} ls -l")]
    assert begun == ["cpu", "ls", "neighbour"]


def test_playing_can_be_broken_off():
    injector, stop = FakeInjector(), threading.Event()
    injector.at[103.0] = stop.set
    scenario = Scenario((Step(Load("cpu", HERE), 0.0, 5.0),))
    assert not injector.play(scenario, stop=stop)
    assert injector.noted == [(0.0, "cpu", 1.0)]  # whoever owns the injector ends it


@pytest.mark.parametrize("failed", [False, True])
def test_playing_ends_when_all_loads_have_ended_by_themselves(failed):
    injector = FakeInjector()

    def end():
        injector.handles[0].over, injector.handles[0].failed = True, failed

    injector.at[107.0] = end
    scenario = Scenario((Step(Load("cpu", HERE)),))
    assert injector.play(scenario) is not failed
    assert 7.0 <= injector.now_s - 100.0 < 7.5


def test_a_missing_core_is_found_before_anything_begins():
    injector = FakeInjector()
    scenario = Scenario((Step(Load("cpu", HERE)), Step(Load("cpu", Device("cpu", (9999,))), 100.0)))
    with pytest.raises(DeviceError, match="no usable core 9999"):
        injector.play(scenario)
    assert injector.started == []
