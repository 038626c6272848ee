"""How requests are placed, with pipelines that are pretended: turned away, cancelled, loaded for, broken."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
import torch

import odin
from odin.errors import DeadlineExceededError, PipelineClosedError, QueueFullError, StageLostError
from odin.family import family as module
from odin.family.family import Family
from odin.family.loading import Loading
from odin.family.policies import make_variant_policy
from odin.family.profile import VariantProfile, VariantProfiles, line_through
from odin.monitor.events import FamilyCounted, Fault, ModelLoaded, VariantCount
from odin.monitor.view.event_text import event_text

X = torch.zeros(1, 3)


class Pretended:
    """A pipeline whose answers the test gives."""

    max_in_flight = 2
    instances = 2
    devices = ("cpu:0", "cpu:1")

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.raises: Exception | None = None
        self.inputs: list[Any] = []
        self.closed = False

    def forecast(self) -> None:
        if isinstance(self.raises, StageLostError):
            raise self.raises

    def submit(self, *inputs: Any, timeout_s: float | None = None) -> Future[Any]:
        if self.raises is not None:
            raise self.raises
        future: Future[Any] = Future()
        self.inputs.append(inputs)
        self.futures.append(future)
        return future

    async def asubmit(self, *inputs: Any, timeout_s: float | None = None, timelines: Any = None) -> Any:
        if self.raises is not None:
            raise self.raises
        return "answer"

    def close(self, **options: Any) -> None:
        self.closed = True


class PretendedLoading(Loading):
    """Opens pretended pipelines; profiles are given."""

    made: list[Pretended]
    fails: Exception | None = None
    hold: threading.Event | None = None

    def profiles(self, *arguments: Any, **options: Any) -> list[VariantProfile]:
        self.made = []
        return [
            VariantProfile(0.0, 0.01 * 2**number, 0.05, 100.0, 0.01 * 2**number, 200.0, 0.9 + 0.05 * number, 10)
            for number in range(len(self._variants))
        ]

    def _open(self, number: int) -> Any:
        if self.hold is not None:
            assert self.hold.wait(10.0)
        if self.fails is not None:
            raise self.fails
        self.made.append(Pretended())
        return self.made[-1]


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    monkeypatch.setattr(module, "Loading", PretendedLoading)
    monkeypatch.setattr(module, "_LOOK_S", 1e6)
    events: list[Any] = []
    variants = [odin.Variant("small", "m"), odin.Variant("large", "m")]
    with Family(variants, stages=["cpu:0", "cpu:1"], on_event=events.append) as made:
        made.events = events
        yield made
    assert all(one.closed for one in made._loading.made)


def pipelines(family: Family) -> tuple[Pretended, Pretended]:
    return family.pipeline("small"), family.pipeline("large")


def full() -> QueueFullError:
    return QueueFullError(in_flight=4, waiting=8, limit=8, option="max_waiting")


def wait_for_request(family: Family) -> Pretended:
    """The large variant, once it is loaded and has a request."""
    deadline = time.monotonic() + 10
    while family.pipeline("large") is None or not family.pipeline("large").futures:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return family.pipeline("large")


def test_the_answer_is_that_of_the_variant_and_counted(family):
    small, _ = pipelines(family)
    future = family.submit(X, latency_s=1.0)
    assert not future.done()
    assert family.view().variants[0].under_way == 1
    small.futures[0].set_result("value")
    answer = future.result(1.0)
    assert answer[:5] == ("value", "small", 0.9, "full", 0.0)
    assert answer.step == "first"
    view = family.view().variants[0]
    assert (view.under_way, view.counts.answered, view.counts.samples, view.counts.asked) == (0, 1, 1, 1)


def test_who_is_turned_away_by_all_is_told_so(family):
    for pipeline in pipelines(family):
        pipeline.raises = full()
    with pytest.raises(QueueFullError, match="8 wait"):
        family(X, latency_s=1.0)
    with pytest.raises(QueueFullError, match="8 wait"):
        asyncio.run(family.asubmit(X, latency_s=1.0))
    assert [one.under_way for one in family.view().variants] == [0, 0]


@pytest.mark.parametrize("error", [PipelineClosedError("closed"), StageLostError("all lost"), full()])
def test_a_variant_that_is_gone_or_full_is_passed_by(family, error):
    small, large = pipelines(family)
    small.raises = error
    future = family.submit(X, latency_s=1.0)
    large.futures[0].set_result("value")
    assert future.result(1.0).variant == "large"
    assert asyncio.run(family.asubmit(X, latency_s=1.0)).variant == "large"


def test_a_broken_variant_is_unloaded_told_and_loaded_again(family):
    small, _ = pipelines(family)
    small.raises = StageLostError("all lost")
    family.look()
    assert family.pipeline("small") is None
    family.load("small")
    assert family.pipeline("small") not in (None, small)
    family.close()
    kinds = [type(event) for event in family.events]
    assert Fault in kinds
    assert kinds.count(ModelLoaded) == 3


def test_cancelling_withdraws_the_request(family):
    small, _ = pipelines(family)
    future = family.submit(X, latency_s=1.0)
    assert future.cancel()
    assert small.futures[0].cancelled()
    assert family.view().variants[0].under_way == 0


def test_a_failure_is_the_callers(family):
    small, _ = pipelines(family)
    future = family.submit(X)
    small.futures[0].set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        future.result(1.0)
    assert family.view().variants[0].counts.failed == 1


def test_a_variant_that_has_much_to_do_is_passed_by_for_one_that_is_in_time(family):
    small, large = pipelines(family)
    for _ in range(60):  # 10 ms each, on two stages
        family.submit(X)
    assert len(small.futures) == 60
    future = family.submit(X, latency_s=0.08)
    large.futures[0].set_result("value")
    answer = future.result(1.0)
    assert (answer.variant, answer.step) == ("large", "variant")
    assert family.view().variants[1].counts.interference == 1
    for one in small.futures:
        one.set_result("value")


def test_the_inputs_of_a_request_that_waits_for_a_load_are_copied(family):
    family.unload("large")
    hold = threading.Event()
    family._loading.hold = hold
    x = torch.zeros(1, 3)
    future = family.submit(x, accuracy=0.95)
    x.fill_(7.0)  # the caller has it back
    hold.set()
    large = wait_for_request(family)
    assert torch.equal(large.inputs[0][0], torch.zeros(1, 3))
    large.futures[0].set_result("value")
    assert future.result(1.0).variant == "large"


def test_a_variant_is_loaded_for_a_request_and_what_was_promised_counts(family):
    family.unload("large")
    future = family.submit(X, accuracy=0.95, latency_s=30.0)
    wait_for_request(family).futures[0].set_result("value")
    answer = future.result(1.0)
    assert (answer.variant, answer.step) == ("large", "load")
    assert answer.predicted_s >= 0.05


def test_what_could_not_be_loaded_is_told_and_not_tried_again_at_once(family):
    family.unload("large")
    family._loading.fails = OSError("no such file")
    future = family.submit(X, accuracy=0.95)
    with pytest.raises(OSError, match="no such file"):
        future.result(10.0)
    with pytest.raises(DeadlineExceededError, match="could not be loaded"):
        family(X, accuracy=0.95)
    with pytest.raises(DeadlineExceededError, match="could not be loaded"):
        asyncio.run(family.asubmit(X, accuracy=0.95))
    family.close()
    assert [event.part for event in family.events if isinstance(event, Fault)] == ["loading variant large"]


def test_who_names_a_variant_gets_it_and_no_other(family):
    small, large = pipelines(family)
    future = family.submit(X, variant="large", latency_s=1.0)
    large.futures[0].set_result("value")
    assert future.result(1.0)[1] == "large"
    assert asyncio.run(family.asubmit(X, variant="large")).variant == "large"
    large.raises = full()
    with pytest.raises(QueueFullError):
        family.submit(X, variant="large")
    assert not small.futures
    with pytest.raises(
        DeadlineExceededError, match=r"variant 'large' would be done in [\d.]+ ms, and 1\.0 ms"
    ) as caught:
        family(X, variant="large", latency_s=0.001)
    assert caught.value.refused
    with pytest.raises(ValueError, match="no variant 'huge'; there are small, large"):
        family.submit(X, variant="huge")


def test_who_names_a_variant_that_is_gone_has_it_loaded_once(family):
    _, large = pipelines(family)
    large.raises = StageLostError("all lost")
    with pytest.raises(StageLostError):
        family.submit(X, variant="large")
    family.unload("large")
    future = family.submit(X, variant="large")
    wait_for_request(family).futures[0].set_result("value")
    assert (future.result(1.0).variant, future.result(1.0).step) == ("large", "load")


def test_what_requests_got_and_why_is_told_at_the_end(family):
    small, large = pipelines(family)
    for accuracy, pipeline in ((0.0, small), (0.0, small), (0.95, large)):
        future = family.submit(X, accuracy=accuracy)
        pipeline.futures[-1].set_result("value")
        future.result(1.0)
    with pytest.raises(DeadlineExceededError):
        family(X, latency_s=0.001)
    family.close()
    told = [event for event in family.events if isinstance(event, FamilyCounted)]
    assert [one[1:] for one in map(msgspec.structs.astuple, told)] == [
        (1, (VariantCount("small", 2, asked=2), VariantCount("large", 1, asked=1)))
    ]
    assert event_text(told[0], ()) == "answered: small 2, large 1; 1 refused"


def test_asking_changes_nothing(family):
    before = family.view()
    assert family.ask(accuracy=0.95).variant == 1
    assert family.ask(latency_s=0.001).soonest == 0
    assert family.view() == before


def test_after_closing_nothing_is_taken(family):
    family.close()
    with pytest.raises(PipelineClosedError):
        family.submit(X)


def test_no_variant_fits(monkeypatch):
    monkeypatch.setattr(module, "Loading", PretendedLoading)
    with pytest.raises(ValueError, match="the smallest takes 100 MiB"):
        Family([odin.Variant("small", "m")], stages=["cpu:0"], memory_mib=50)


def test_infaas_starts_with_one_instance_and_refuses_nothing():
    policy = make_variant_policy("infaas")
    assert policy.starts_with_one
    assert not policy.refuses


def test_profiles_are_kept_by_what_they_depend_on(tmp_path):
    kept, profile = VariantProfiles(tmp_path), VariantProfile(0.01, 0.002, 3.0, 90.0, 0.01, 200.0, 0.97, 10, "digest")
    one = odin.Variant("a", "resnet18")
    key = one.key(["cpu:0"])
    assert kept.load(key) is None
    assert kept.store(key, profile)
    assert kept.load(key) == profile
    assert (
        odin.Variant("b", "resnet18", accuracy=0.5, form="exit-3", accuracy_lost=0.01).key(["cpu:0"]) == key
    )  # the same work
    others = [
        one.key(["cpu:1"]),
        odin.Variant("a", "resnet34").key(["cpu:0"]),
        odin.Variant("a", "resnet18", batch=4).key(["cpu:0"]),
        odin.Variant("a", "resnet18", engine="onnxruntime").key(["cpu:0"]),
        odin.Variant("a", torch.nn.Linear(2, 2)).key(["cpu:0"]),
    ]
    assert len({key, *others}) == 6
    next(tmp_path.iterdir()).write_text("{}")
    assert kept.load(key) is None


def test_a_module_with_other_weights_has_another_profile():
    model = torch.nn.Linear(2, 2)
    before = odin.Variant("a", model).key(["cpu:0"])
    assert odin.Variant("a", model).key(["cpu:0"]) == before
    with torch.no_grad():
        model.bias += 1
    assert odin.Variant("a", model).key(["cpu:0"]) != before


def test_a_line_through_latencies():
    assert line_through((1, 0.03), (4, 0.03)) == (0.0, 0.03)
    assert line_through((1, 0.03), (4, 0.3)) == (0.03, 0.0)  # dearer than in proportion: no negative intercept
    slope_s, intercept_s = line_through((1, 0.03), (4, 0.06))
    assert math.isclose(slope_s + intercept_s, 0.03)
    assert math.isclose(4 * slope_s + intercept_s, 0.06)


@pytest.mark.parametrize(("fields", "message"), [({"name": ""}, "name"), ({"accuracy": 2}, "accuracy=2")])
def test_a_variant_is_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        odin.Variant(**{"name": "a", "model": "m", **fields})
