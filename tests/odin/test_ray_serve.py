"""A pipeline as a deployment of Ray Serve, and stages that take their CPUs from a placement group."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from patience import PROMPT_S
from small_pipelines import images, small_chain

import odin
from odin import ray_serve
from odin.ray_serve import PipelineReplica, _group
from odin.stages.device import DeviceError, parse_devices, usable_cores


def has_serve() -> bool:
    return importlib.util.find_spec("ray.serve") is not None and importlib.util.find_spec("fastapi") is not None


def test_a_replicas_placement_group():
    assert _group(3, None)["placement_group_bundles"] == [{"CPU": 3.0}]
    assert _group(2, parse_devices("cpu:0-2,gpu:0"))["placement_group_bundles"] == [{"CPU": 3.0, "GPU": 1.0}]
    assert _group(2, parse_devices("here/cpu:0,there/cpu:0")) == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stages": 0}, "stages=0: at least one is needed"),
        ({"stages": "cpu:x"}, "cpu:x"),
        ({"stages": 1, "address": "auto"}, "a replica is in Serve's own cluster"),
    ],
)
def test_wrong_usage(options, says):
    with pytest.raises(ValueError, match=says):
        ray_serve.deployment("resnet50", **options)


def test_ray_serve_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.delattr(ray, "serve", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'ray\[serve\]'"):
        ray_serve.deployment("resnet50", stages=1)


class Node:
    """A node on whose cores another replica may be quicker."""

    def __init__(self, monkeypatch, free: tuple[int, ...]) -> None:
        self.free, self.tried = free, []
        monkeypatch.setattr(ray_serve, "list_devices_here", lambda: self)
        monkeypatch.setattr(ray_serve, "Pipeline", self.pipeline)

    @property
    def free_cores(self) -> tuple[int, ...]:
        return self.free

    def pipeline(self, source, *, stages):
        self.tried.append(stages)
        if len(self.tried) < 3:
            raise DeviceError("cpu:0 is taken")
        return "pipeline"


def test_cores_that_another_replica_took_first_are_let_be(monkeypatch):
    node = Node(monkeypatch, (0, 1, 2, 3))
    assert ray_serve._open("net", 1, {}) == "pipeline"
    assert node.tried == [["cpu:0"], ["cpu:1"], ["cpu:2"]]


def test_too_few_free_cores(monkeypatch):
    Node(monkeypatch, (3,))
    with pytest.raises(DeviceError, match=r"2 stages need as many free cores, and this node has 1: \[3\]"):
        ray_serve._open("net", 2, {})


@pytest.mark.ray
def test_a_replica_serves_arrays_and_tensors(two_cores):
    chain, (x,) = small_chain(), images(1)
    replica = PipelineReplica(chain, stages=2)

    async def ask():
        array = x.numpy().copy()
        array.flags.writeable = False  # as from Ray's object store
        assert (await replica(array)).tobytes() == chain(x).numpy().tobytes()
        assert torch.equal(await replica(x, timeout_s=PROMPT_S), chain(x))
        with pytest.raises(odin.DeadlineExceededError):
            await replica(x, timeout_s=-1.0)

    asyncio.run(ask())
    assert len(replica.view().stages) == 2
    replica.check_health()
    replica.__del__()
    with pytest.raises(odin.PipelineClosedError):
        replica.pipeline(x)


class Fake:
    """A pipeline all of whose stages are in these states."""

    def __init__(self, *states: str) -> None:
        self.states = states

    def view(self):
        return type("View", (), {"stages": [type("Stage", (), {"state": state}) for state in self.states]})

    def close(self, *, drain: bool) -> None:
        pass


@pytest.mark.parametrize(("states", "healthy"), [(("quiet", "lost"), True), (("lost", "lost"), False)])
def test_a_replica_is_healthy_while_a_stage_is_left(monkeypatch, states, healthy):
    monkeypatch.setattr(ray_serve, "_open", lambda *_: Fake(*states))
    replica = PipelineReplica("net", stages=2)
    if healthy:
        replica.check_health()
    else:
        with pytest.raises(odin.OdinError, match="all 2 stages"):
            replica.check_health()


IN_A_GROUP = """
import json, sys
import numpy as np
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from small_pipelines import images, small_chain
from odin.cluster.ray_runtime import RayRuntime

@ray.remote(num_cpus=0)
class Host:
    def serve(self, devices):
        import odin
        with odin.Pipeline(small_chain(), stages=devices, policy="static") as pipe:
            free = ray.available_resources().get("CPU", 0)
            (x,) = images(1)
            return free, bool((pipe(x) == small_chain()(x)).all())

if __name__ == "__main__":
    runtime = RayRuntime()
    cpus = ray.cluster_resources()["CPU"]
    group = placement_group([{"CPU": cpus}])
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    host = Host.options(scheduling_strategy=strategy).remote()
    print(json.dumps(ray.get(host.serve.remote(sys.argv[1].split(",")))))
    runtime.close()
"""


def run(code: str, *arguments: str, python: str = sys.executable) -> str:
    helpers = str(Path(__file__).parents[1] / "helpers")
    done = subprocess.run(
        [python, "-c", f"import sys; sys.path.insert(0, {helpers!r})\n{code}", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * PROMPT_S,
        env=_environment(helpers),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def _environment(helpers: str) -> dict[str, str]:

    return {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(len(usable_cores()) < 2, reason="two stages need two cores")
def test_stages_take_their_cpus_from_the_placement_group():
    """All of Ray's CPUs are in the group: stages that asked the cluster for theirs would wait for ever."""
    devices = ",".join(f"cpu:{core}" for core in usable_cores()[:2])
    assert json.loads(run(IN_A_GROUP, devices)) == [0, True]


IN_SERVE = """
import json, os, signal, time
import numpy as np
import ray
from ray import serve
import odin.ray_serve
from small_pipelines import images, small_chain
from odin.cluster.ray_runtime import RayRuntime

if __name__ == "__main__":
    runtime = RayRuntime(weight_nbytes=2**26)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    chain = small_chain()
    net = odin.ray_serve.deployment(chain, stages=1, policy="static")
    handle = serve.run(net.options(num_replicas=2).bind(), route_prefix=None)
    inputs = images(20)
    answers = [handle.remote(x.numpy()) for x in inputs]
    equal = [np.array_equal(a.result(timeout_s=60), chain(x).numpy()) for a, x in zip(answers, inputs)]
    stages = set()
    while len(stages) < 2:  # Serve chooses who answers
        (stage,) = handle.view.remote().result(timeout_s=60).stages
        stages.add((stage.device, stage.pid))
    try:
        handle.remote(inputs[0].numpy(), timeout_s=-1.0).result(timeout_s=60)
        late = ""
    except odin.DeadlineExceededError as error:
        late = str(error)
    for _, pid in stages:
        os.kill(pid, signal.SIGKILL)
    survived = np.array_equal(handle.remote(inputs[0].numpy()).result(timeout_s=60), chain(inputs[0]).numpy())
    serve.shutdown()
    print(json.dumps([equal, sorted(device for device, _ in stages), late, survived]))
    runtime.close()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not has_serve(), reason="Ray Serve is not installed: pip install 'ray[serve]'")
@pytest.mark.skipif(len(usable_cores()) < 2, reason="two replicas need two cores")
def test_two_replicas_take_a_core_each_and_serve_on_when_their_stages_are_killed():
    equal, devices, late, survived = json.loads(run(IN_SERVE))
    assert all(equal)
    assert len(set(devices)) == 2
    assert "deadline passed" in late
    assert survived
