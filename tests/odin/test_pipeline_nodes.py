"""A pipeline across two nodes of a cluster, on two machines as far as the network can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from netns import TwoNodes, two_node_cluster, unavailable

from odin.stages.device import usable_cores

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available"),
    pytest.mark.skipif(len(usable_cores()) < 2, reason="two stages need two cores"),
]

SERVE = """
import json, os, random, signal, subprocess, sys
import torch
import odin
from losses import Losses, check_replaced
from small_pipelines import all_plans, images, small_chain
from patience import PROMPT_S

if __name__ == "__main__":
    address, stages, elsewhere = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
    chain, plans, losses = small_chain(), random.Random(0), Losses()
    with odin.Pipeline(chain, stages=stages, address=address, policy="static", on_event=losses) as pipe:
        inputs, futures = images(60), []
        for number, x in enumerate(inputs):
            if number % 5 == 0:
                pipe.migrate(plans.choice(all_plans(len(chain.layers))))
            futures.append(pipe.submit(x))
        equal = [torch.equal(future.result(PROMPT_S), chain(x)) for x, future in zip(inputs, futures)]
        infos = pipe.snapshot().stages
        queues = [[t.queue_s for t in timeline.stages] for timeline in pipe.timelines()]
        noted = pipe._assembly._look(1).report.note  # carried out by the far stage
        top = subprocess.run(
            ["ip", "netns", "exec", elsewhere, sys.executable, "-m", "odin.cli", "top", "--address", address, "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROMPT_S,
        )
        os.kill(infos[1].pid, signal.SIGKILL)  # namespaces share processes, so the far stage can be killed from here
        survived = [torch.equal(y, chain(x)) for x, y in zip(inputs, pipe.map(inputs))]
        check_replaced(pipe, losses, 1, infos[1].pid)
        survived += [torch.equal(y, chain(x)) for x, y in zip(inputs, pipe.map(inputs))]
        again = pipe.snapshot().stages[1].node_id
    print(json.dumps({
        "equal": equal,
        "nodes": [info.node_id for info in infos],
        "devices": [info.device for info in infos],
        "queue_s": [min(map(min, queues)), max(map(max, queues))],
        "survived": survived,
        "again": again,
        "noted": noted,
        "top": [top.stdout, top.stderr],
    }))
"""

UNKNOWN = """
import sys
import odin
from small_pipelines import small_chain

if __name__ == "__main__":
    try:
        odin.Pipeline(small_chain(), stages=["nowhere/cpu:0"], address=sys.argv[1])
    except odin.DeviceError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_node_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


def test_stages_on_two_nodes_serve_migrate_and_are_replaced_as_on_one(cluster):
    first, second = usable_cores()[:2]
    stages = f"{cluster.head.ip}/cpu:{first},{cluster.member.ip}/cpu:{second}"
    done = cluster.python(SERVE, cluster.address, stages, cluster.member.name)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["equal"] == [True] * 60
    assert len(set(seen["nodes"])) == 2
    assert [device.partition("/")[2] for device in seen["devices"]] == [f"cpu:{first}", f"cpu:{second}"]
    assert 0.0 <= seen["queue_s"][0] <= seen["queue_s"][1] < 60.0  # each on its own machine's clock
    assert isinstance(seen["noted"], str)
    shown, problem = seen["top"]
    assert shown, problem
    view = json.loads(shown)  # asked from the other machine
    assert (view["model"], view["completed"]) == ("residual", 60)
    assert [stage["node_id"] for stage in view["stages"]] == seen["nodes"]
    assert seen["survived"] == [True] * 120
    assert seen["again"] == seen["nodes"][1]


def test_an_unknown_node_is_refused_with_those_there_are(cluster):
    done = cluster.python(UNKNOWN, cluster.address)
    assert "'nowhere' names no node of the cluster" in done.stdout, done.stderr
    assert cluster.head.ip in done.stdout
    assert cluster.member.ip in done.stdout
