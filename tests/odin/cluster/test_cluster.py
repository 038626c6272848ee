"""A cluster is started, joined, shown and stopped on two machines, and what was not started here stays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from loads import alive
from netns import TwoNodes, two_networks, two_node_cluster, unavailable

from odin.cli.cluster import nodes_table
from odin.cluster.nodes import Machine, NodeReport, describe_machine
from odin.cluster.started_nodes import ClusterError, join, recall, start_head, stop

needs_namespaces = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and token of their own, so that the user's are not touched."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    return tmp_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# ---------------------------------------------------------------- refused before anything starts
def test_a_port_in_use(taken_port: int) -> None:
    with pytest.raises(ValueError, match=f"port {taken_port} is in use.*--port"):
        start_head(node_ip_address="127.0.0.1", port=taken_port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ValueError, match=r"198\.51\.100\.7 is not an address of this machine"):
        start_head(node_ip_address="198.51.100.7", port=0)


def test_fewer_than_no_cores() -> None:
    with pytest.raises(ValueError, match="num_cpus=-1: Ray hands out 0 or more cores"):
        start_head(port=0, num_cpus=-1)


@pytest.mark.parametrize("address", ["", "head", "head:", ":6379", "head:0", "head:70000", "head:ray"])
def test_join_needs_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        join(address)


def test_join_where_nobody_listens(taken_port: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with pytest.raises(ValueError, match=f"nobody answers at 127.0.0.1:{free}"):
        join(f"127.0.0.1:{free}")


def test_join_without_the_token(taken_port: int, state: Path) -> None:
    with pytest.raises(ValueError, match=f"no token at {state}/token.*copy that file from the head"):
        join(f"127.0.0.1:{taken_port}")


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 33])
def test_a_name_that_is_no_file_name(name: str) -> None:
    with pytest.raises(ValueError, match="up to 32 letters"):
        recall(name)


def test_nothing_to_stop() -> None:
    assert recall() is None
    assert stop() is None


def test_a_state_file_that_is_none(state: Path) -> None:
    folder = state / "odin" / "clusters"
    folder.mkdir(parents=True)
    (folder / "default.json").write_text("{}")
    with pytest.raises(ClusterError, match=r"default\.json is no state of a node"):
        recall()


# ---------------------------------------------------------------- what is shown
def test_this_machine() -> None:
    assert describe_machine().cores == len(os.sched_getaffinity(0))


def test_a_row_per_node() -> None:
    from rich.console import Console

    reports = [
        NodeReport("ab" * 28, "10.0.0.5", True, 8.0, Machine(16, "Some CPU", ("Some GPU", "Some GPU")), ""),
        NodeReport("cd" * 28, "10.0.0.6", False, 0.0, None, "[lost] the node"),
    ]
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # lives as long as the test
    console.print(nodes_table(reports))
    alive, dead = console.export_text().splitlines()[3:5]
    assert [cell.strip() for cell in alive.split("│")[1:-1]] == [
        "abababab", "10.0.0.5", "alive", "8", "16", "Some CPU", "0: Some GPU, 1: Some GPU",
    ]  # fmt: skip
    assert [cell.strip() for cell in dead.split("│")[1:-1]] == [
        "cdcdcdcd", "10.0.0.6", "dead", "0", "?", "[lost] the node", "?",
    ]  # fmt: skip


# ---------------------------------------------------------------- for real
ASK = """
import json, sys
from dataclasses import asdict
from odin.cluster.nodes import node_reports
print("REPORTS" + json.dumps([asdict(report) for report in node_reports(sys.argv[1])]))
"""


def ask(nodes: TwoNodes) -> list[dict[str, object]]:
    done = nodes.python(ASK, nodes.address)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("REPORTS")[2])


@pytest.mark.ray
@needs_namespaces
def test_two_machines(tmp_path: Path) -> None:
    with two_node_cluster(tmp_path) as nodes:
        reports = ask(nodes)
        assert sorted(report["ip"] for report in reports) == sorted([nodes.head.ip, nodes.member.ip])
        assert [(report["alive"], report["cpus"], report["problem"]) for report in reports] == [(True, 2.0, "")] * 2
        assert all(report["machine"]["cores"] == len(os.sched_getaffinity(0)) for report in reports)

        shown = nodes.odin("cluster", "status", "--state=head")
        assert shown.returncode == 0, shown.stderr
        assert f"2 of 2 nodes alive, head at {nodes.address}" in shown.stdout

        again = nodes.odin("cluster", "up", "--state=head")
        assert again.returncode == 1
        assert f"up since {recall('head').started}" in again.stderr

        head, member = recall("head"), recall("member")
        left = nodes.odin("cluster", "down", "--state=member", on=nodes.member)
        assert left.returncode == 0, left.stderr
        assert member.processes.members() == ()
        assert head.running, "stopping one node must not stop another one of this machine"
        assert recall("member") is None
        assert not member.temp_dir.exists()
    assert head.processes.members() == ()
    assert not head.temp_dir.exists()


@pytest.mark.ray
@needs_namespaces
def test_after_kill_9_the_rest_is_cleaned_up(tmp_path: Path) -> None:
    with two_networks() as (machine, _):
        odin = [sys.executable, "-m", "odin.cli", "cluster"]
        up = [*odin, "up", f"--node-ip-address={machine.ip}", "--num-cpus=1"]
        try:
            done = machine.run(up)
            assert done.returncode == 0, done.stderr
            node = recall()
            psutil.Process(node.processes.leader_pid).kill()
            shown = machine.run([*odin, "status"])
            assert shown.returncode == 1
            assert "runs no more" in shown.stderr
        finally:
            done = machine.run([*odin, "down"])
        assert done.returncode == 0, done.stderr
        assert node.processes.members() == ()
        assert recall() is None
        listed = subprocess.run(["ip", "netns", "pids", machine.name], capture_output=True, text=True, check=True)
        assert alive(map(int, listed.stdout.split())) == []


@pytest.mark.ray
def test_ray_s_own_words_when_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)Ray did not start.*path.*107 bytes"):
        start_head(port=0, temp_dir=tmp_path / ("x" * 100))
    assert recall() is None


@pytest.mark.ray
def test_a_head_on_loopback_listens_there_and_nowhere_else() -> None:
    # Ray replaced the address by one that other machines reach, and listened on all of them, without a word.
    try:
        node = start_head(node_ip_address="127.0.0.1", port=0, num_cpus=1)
        assert node.address.startswith("127.0.0.1:")
        connections = [c for process in node.processes.members() for c in process.net_connections("inet")]
        listening = {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
    finally:
        stop()
    assert not node.temp_dir.exists()
