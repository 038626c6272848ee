"""Two pipelines on the same cores: planned together, and one of them held to a share."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from patience import PROMPT_S
from small_pipelines import images, small_chain

import odin
from odin.monitor.events import PlanChanged, PlannedTogether
from odin.stages.device import usable_cores

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def stages(ray_session: None) -> list[str]:
    """Two stages, on two cores if there are so many."""
    return [f"cpu:{core}" for core in itertools.islice(itertools.cycle(usable_cores()), 2)]


@contextlib.contextmanager
def busy(pipe: odin.Pipeline) -> Iterator[None]:
    """Requests flow meanwhile, and all are answered."""
    over, failed = threading.Event(), []

    def feed() -> None:
        def inputs():
            for x in itertools.cycle(images(8)):
                if over.is_set():
                    return
                yield x

        try:
            for _ in pipe.map(inputs()):
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PROMPT_S)
    assert failed == []


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PROMPT_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def of_kind(events: list[odin.Event], kind: type) -> list:
    return [event for event in list(events) if isinstance(event, kind)]


def test_two_pipelines_are_planned_together_and_who_stays_is_planned_alone_again(stages):
    if len(set(stages)) < 2:
        pytest.skip("one core: there is nothing to choose")
    chain = small_chain()
    layers = len(chain.layers)
    cats_events: list[odin.Event] = []
    dogs_events: list[odin.Event] = []
    options = {"stages": stages, "plan": f"{layers}|0", "policy": "together", "share_devices": True}
    with odin.Pipeline(chain, on_event=cats_events.append, **options) as cats, busy(cats):
        with odin.Pipeline(chain, on_event=dogs_events.append, **options) as dogs, busy(dogs):
            for events in (cats_events, dogs_events):
                wait_for(
                    lambda events=events: any(len(one.tenants) == 2 for one in of_kind(events, PlannedTogether)),
                    "the two were not planned together",
                )
            # All layers of both on one core is twice what it could be: one of them at least has moved.
            wait_for(
                lambda: any(one.decision == "move" for one in of_kind(cats_events + dogs_events, PlanChanged)),
                "nobody moved",
            )
            told = of_kind(dogs_events, PlannedTogether)[-1].tenants
            assert [one.name for one in told] == ["residual", "residual"]
            assert [one.devices for one in told] == [tuple(stages)] * 2
            assert all(sum(one.plan) == layers for one in told)
            wait_for(lambda: len(cats.view().together) == 2, "the view does not tell")
        wait_for(lambda: len(cats.view().together) == 1, "who stays was not planned alone")
        x = images(1)[0]
        assert (cats(x) == chain(x)).all()
        cats.policy = "static"
        wait_for(lambda: cats.view().together == (), "it is planned for itself by now")


def test_a_share_bounds_the_cpu_time_of_each_stage(stages):
    """At most that part, a window, and a request or two; on any machine, however slow or busy."""
    share = 0.2
    with odin.Pipeline(small_chain(), stages=stages, policy="static", share_devices=True, share=share) as pipe:
        assert (pipe.share, pipe.view().share) == (share, share)
        with busy(pipe):
            wait_for(lambda: pipe.view().completed > 50, "no requests are answered")
            processes = [psutil.Process(stage.pid) for stage in pipe.view().stages]
            begin_s, before_s = time.perf_counter(), [sum(one.cpu_times()[:2]) for one in processes]
            count = pipe.view().completed
            while time.perf_counter() < begin_s + 2.0:
                time.sleep(0.05)
            used_s = [sum(one.cpu_times()[:2]) - before for one, before in zip(processes, before_s, strict=True)]
            elapsed_s = time.perf_counter() - begin_s
            completed = pipe.view().completed - count
        assert completed > 0
        # Ray's own threads in the same processes take some, too.
        assert max(used_s) < (share + 0.2) * elapsed_s, (used_s, elapsed_s)


@pytest.mark.parametrize("share", [0, 2, "half"])
def test_a_share_that_is_none_is_refused_at_once(share):
    with pytest.raises(ValueError, match=r"share=.*from 0.01 to 1, such as 0.5"):
        odin.Pipeline(small_chain(), stages=["cpu:0"], share=share)
