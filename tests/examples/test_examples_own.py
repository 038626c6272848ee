"""The examples of a policy and a detector of one's own: in a closed loop, with the watch, and serving."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from small_pipelines import images, small_chain

import odin
from odin.cli.main import main
from odin.control.detectors import make_detector
from odin.control.supervision import make_watch
from odin.monitor.detectors import CusumDetector
from odin.monitor.watch import StageWatch
from odin.options import check_options
from odin.partitioner.plan import Plan
from odin.partitioner.policies import make_policy
from odin.testing import drive_policy as drive
from odin.testing import setting_for, slowed

GREEDY = "examples.my_policy:GreedyPolicy"
CHART = "examples.my_detector:ChartDetector"
TWELVE = np.ones((3, 12))
TEXTS = {"precision": "float32", "transport": "auto", "batch": None, "max_in_flight": None}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


# --- the policy ------------------------------------------------------------------------------------------------------


def test_greedy_goes_step_by_step_and_comes_back():
    changes = {100: slowed(TWELVE, {1: 2.0}), 200: TWELVE}
    run = drive(make_policy(GREEDY), TWELVE, (4, 4, 4), changes=changes, requests=300, flag_delay=1)
    # Flagged with 101; four requests under each plan, and two that were in the pipeline already.
    assert [(request, str(decision.plan)) for request, decision in run.decisions] == [
        (104, "5|3|4"), (110, "5|2|5"), (204, "4|3|5"), (210, "4|4|4"),
    ]  # fmt: skip
    assert run.kinds == ["move"] * 4
    assert [decision.predicted_s for _, decision in run.decisions] == [6.0, 5.0, 5.0, 4.0]
    assert run.bottleneck_s[[99, 115, 199, 215]].tolist() == [8.0, 5.0, 5.0, 4.0]


def test_greedy_takes_the_step_it_is_told_to():
    run = drive(make_policy(f"{GREEDY}:step=2"), TWELVE, (4, 4, 4), changes={50: slowed(TWELVE, {1: 3.0})}, requests=99)
    assert run.plans_tried == ["6|2|4"]  # 5|1|6 had been next with steps of one


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_quiet_without_a_change_and_under_false_alarms(seed):
    scene = {"baseline_s": TWELVE, "plan": (4, 4, 4), "requests": 200, "noise": 0.05, "seed": seed}
    assert drive(make_policy(GREEDY), **scene).moves == 0
    assert drive(make_policy(GREEDY), **scene, false_alarms={60: (0,), 120: (1, 2)}).moves == 0


def test_greedy_with_one_stage_with_an_empty_one_and_after_a_migration():
    assert drive(make_policy(GREEDY), np.ones((1, 4)), (4,), requests=30, false_alarms={9: (0,)}).moves == 0
    two = np.ones((2, 4))
    run = drive(make_policy(GREEDY), two, (4, 0), requests=30, false_alarms={9: (0,)})
    assert run.plans_tried == ["3|1", "2|2"]


@pytest.mark.parametrize("setting", ["step=0", "judge=0", "gain=0"])
def test_greedy_refuses(setting):
    with pytest.raises(ValueError, match=rf"policy '{GREEDY}:{setting}': step="):
        make_policy(f"{GREEDY}:{setting}")


# --- the detector ----------------------------------------------------------------------------------------------------


def test_the_chart_sees_onset_and_end():
    random = np.random.default_rng(0)
    detector, found = make_detector(CHART, 2), []
    for request in range(3000):
        detector.update(random.normal([0.0, math.log(2) if 1500 <= request < 1600 else 0.0], 0.1))
        found += [(request, stage, bool(detector.disturbed[stage])) for stage in np.flatnonzero(detector.changed)]
        if request == 1599:
            assert np.exp(detector.level) == pytest.approx([1.0, 2.0], rel=0.05)
    assert found == [(1501, 1, True), (1601, 1, False)]
    assert detector.level.tolist() == [0.0, 0.0]
    assert detector.noise == pytest.approx([0.1, 0.1], rel=0.15)


def test_the_chart_leaves_streams_without_samples_alone():
    detector = make_detector(CHART, 2)
    for _ in range(50):
        detector.update([0.1, math.nan])
    assert detector.age.tolist() == [50, 0]
    assert detector.noise[1] == pytest.approx(0.1)


def test_the_chart_takes_a_moved_layer_for_no_interference():
    """Slowdowns of 1.3 under one plan and 1.6 under the next are its layers' doing, if nothing was disturbed before."""
    detector = make_detector(f"{CHART}:learn=8", 1)
    for level in (1.3, 1.6):
        for _ in range(40):
            detector.update([math.log(level)])
            assert not detector.changed.any()
        detector.rebase()
    assert not detector.disturbed.any()


def test_policy_and_detector_together():
    """The loop of the controller without its threads: times to watch, watch to policy, plan to times."""
    random, policy = np.random.default_rng(4), make_policy(GREEDY)
    setting = setting_for(TWELVE, (4, 4, 4))
    watch = StageWatch(setting.baseline_s, make_detector(CHART, 3))
    policy.start(setting)
    plan, moves = setting.plan, []
    for request in range(1, 601):
        slowdown = np.array([1.0, 1.0, 2.0 if request > 300 else 1.0])
        layer_s = np.repeat(slowdown * np.exp(random.normal(0.0, 0.05, 3)), plan)
        stage_s = np.array([layer_s[first:last].sum() for first, last in plan.ranges])
        watch.update((0, *(last for _, last in plan.ranges)), stage_s, layer_s)
        seen = watch.detector
        observation = odin.Observation(
            request, plan, stage_s, layer_s, float(stage_s.max()), seen.changed, seen.age, seen.noise
        )
        if (decision := policy.decide(observation)) is not None:
            plan = decision.plan
            moves.append((request, str(plan)))
    assert [plan for _, plan in moves] == ["4|5|3", "4|6|2", "5|5|2"]
    assert 300 < moves[0][0] < 310


def test_what_the_documentation_shows_is_so():
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown
    for code in shown:
        exec(code, {})


# --- where they go in ------------------------------------------------------------------------------------------------


def test_the_watch_takes_texts_and_objects_that_fit():
    setting = setting_for(TWELVE, (4, 4, 4))
    assert isinstance(make_watch("cusum:arl=1000", setting).detector, CusumDetector)
    own = make_detector(CHART, 3)
    assert make_watch(own, setting).detector is own
    with pytest.raises(ValueError, match="the detector has 2 streams, the pipeline 3 stages; make it for 3"):
        make_watch(make_detector("cusum", 2), setting)


def test_a_detector_that_does_not_exist_is_told_before_anything_starts():
    with pytest.raises(ValueError, match="there is no detector 'cusun'; choose one of cusum, threshold"):
        odin.Pipeline("resnet50", detector="cusun")
    check_options(**TEXTS, detector=make_detector("cusum", 7))  # how many stages there will be is not known here


def test_the_command_tells_the_names_and_refuses_others(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # lines end within words
    assert "relay, static, lls, odin, filter, oracle, delayed-oracle, together, with parameters" in words
    assert "cusum, threshold, page-hinkley, adwin, with parameters" in words


@pytest.mark.ray
def test_both_serve(two_cores):
    chain = small_chain()
    plan = Plan((3, len(chain.layers) - 3))
    text = f"{GREEDY}:gain=0.9"
    with odin.Pipeline(chain, stages=two_cores, plan=plan, policy=text, detector=CHART) as pipe:
        results = list(pipe.map(images(60)))
        assert pipe.policy == text
        pipe.policy = pipe.policy  # what is shown can be given again
    assert all((y == chain(x)).all() for y, x in zip(results, images(60), strict=True))
