"""Policies, detectors and callbacks of the user's that fail: they are named, with their own file and line.

What happened: in ``odin simulate`` a policy that answered a text ended in a traceback of the simulator's; live, one
that was named as ``module:Class`` was said to have failed in ODIN's own file.
"""

from __future__ import annotations

import importlib
import sys
import textwrap

import numpy as np
import pytest

from odin.cli.main import main
from odin.control.controller import Controller
from odin.control.decision_core import Finished
from odin.control.detectors import make_detector
from odin.control.faults import Faults
from odin.control.users_code import where_raised
from odin.monitor.watch import StageWatch
from odin.partitioner.plan import Plan
from odin.partitioner.policies import Observation, Setting, make_policy
from odin_lab.simulator.run import simulate
from odin_lab.simulator.world import World

POLICIES = """
import numpy as np
from odin.partitioner.policies import FilterPolicy
from helping import help_out

class Says:
    name = "says"
    def start(self, setting): pass
    def decide(self, observation):
        return "7|11"                              # line 9

class Raises(Says):
    def decide(self, observation):
        return np.linalg.inv(np.zeros((2, 2)))     # line 13

class Helped(Says):
    def decide(self, observation):
        return help_out()

class Starts(Says):
    def start(self, setting):
        raise KeyError("x")                        # line 21

class Makes(Says):
    def __init__(self):
        {}["a"]                                    # line 25

class Named(Says):
    @property
    def name(self):
        return 1 / 0                               # line 30

class Derived(FilterPolicy):
    def start(self, setting):
        super().start(setting._replace(plan=None)) # line 34
        raise RuntimeError                         # line 35
"""
HELPING = """
def help_out():
    raise OSError("no help")                       # line 3
"""
DETECTORS = """
from odin.monitor.detectors import CusumDetector

class Raises(CusumDetector):
    def update(self, x):
        raise RuntimeError("no")                   # line 6

class Shrinks(CusumDetector):
    @property
    def age(self):
        return [1]                                 # line 11
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    for name, text in (("policies_of_mine", POLICIES), ("helping", HELPING), ("detectors_of_mine", DETECTORS)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text).lstrip("\n"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("policies_of_mine", "helping", "detectors_of_mine"):
        sys.modules.pop(name, None)


FAILURES = [
    ("Says", "its answer is '7|11', not a Decision or None; give Decision(plan, kind, why)", "policies_of_mine.py", 8),
    ("Raises", "raised LinAlgError('Singular matrix')", "policies_of_mine.py", 13),
    ("Helped", "raised OSError('no help')", "helping.py", 2),
    ("Starts", "raised KeyError('x') at its start", "policies_of_mine.py", 21),
]


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("name", "what", "file", "line"), FAILURES)
def test_in_a_simulation(mine, capsys, name, what, file, line):
    assert main(["simulate", "--requests", "30", "--policy", f"policies_of_mine:{name}"]) == 2
    err = told(capsys)
    assert f"policy policies_of_mine:{name}" in err
    assert what in err
    assert f"({mine / file}, line {line})" in err


@pytest.mark.parametrize(("name", "error", "line"), [("Makes", "KeyError", 25), ("Named", "ZeroDivisionError", 30)])
def test_when_it_is_made(mine, capsys, name, error, line):
    assert main(["simulate", "--policy", f"policies_of_mine:{name}"]) == 2
    err = told(capsys)
    assert f"policy 'policies_of_mine:{name}' raised {error}" in err
    assert f"({mine / 'policies_of_mine.py'}, line {line})" in err


@pytest.mark.parametrize(
    ("name", "what"),
    [("Raises", "detector Raises raised RuntimeError('no')"), ("Shrinks", "detector 'detectors_of_mine:Shrinks'")],
)
def test_a_detector_in_a_simulation(mine, capsys, name, what):
    command = ["simulate", "--requests", "30", "--policy", "lls", "--detector", f"detectors_of_mine:{name}"]
    assert main(command) == 2
    err = told(capsys)
    assert what in err
    if name == "Raises":
        assert f"({mine / 'detectors_of_mine.py'}, line 5)" in err


SETTING = Setting(Plan((1, 1)), np.full((2, 2), 0.1), np.zeros(3), np.zeros(3), np.ones(2))


def observation():
    zeros = np.zeros(2)
    return Observation(1, SETTING.plan, zeros + 0.1, zeros + 0.1, 0.1, zeros > 1, np.ones(2, dtype=np.int64), zeros)


def live(policy, watch=None):
    """A controller that is not started, and the events that it emits."""
    events = []
    controller = Controller(
        SETTING,
        policy=policy,
        migrate=lambda plan, windows: 1,
        emit=events.append,
        faults=Faults(events.append),
        watch=watch,
    )
    return controller, events


@pytest.mark.parametrize(("name", "what", "file", "line"), FAILURES[:3])
def test_live(mine, name, what, file, line):
    controller, events = live(make_policy(f"policies_of_mine:{name}"))
    with pytest.warns(UserWarning, match=f"policy policies_of_mine:{name} raised"):
        controller._core.decide(observation())
    fault = events[0]
    assert (fault.part, f"({mine / file}, line {line})" in fault.error) == (f"policy policies_of_mine:{name}", True)
    assert what.removeprefix("raised ") in fault.error


def test_live_at_its_start(mine):
    with pytest.raises(ValueError, match=r"policies_of_mine:Starts raised KeyError\('x'\) at its start .*line 21"):
        live(make_policy("policies_of_mine:Starts"))


def test_a_detector_live(mine):
    watch = StageWatch(SETTING.baseline_s, make_detector("detectors_of_mine:Raises", 2))
    controller, events = live(make_policy("static"), watch)
    with pytest.warns(UserWarning, match="detector Raises raised"):
        controller._core.observe(Finished(1, SETTING.plan, (0, 1, 2), np.array([0.1, 0.1]), np.array([0.1, 0.1]), 1.0))
    assert f"({mine / 'detectors_of_mine.py'}, line 5)" in events[0].error
    assert "cusum takes its place" in events[0].error


def test_one_that_stands_on_odins_own(mine):
    """The innermost place was in ODIN's file, where the user's arguments were not what it takes."""
    policy = make_policy("policies_of_mine:Derived")
    with pytest.raises((RuntimeError, AttributeError)) as raised:
        policy.start(SETTING)
    assert where_raised(raised.value, policy, "start") in [
        f" ({mine / 'policies_of_mine.py'}, line {line})" for line in (34, 35)
    ]


def test_what_a_simulation_answers_to_other_forms_of_a_plan(mine):
    class Moves:
        name = "moves"

        def start(self, setting):
            pass

        def decide(self, observation):
            from odin.partitioner.policies import Decision

            return Decision((2, np.int64(0)), "move", None) if observation.request == 3 else None

    run = simulate(World.of([[0.1, 0.1], [0.1, 0.1]]), Moves(), requests=20)
    assert [str(plan) for plan in run.plans] == ["1|1", "2|0"]


def test_nothing_known_of_where():
    assert where_raised(ValueError("never raised")) == ""
