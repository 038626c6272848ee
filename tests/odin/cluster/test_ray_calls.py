"""Control calls to Ray: refused once it is lost, and none is under way when this process disconnects."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from patience import PROMPT_S

from odin.cluster import ray_calls
from odin.cluster.ray_watch import RayWatch
from odin.errors import StageLostError


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if connected, with nothing refused, and as before afterwards."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(ray_calls, "_refused", None)
    return


def test_disconnecting_waits_for_a_call_under_way_and_refuses_later_ones():
    inside, leave = threading.Event(), threading.Event()

    def call() -> None:
        with ray_calls.calling():
            inside.set()
            leave.wait(PROMPT_S)

    with ThreadPoolExecutor(2) as pool:
        calling = pool.submit(call)
        inside.wait(PROMPT_S)
        assert not ray_calls.refuse_calls("the raylet has ended", timeout_s=0.0)
        disconnecting = pool.submit(ray_calls.refuse_calls, "anything else")
        with pytest.raises(StageLostError, match="the raylet has ended"), ray_calls.calling():
            pass
        assert not disconnecting.done()
        leave.set()
        assert disconnecting.result(PROMPT_S)
        calling.result(PROMPT_S)


def test_without_a_connection_no_new_ray_is_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(StageLostError, match="disconnected from Ray"), ray_calls.calling():
        pass


def test_the_exit_that_ray_asks_for_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def wait(*_: object, **__: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("ray.wait", wait)
    with pytest.raises(StageLostError, match="shut down during a call"):
        ray_calls.get("reference", timeout_s=PROMPT_S)


class Away(NamedTuple):
    """What a watch has told of a control process elsewhere, at which times."""

    troubles: list[tuple[float, str]]
    leaves: list[tuple[float, str]]
    cannot_start: list[tuple[float, bool]]


def watch_a_control_process(
    monkeypatch: pytest.MonkeyPatch, looks_s: Sequence[float], *, is_back: Container[float] = (), leave_after_s: float
) -> Away:
    """Run a watch that sees the control process at 100 s and looks again at given times."""
    now_s = [100.0]
    away = Away([], [], [])
    monkeypatch.setattr("odin.cluster.ray_watch.time.monotonic", lambda: now_s[0])
    watch = RayWatch.__new__(RayWatch)
    watch._lost = watch._away = None
    watch._lock, watch._watched = threading.Lock(), {}
    watch._gcs, watch._gcs_seen_s, watch._leave_after_s = ("10.0.0.1", 6379), now_s[0], leave_after_s
    watch._on_trouble = lambda text: away.troubles.append((now_s[0], text))
    watch._on_leave = lambda text: away.leaves.append((now_s[0], text))
    times = iter(looks_s)

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address == watch._gcs
        if now_s[0] not in is_back:
            raise ConnectionRefusedError
        return socket.socket()

    def look(timeout_s: float | None) -> bool:
        if timeout_s == 0.0:  # somebody asks: nothing has ended
            return False
        if now_s[0] > 100.0:
            away.cannot_start.append((now_s[0], watch.cannot_start is not None))
        now_s[0] = next(times, math.inf)
        return now_s[0] == math.inf

    monkeypatch.setattr("odin.cluster.ray_watch.socket.create_connection", connect)
    with contextlib.closing(socket.socket()) as watch._ended:
        watch._look = look
        watch._run()
    return away


def test_a_control_process_elsewhere_may_be_away_for_a_while(monkeypatch: pytest.MonkeyPatch):
    looks_s = (105.0, 109.0, 110.0, 115.0, 120.0, 125.0, 130.0, 134.0)
    away = watch_a_control_process(monkeypatch, looks_s, is_back=(120.0,), leave_after_s=30.0)
    assert away.cannot_start == [(at_s, at_s in (110.0, 115.0, 130.0, 134.0)) for at_s in looks_s]
    said = "Ray's control process (GCS) at 10.0.0.1:6379 does not answer: Ray can start nothing"
    assert away.troubles == [(110.0, said), (130.0, said)]  # once each time
    assert away.leaves == []


@pytest.mark.parametrize("leave_after_s", [30.0, 5.0])
def test_the_connection_is_given_up_before_ray_ends_this_process(monkeypatch: pytest.MonkeyPatch, leave_after_s):
    away = watch_a_control_process(monkeypatch, range(105, 200, 5), leave_after_s=leave_after_s)
    ((at_s, why),) = away.leaves
    assert at_s == 100.0 + leave_after_s
    assert why.startswith("Ray's control process (GCS) at 10.0.0.1:6379 does not answer")
    assert why.endswith("before Ray ends this program for it, it has disconnected")
