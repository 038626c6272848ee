"""The search for a rate, the outcomes it counts, and the samples it sends: no server, no clock."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from odin_lab.load.campaign import Campaign, Wishes
from odin_lab.load.client import Input, ModelFace, Target
from odin_lab.load.figures import figures_of, requests_of
from odin_lab.load.introduction import Introduction
from odin_lab.load.loadgen import _read_summary, _read_trace
from odin_lab.load.rest import RestClient
from odin_lab.load.samples import fix_shapes, make_samples, parse_input
from odin_lab.load.search import RateSearch
from odin_lab.load.task import Outcome, Scheduled, Task
from odin_lab.load.trial import Trial

INPUTS = (Input("x", "FP32", (2, 3)),)


def tried(search: RateSearch, capacity_hz: float) -> list[float]:
    rates = []
    while (rate_hz := search.next_hz) is not None:
        rates.append(rate_hz)
        search.add(rate_hz, passed=rate_hz <= capacity_hz)
    return rates


def test_rates_double_until_one_fails_and_are_bisected_then():
    search = RateSearch(start_hz=10, precision=0.1)
    assert tried(search, 33) == [10, 20, 40, 30, 35, 32.5]
    assert (search.passed_hz, search.failed_hz) == (32.5, 35)


def test_rates_halve_until_one_passes():
    assert tried(RateSearch(start_hz=16, precision=0.5), 3) == [16, 8, 4, 2, 3]


def test_a_search_ends_without_a_rate_that_passes():
    search = RateSearch(start_hz=16, most=4)
    assert tried(search, 0) == [16, 8, 4, 2]
    assert search.passed_hz is None


def trial_of(outcomes: list[Outcome], scheduled: list[Scheduled] = (), *, scenario: str = "server") -> Trial:
    trial = Trial(Task(Target("http://h:1"), INPUTS, scenario, 1.0, rate_hz=5))
    trial.outcomes, trial.scheduled, trial.asked = outcomes, list(scheduled), len(outcomes)
    return trial


def test_latency_counts_from_the_scheduled_moment_and_not_from_sending():
    outcome = Outcome(0, asked_s=10.0, sent_s=10.3, over_s=10.4, failure="")
    trial = trial_of([outcome], [Scheduled(0, due_s=0.0, behind_s=0.5, latency_s=0.9)])
    (request,) = requests_of(trial)
    assert request.latency_s == 0.9
    assert request.behind_s == pytest.approx(0.8)  # late at our door, and waiting for a connection


def test_the_outcome_and_the_schedule_of_a_request_meet_by_number():
    outcomes = [Outcome(1, 11, 11, 11.2, "429 refused"), Outcome(0, 10, 10, 10.1, "")]
    scheduled = [Scheduled(0, 0.0, 0.0, 0.1), Scheduled(1, 1.0, 0.0, 0.2)]
    assert [one.failure for one in requests_of(trial_of(outcomes, scheduled))] == ["", "429 refused"]


def test_what_loadgen_has_not_written_yet_counts_from_when_it_was_issued():
    (request,) = requests_of(trial_of([Outcome(0, 10.0, 10.3, 10.4, "")]))
    assert request.latency_s == pytest.approx(0.4)


def test_in_a_closed_loop_nobody_is_late():
    (request,) = requests_of(trial_of([Outcome(0, 10.0, 10.3, 10.4, "")], scenario="clients"))
    assert request.latency_s == pytest.approx(0.1)


def test_failed_requests_are_counted_by_kind_and_are_not_in_time():
    outcomes = [Outcome(number, number, number, number + 0.01, "") for number in range(6)]
    outcomes += [Outcome(6, 6, 6, 6.001, "429 refused"), Outcome(7, 7, 7, 7.001, "429 refused")]
    outcomes += [Outcome(8, 8, 8, 8.001, "connection"), Outcome(9, 9, 9, 9.5, "")]
    trial = trial_of(outcomes)
    trial.asked = 12
    figures = figures_of(trial, requests_of(trial), bound_ms=100)
    assert figures.failures == {"429 refused": 2, "connection": 1}
    assert (figures.requests, figures.answered, figures.failed, figures.under_way) == (10, 7, 3, 2)
    assert figures.in_time_share == 0.6
    assert not figures.keeps(0.61)
    assert figures.elapsed_s == 9.5
    assert figures.inputs_hz == pytest.approx(2 * figures.answered_hz)


@pytest.mark.parametrize(
    ("last", "gone"),
    [(["connection"] * 100, True), (["connection"] * 99, False), (["connection"] * 99 + ["refused (429)"], False)],
)
def test_a_server_is_gone_when_a_hundred_connections_fail_in_a_row(last, gone):
    failures = ["", *last]
    assert trial_of([Outcome(at, at, at, at, failure) for at, failure in enumerate(failures)]).server_gone == gone


def test_nothing_answered_has_no_latency():
    trial = trial_of([Outcome(0, 0, 0, 1, "connection")])
    figures = figures_of(trial, requests_of(trial), bound_ms=100)
    assert (figures.p50_s, figures.p99_s, figures.in_time_share) == (None, None, 0.0)


def test_the_trace_is_read_as_far_as_it_is_written(tmp_path):
    path = tmp_path / "trace.json"
    line = (
        '{{"name":"Sample","cat":"default","ph":"b","pid":1,"id":{0},"ts":{1},"args":{{"sample_seq":{0},"query_seq":0,'
        '"sample_idx":2,"issue_start_ns":500,"complete_ns":2000000}}}},\n'
    )
    text = '{"traceEvents":[\n{"name":"Wait","ph":"X"},\n' + line.format(0, 100.5) + line.format(1, 1100.5)
    path.write_text(text + line.format(2, 2100.5)[:60])
    assert list(_read_trace(path)) == [
        Scheduled(0, pytest.approx(100.5e-6), 5e-7, 0.002),
        Scheduled(1, pytest.approx(1100.5e-6), 5e-7, 0.002),
    ]
    assert list(_read_trace(tmp_path / "none")) == []


def test_loadgens_verdict(tmp_path):
    path = tmp_path / "summary"
    path.write_text("Result is : INVALID\n  Min duration satisfied : Yes\n  Early stopping satisfied: NO\nother : NO\n")
    verdict = _read_summary(path)
    assert (verdict.result, verdict.unmet) == ("INVALID", ("Early stopping satisfied",))
    assert _read_summary(tmp_path / "none") is None


class Machine:
    """Trials on a server that keeps the bound up to a rate."""

    def __init__(self, capacity_hz: float) -> None:
        self.capacity_hz = capacity_hz
        self.tasks: list[Task] = []

    def __call__(self, task: Task, *, look) -> Trial:
        self.tasks.append(task)
        trial = Trial(task)
        late = task.scenario == "server" and task.rate_hz > self.capacity_hz
        trial.outcomes = [Outcome(at, at, at, at + (1.0 if late else 0.001), "") for at in range(200)]
        trial.asked = 200
        trial.broken_off = not look(trial)
        return trial


def campaign(machine: Machine, *, look=lambda title, trial: True, **wishes) -> Campaign:
    face = ModelFace("fake", "net", INPUTS, True)
    known = Introduction(Target("http://127.0.0.1:9", "net"), face, INPUTS)
    asked = {"scenario": "server", "seconds": 10.0, "clients": 1, "rate_hz": None, "bound_ms": 50.0, **wishes}
    return Campaign(known, Wishes(**asked), lone_s=0.01, look=look, run=machine)


def test_the_highest_rate_that_keeps_the_bound_is_found():
    machine = Machine(capacity_hz=3.0)
    found = campaign(machine)
    found.carry_out()
    assert 2.85 <= found.search.passed_hz <= 3.0 < found.search.failed_hz <= 3.15
    assert [task.scenario for task in machine.tasks[:2]] == ["clients", "server"]
    assert machine.tasks[1].rate_hz == pytest.approx(0.8 * found.finished[0].figures.answered_hz)
    assert all(one.figures.broken_off for one in found.finished[1:] if not one.figures.keeps(0.99))  # hopeless soon


def test_the_user_wants_no_more_and_the_trial_that_was_broken_off_proves_nothing():
    titles = []

    def look(title: str, trial: Trial) -> bool:
        titles.append(title)
        return len(titles) < 3

    found = campaign(Machine(capacity_hz=3.0), look=look)
    found.carry_out()
    assert found.ended
    assert len(found.finished) == 3
    assert found.finished[-1].figures.broken_off


def test_a_rate_has_enough_requests_for_a_percentile_but_does_not_take_for_ever():
    machine = Machine(capacity_hz=100)
    campaign(machine, rate_hz=5.0).carry_out()
    campaign(machine, rate_hz=0.5).carry_out()
    assert [task.least for task in machine.tasks] == [100, 20]


def test_sizes_that_the_request_chooses():
    known = [Input("x", "FP32", (-1, 3, -1))]
    with pytest.raises(ValueError, match="say --input x:FP32:4,3,N"):
        fix_shapes(known, [], batch=4)
    assert fix_shapes(known, [parse_input("x:FP32:1,3,8")], batch=4) == (Input("x", "FP32", (1, 3, 8)),)
    assert fix_shapes([], [parse_input("a:b:INT8:7")], batch=1) == (Input("a:b", "INT8", (7,)),)
    with pytest.raises(ValueError, match="no such input; it has 'x'"):
        fix_shapes(known, [parse_input("y:FP32:1")], batch=1)
    with pytest.raises(ValueError, match="does not say which inputs"):
        fix_shapes([], [], batch=1)
    with pytest.raises(ValueError, match="give NAME:DATATYPE:SIZES"):
        parse_input("x:FLOAT:1")


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"])
def test_random_samples_have_the_type_that_is_asked_for(datatype):
    client = RestClient(Target("http://h:1", "net"))
    first, second = make_samples([Input("x", datatype, (2, 3))], count=2, seed=1)
    assert first[0].array.shape == (2, 3)
    body = client.prepare(first).body
    header = json.loads(body[: body.index(b"]}") + 2])
    assert header["inputs"][0]["datatype"] == datatype
    assert header["inputs"][0]["parameters"]["binary_data_size"] == len(body) - body.index(b"]}") - 2
    assert client.prepare(make_samples([Input("x", datatype, (2, 3))], count=1, seed=1)[0]).body == body
    if datatype not in ("BOOL", "BYTES"):
        assert (first[0].array != second[0].array).any()


def test_bf16_numbers_are_those_below_one():
    (sample,) = make_samples([Input("x", "BF16", (1000,))], count=1, seed=0)
    numbers = (sample[0].array.astype(np.uint32) << 16).view(np.float32)
    assert 0 <= numbers.min() < 0.1 < 0.9 < numbers.max() < 1


def test_photographs_become_what_the_model_takes(tmp_path):
    for name, color in (("a.png", (255, 0, 0)), ("b.jpg", (0, 0, 255))):
        Image.new("RGB", (40, 20), color).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    first, second = make_samples([Input("x", "UINT8", (1, 3, 8, 6))], count=9, seed=0, images=tmp_path)
    assert first[0].array.shape == (1, 3, 8, 6)
    assert first[0].array[0, :, 4, 3].tolist() == [255, 0, 0]
    assert second[0].array[0, 2].min() > 240
    (batch,) = make_samples([Input("x", "FP32", (2, 8, 6, 3))], count=1, seed=0, images=tmp_path)
    assert batch[0].array[0, 0, 0] == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert batch[0].array[1, 0, 0, 0] < 0  # the second row is the second file
    (files,) = make_samples([Input("x", "BYTES", (2,))], count=1, seed=0, images=tmp_path)
    assert files[0].array[0].startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="and no image"):
        make_samples([Input("x", "FP32", (1, 10))], count=1, seed=0, images=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image files there"):
        make_samples([Input("x", "FP32", (1, 3, 8, 8))], count=1, seed=0, images=tmp_path / "empty")
