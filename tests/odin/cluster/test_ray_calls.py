"""Control calls to Ray: refused once it is lost, and none is under way when this process disconnects."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import PROMPT_S

from odin.cluster import ray_calls, ray_watch
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


def test_a_control_process_elsewhere_may_be_away_for_a_while(monkeypatch: pytest.MonkeyPatch):
    now_s = [100.0]
    monkeypatch.setattr("odin.cluster.ray_watch.time.monotonic", lambda: now_s[0])
    watch = RayWatch.__new__(RayWatch)
    watch._gcs_seen_s = now_s[0]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        away = []
        for now_s[0] in (105.0, 129.0, 130.0):
            away.append(watch._is_away(address))
        listener.listen()
        for now_s[0] in (131.0, 200.0):
            away.append(watch._is_away(address))
    assert away == [False, False, True, False, False]
    assert ray_watch._GCS_AWAY_S == 30.0
