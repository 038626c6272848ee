"""Ray of a server: it starts beside everything else, and stays until the end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from odin.server import life


class FakeRuntime:
    """Stands in for a connection to Ray, which comes when it may, or fails."""

    made: list[FakeRuntime]
    may_come: threading.Event
    fails: Exception | None

    def __init__(self, *, address: str | None, weight_nbytes: int) -> None:
        assert type(self).may_come.wait(30)
        if type(self).fails is not None:
            raise type(self).fails
        self.address, self.nbytes, self.closed = address, weight_nbytes, False
        self.made.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> Any:
    FakeRuntime.made, FakeRuntime.may_come, FakeRuntime.fails = [], threading.Event(), None
    monkeypatch.setattr(life, "RayRuntime", FakeRuntime)
    return FakeRuntime


def test_the_rest_goes_on_while_an_embedded_ray_starts(runtimes: Any) -> None:
    with life.ray_kept(None):
        assert runtimes.made == []
        runtimes.may_come.set()
    (runtime,) = runtimes.made
    assert (runtime.address, runtime.closed) == (None, True)
    assert runtime.nbytes >= 256 * 2**20


def test_what_goes_wrong_meanwhile_waits_for_ray_and_ends_it(runtimes: Any) -> None:
    runtimes.may_come.set()
    with pytest.raises(OSError, match="port"), life.ray_kept(None):
        raise OSError("port")
    assert runtimes.made[0].closed


def test_that_an_embedded_ray_does_not_start_is_for_the_models_to_say(runtimes: Any) -> None:
    runtimes.fails = ConnectionError("no room")
    runtimes.may_come.set()
    with life.ray_kept(None):
        pass
    assert runtimes.made == []


def test_a_cluster_is_connected_to_before_anything_else(runtimes: Any) -> None:
    runtimes.may_come.set()
    with life.ray_kept("10.0.0.1:6379"):
        (runtime,) = runtimes.made
        assert (runtime.address, runtime.closed) == ("10.0.0.1:6379", False)
    assert runtime.closed


def test_a_cluster_that_is_not_there_ends_the_server(runtimes: Any) -> None:
    runtimes.fails = ConnectionError("no Ray cluster at 10.0.0.1:6379")
    runtimes.may_come.set()
    with pytest.raises(ConnectionError, match="no Ray cluster"), life.ray_kept("10.0.0.1:6379"):
        pytest.fail("nothing is opened")
