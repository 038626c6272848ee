"""The relay across two nodes with a long way between them: right results, nothing lost, and who is gone is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from netns import TwoNodes, two_node_cluster, unavailable

from odin.stages.device import usable_cores

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available"),
    pytest.mark.skipif(len(usable_cores()) < 2, reason="two nodes need two cores"),
]

SERVE = """
import json, os, signal, sys
import torch
import odin
from losses import Losses, check_replaced
from small_pipelines import images, small_chain

if __name__ == "__main__":
    address, stages = sys.argv[1], sys.argv[2].split(",")
    chain, losses = small_chain(), Losses()
    options = {"address": address, "policy": "relay", "share_devices": True, "on_event": losses}
    with odin.Pipeline(chain, stages=stages, **options) as pipe:
        inputs = images(200)
        expected = [chain(x) for x in inputs]
        equal = [torch.equal(y, after) for y, after in zip(pipe.map(inputs), expected)]
        one_by_one = [torch.equal(pipe(x), after) for x, after in zip(inputs[:10], expected)]
        pipe.policy = "static"
        planned = [torch.equal(y, after) for y, after in zip(pipe.map(inputs[:50]), expected)]
        pipe.policy = "relay"
        again = [torch.equal(y, after) for y, after in zip(pipe.map(inputs[:50]), expected)]
        ranges = [[(t.first, t.last) for t in timeline.stages] for timeline in pipe.timelines()]
        infos = pipe.snapshot().stages
        os.kill(infos[-1].pid, signal.SIGKILL)
        survived = [torch.equal(y, after) for y, after in zip(pipe.map(inputs), expected)]
        check_replaced(pipe, losses, len(infos) - 1, infos[-1].pid)
        survived += [torch.equal(y, after) for y, after in zip(pipe.map(inputs), expected)]
    print(json.dumps({
        "equal": [len(equal), len(one_by_one), len(planned), len(again), all(equal + one_by_one + planned + again)],
        "nodes": [info.node_id for info in infos],
        "ranges": ranges,
        "layers": len(chain.layers),
        "survived": survived,
    }))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_node_cluster(tmp_path_factory.mktemp("cluster"), cpus_per_node=3, delay_s=0.005) as nodes:
        yield nodes


@pytest.mark.parametrize("placement", ["AAB", "ABA"])
def test_results_are_right_and_a_lost_stage_is_replaced(cluster: TwoNodes, placement: str):
    cores = usable_cores()
    places = {"A": f"{cluster.head.ip}/cpu:{cores[0]}", "B": f"{cluster.member.ip}/cpu:{cores[1]}"}
    done = cluster.python(SERVE, cluster.address, ",".join(places[node] for node in placement))
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["equal"] == [200, 10, 50, 50, True]
    assert [seen["nodes"].index(node) for node in seen["nodes"]] == [placement.index(node) for node in placement]
    for stages in seen["ranges"]:
        assert [first for first, _ in stages] == [0, *(last for _, last in stages[:-1])]
        assert stages[-1][1] == seen["layers"]
    assert seen["survived"] == [True] * 400


CUT = """
import json, sys
import torch
import odin
from broken_connections import cut_connections_to
from losses import Losses
from small_pipelines import images, small_chain

if __name__ == "__main__":
    address, stages, far = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
    chain, losses = small_chain(), Losses()
    options = {"address": address, "policy": "static", "share_devices": True, "on_event": losses}
    with odin.Pipeline(chain, stages=stages, **options) as pipe:
        inputs = images(200)
        expected = [chain(x) for x in inputs]
        first, victim = (info.pid for info in pipe.snapshot().stages)
        cuts, equal = 0, []
        for number, y in enumerate(pipe.map(inputs)):
            if number == 50:  # with requests on the way, and nothing submitted after those
                cuts = cut_connections_to(far, pid=first)
            equal.append(torch.equal(y, expected[number]))
        back = losses.replaced(1, victim)
        equal += [torch.equal(y, after) for y, after in zip(pipe.map(inputs), expected)]
        view = pipe.snapshot()
    print(json.dumps({"cuts": cuts, "equal": equal, "failed": view.failed, "completed": view.completed,
                      "first": view.stages[0].pid == first, "second": view.stages[1].pid == back.pid != victim}))
"""


def test_what_is_lost_with_a_connection_between_two_stages_is_sent_again(cluster: TwoNodes):
    cores = usable_cores()
    places = f"{cluster.head.ip}/cpu:{cores[0]},{cluster.member.ip}/cpu:{cores[1]}"
    done = cluster.python(CUT, cluster.address, places, cluster.member.ip)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {
        "cuts": 1, "equal": [True] * 400, "failed": 0, "completed": 400, "first": True, "second": True
    }  # fmt: skip
