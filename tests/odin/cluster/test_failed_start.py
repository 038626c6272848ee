"""After a start that failed all devices are free at once, so that the next pipeline or fleet gets them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from small_pipelines import images, small_chain

import odin
from odin.cluster import deployment
from odin.cluster.placement import place
from odin.fleet.packing import pack_chain
from odin.stages.actor import StageInfo
from odin.stages.device import Device, DeviceError
from odin.stages.lease import Lease, free_indices

pytestmark = pytest.mark.ray


@pytest.fixture
def second_is_taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody takes the second device after it was found free, before its stage does."""
    taken: list[Lease] = []

    def place_then_take(devices: Any, **options: Any) -> Any:
        placed = place(devices, **options)
        taken.append(Lease(placed[1][0], label="another pipeline"))
        return placed

    monkeypatch.setattr("odin.cluster.startup.place", place_then_take)
    monkeypatch.setattr("odin.fleet.fleet.place", place_then_take)
    yield
    taken[0].release()


def free_of(devices: list[str]) -> list[int]:
    return list(free_indices("cpu", [Device.parse(device).indices[0] for device in devices]))


def test_what_a_pipeline_had_taken_when_one_of_its_stages_failed(two_cores: list[str], second_is_taken: None):
    # The first stage was asked to end, but not waited for: for some tens of milliseconds it held its core still.
    with pytest.raises(DeviceError, match=r"in use by .*another pipeline"):
        odin.Pipeline(small_chain(), stages=two_cores)
    assert len(free_of(two_cores[:1])) == 1


def test_what_a_pipeline_had_taken_when_it_was_interrupted(two_cores: list[str], monkeypatch: pytest.MonkeyPatch):
    chain, answers_of_started = small_chain(), deployment._answers_of_started

    def interrupted(calls: Any, devices: Any) -> list[Any]:
        answers = answers_of_started(calls, devices)
        if answers and isinstance(answers[0], StageInfo):
            raise KeyboardInterrupt
        return answers

    monkeypatch.setattr(deployment, "_answers_of_started", interrupted)
    with pytest.raises(KeyboardInterrupt):
        odin.Pipeline(chain, stages=two_cores)
    assert len(free_of(two_cores)) == 2
    monkeypatch.undo()
    (x,) = images(1)
    with odin.Pipeline(chain, stages=two_cores) as pipe:
        assert torch.equal(pipe(x), chain(x))


def test_what_a_fleet_had_taken_when_one_of_its_executors_failed(
    two_cores: list[str], second_is_taken: None, tmp_path: Path
):
    pack_chain(small_chain(), tmp_path, name="m", baseline_s={1: 0.001})
    with pytest.raises(DeviceError, match=r"in use by .*another pipeline"):
        odin.Fleet(tmp_path, stages=two_cores)
    assert len(free_of(two_cores[:1])) == 1


@pytest.mark.parametrize("when", ["open", "warm_up", "connect"])
def test_a_stage_killed_while_it_is_started_is_told_as_such(
    two_cores: list[str], monkeypatch: pytest.MonkeyPatch, when: str
):
    do = getattr(deployment.Deployment, when)

    def killed_before(self: Any, *given: Any, **options: Any) -> Any:
        if not self._pids:
            self._pids = ray.get([actor.pid.remote() for actor in self._actors])
        os.kill(self._pids[1], signal.SIGKILL)
        return do(self, *given, **options)

    monkeypatch.setattr(deployment.Deployment, when, killed_before)
    with pytest.raises(odin.StageLostError, match=r"process ended while it was started.*fewer stages"):
        odin.Pipeline(small_chain(), stages=two_cores)
    assert len(free_of(two_cores)) == 2
