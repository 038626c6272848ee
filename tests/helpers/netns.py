"""Two machines for a test: two network namespaces of this one, joined by a cable (veth), each with a Ray node.

The cable may have a delay (:mod:`delayed_cable`). Each namespace has its own addresses, ports and loopback, so whatever
assumes "the same machine" because an address looks local fails here as it would between real ones. They share the
processes, files and shared memory.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from patience import PROMPT_S

_COUNTER = itertools.count()
_CABLE_LIMIT_S = 1800.0


def unavailable() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    probe = f"odin-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return "" if made.returncode == 0 else f"network namespaces cannot be made: {made.stderr.strip()}"


@dataclass(frozen=True)
class Network:
    """One namespace and the address that the other reaches it by."""

    name: str
    ip: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(
        self, command: Sequence[str], *, environment: dict[str, str] | None = None, timeout_s: float = 2 * PROMPT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and collect its output; never raises for its exit status.

        One that takes too long is aborted, so that Python says where it was; that is in the error.
        """
        with subprocess.Popen(
            self.command(command),
            env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)
                out, err = process.communicate(timeout=PROMPT_S)
                told = f"{self.command(command)} took more than {timeout_s} s:\n{out}\n{err}"
                raise AssertionError(told) from None
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def two_networks(*, delay_s: float = 0.0) -> Iterator[tuple[Network, Network]]:
    """Two namespaces joined by a cable; gone afterwards, with every process that still runs in them.

    Parameters
    ----------
    delay_s
        Seconds for which a frame is on its way, in either direction.
    """
    serial = f"{os.getpid()}-{next(_COUNTER)}"
    # Addresses for tests of network equipment (RFC 2544): no real network has them.
    subnet = f"198.18.{os.getpid() % 256}"
    first, second = Network(f"odin-{serial}-a", f"{subnet}.1"), Network(f"odin-{serial}-b", f"{subnet}.2")
    cable = Network(f"odin-{serial}-c", "") if delay_s else None
    networks = [first, second, *([cable] if cable else [])]
    with ExitStack() as cleanup:
        for network in networks:
            cleanup.callback(_remove, network)
            _ip("netns", "add", network.name)
            _ip("-n", network.name, "link", "set", "lo", "up")
        # Made inside, so that no name of the machine's own interfaces can clash.
        if cable is None:
            _join(first, "veth0", second, "veth0")
        else:
            _join(first, "veth0", cable, "left")
            _join(second, "veth0", cable, "right")
            cleanup.enter_context(_delayed(cable, delay_s))
        for network in (first, second):
            _ip("-n", network.name, "address", "add", f"{network.ip}/24", "dev", "veth0")
            # Ray finds a machine's own address by the route outwards.
            _ip("-n", network.name, "route", "add", "default", "dev", "veth0")
        yield first, second


def _join(one: Network, end: str, other: Network, other_end: str) -> None:
    _ip("-n", one.name, "link", "add", end, "type", "veth", "peer", "name", other_end, "netns", other.name)
    for network, name in ((one, end), (other, other_end)):
        _ip("-n", network.name, "link", "set", name, "mtu", "65000", "up")


@contextmanager
def _delayed(cable: Network, delay_s: float) -> Iterator[None]:
    """A process that passes frames on; it ends with its standard input, so with this process too."""
    program = str(Path(__file__).with_name("delayed_cable.py"))
    command = cable.command([sys.executable, program, str(delay_s), str(_CABLE_LIMIT_S)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the delayed cable did not start")
            yield
        finally:
            process.kill()


def _remove(network: Network) -> None:
    listed = subprocess.run(["ip", "netns", "pids", network.name], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", network.name], capture_output=True, check=False)


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster: ``head`` and ``member`` are machines of one node each.

    A driver has to run inside one of them (:meth:`python`), as a Ray driver needs a node on its own machine.
    """

    address: str
    head: Network
    member: Network
    environment: dict[str, str]

    def python(self, code: str, *arguments: str, timeout_s: float = 2 * PROMPT_S) -> subprocess.CompletedProcess[str]:
        """Run Python code on the head's machine, with the cluster's token in its environment."""
        command = [sys.executable, "-c", code, *arguments]
        return self.head.run(command, environment=self.environment, timeout_s=timeout_s)

    def odin(self, *arguments: str, on: Network | None = None) -> subprocess.CompletedProcess[str]:
        """Run the ``odin`` command on the head's machine, or on another one."""
        command = [sys.executable, "-m", "odin.cli", *arguments]
        return (on or self.head).run(command, environment=self.environment)


@contextmanager
def two_node_cluster(folder: Path, *, cpus_per_node: int = 2, delay_s: float = 0.0) -> Iterator[TwoNodes]:
    """A Ray cluster of two nodes on two machines, started and stopped by ``odin cluster``.

    Parameters
    ----------
    folder
        Empty folder for what the cluster remembers and its token; both nodes use it.
    cpus_per_node
        Cores that Ray hands out on each; both stand for the same real cores.
    delay_s
        As for :func:`two_networks`.
    """
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "XDG_STATE_HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }
    with ExitStack() as cleanup:
        head, member = cleanup.enter_context(two_networks(delay_s=delay_s))
        nodes = TwoNodes(f"{head.ip}:6379", head, member, environment)
        cpus = f"--num-cpus={cpus_per_node}"
        for network, state, action in ((head, "head", ("up",)), (member, "member", ("join", nodes.address))):
            # Before the start, so that one which is interrupted is cleaned up as well.
            cleanup.callback(nodes.odin, "cluster", "down", f"--state={state}")
            options = (f"--state={state}", f"--node-ip-address={network.ip}", cpus)
            done = nodes.odin("cluster", *action, *options, on=network)
            if done.returncode != 0:
                raise RuntimeError(f"odin cluster {' '.join(action)} failed:\n{done.stdout}{done.stderr}")
        yield nodes


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
