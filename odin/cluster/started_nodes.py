"""Ray nodes on this machine that ODIN started: start, remember and stop them, and no others.

``ray stop`` ends every Ray process of the machine, whoever started it. So each start here is remembered in a small
file under ``$XDG_STATE_HOME/odin/clusters`` (``~/.local/state`` by default), named by the user where one machine has
several, and ended by what that file says.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from odin.cluster.ray_folder import make_ray_folder, remove_folder
from odin.cluster.ray_patience import be_patient
from odin.cluster.ray_token import ensure_token, token_enabled, token_path
from odin.partitioner.files import write_whole
from odin.process.groups import ProcessGroup, start_group
from odin.process.signals import held

__all__ = ["ClusterError", "Node", "join", "recall", "start_head", "stop"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_WORKER_PORTS = (10_002, 19_999)
"""Those that Ray gives its workers on every node, first and last."""
_RAYS_PORTS = {8265: "its dashboard", 52_365: "its dashboard's agent"}
"""Those that Ray keeps for itself, whether it uses them or not."""
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): ", re.MULTILINE)
_JOIN_HINT = re.compile(r"ray start --address='([^']+)'")


class ClusterError(RuntimeError):
    """A Ray node could not be started, or not be stopped; the message says why and what to do."""


@dataclass(frozen=True)
class Node:
    """A Ray node that ODIN started on this machine, as its state file keeps it.

    Attributes
    ----------
    name
        The state's name, by which it is stopped.
    role
        ``"head"`` or ``"member"``.
    address
        ``IP:PORT`` of the cluster's head.
    temp_dir
        Where Ray keeps this node's sockets and logs.
    owns_temp_dir
        Whether ``temp_dir`` was chosen here and goes away with the node.
    started
        When, ISO 8601 in UTC.
    processes
        What identifies its processes.
    """

    name: str
    role: str
    address: str
    temp_dir: Path
    owns_temp_dir: bool
    started: str
    processes: ProcessGroup

    @property
    def running(self) -> bool:
        """Whether its first process still runs; False after a reboot or ``kill -9``."""
        members = self.processes.members()
        return bool(members) and members[0].pid == self.processes.leader_pid


def start_head(
    *,
    name: str = "default",
    node_ip_address: str | None = None,
    port: int = 6379,
    temp_dir: Path | None = None,
    num_cpus: int | None = None,
    dashboard: bool = False,
    timeout_s: float = 90.0,
) -> Node:
    """Start the head of a new cluster on this machine and return when it accepts nodes.

    Parameters
    ----------
    name
        Name of the state file.
    node_ip_address
        Address of this machine that others reach it by; Ray's choice by default. With ``127.0.0.1`` the node listens
        on this machine only; with any other address Ray listens on all of the machine's.
    port
        Port of the head; 0 takes a free one.
    temp_dir
        Ray's folder for sockets and logs; one of our own by default.
    num_cpus
        Cores that Ray hands out; all by default.
    dashboard
        Whether Ray's web pages are started too.
    timeout_s
        Seconds to wait for the head.

    Raises
    ------
    ValueError
        If the port is taken, the address is not this machine's, or the name does not fit.
    ClusterError
        If a node of this name runs already, or Ray does not start.
    """
    with _locked(name):
        _refuse_running(name)
        _check_port(node_ip_address, port)
        options = ["--head", f"--port={port}", f"--include-dashboard={str(dashboard).lower()}", *_worker_ports(port)]
        if token_enabled():
            ensure_token()
        return _start(name, "head", "", options, node_ip_address, temp_dir, num_cpus, timeout_s)


def join(
    address: str,
    *,
    name: str = "default",
    node_ip_address: str | None = None,
    temp_dir: Path | None = None,
    num_cpus: int | None = None,
    timeout_s: float = 90.0,
) -> Node:
    """Start a node on this machine that joins the cluster at ``address`` (``HOST:PORT``).

    The other parameters are :func:`start_head`'s.

    Raises
    ------
    ValueError
        If the address has no port or nobody answers there, or this machine lacks the cluster's token.
    ClusterError
        If a node of this name runs already, or Ray does not start.
    """
    with _locked(name):
        _refuse_running(name)
        _check_reachable(address)
        path = token_path()
        if token_enabled() and path is not None and not path.exists():
            raise ValueError(
                f"no token at {path}: copy that file from the head (mode 600), or set RAY_AUTH_TOKEN to what "
                "'ray get-auth-token' prints there; RAY_AUTH_MODE=disabled joins a cluster that asks for none"
            )
        options = [f"--address={address}"]
        return _start(name, "member", address, options, node_ip_address, temp_dir, num_cpus, timeout_s)


def recall(name: str = "default") -> Node | None:
    """The node that was started under this name, running or not; None if there is none."""
    path = _state_path(name)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["temp_dir"] = Path(fields["temp_dir"])
        return Node(**{**fields, "processes": ProcessGroup(**fields["processes"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(f"{path} is no state of a node ({error}): stop its Ray by hand, then remove it") from error


def stop(name: str = "default", *, notify: Callable[[str], None] = lambda message: None) -> Node | None:
    """Stop the node of this name and forget it; None if there was none. Other Ray processes are left alone.

    ``notify`` is told in a line when a process has to be killed.

    Raises
    ------
    ClusterError
        If a process of it is still there afterwards; the state is kept then.
    """
    with _locked(name):
        node = recall(name)
        if node is not None:
            left = node.processes.end(notify=notify)
            if left:
                raise ClusterError(f"processes {', '.join(map(str, left))} did not end, not even when killed")
            _forget(node)
        return node


# ---------------------------------------------------------------- starting
def _start(
    name: str,
    role: str,
    address: str,
    options: Sequence[str],
    node_ip_address: str | None,
    temp_dir: Path | None,
    num_cpus: int | None,
    timeout_s: float,
) -> Node:
    """Start Ray's processes and wait until they are up; the name must be free and locked."""
    if num_cpus is not None and num_cpus < 0:
        raise ValueError(f"num_cpus={num_cpus}: Ray hands out 0 or more cores")
    folder = _make_temp_dir() if temp_dir is None else temp_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Ray itself would replace a loopback address by one that other machines reach.
    ray = "odin.cluster.ray_loopback" if _is_loopback(node_ip_address) else "ray.scripts.scripts"
    command = [sys.executable, "-m", ray, "start", "--block", "--disable-usage-stats", *options]
    command.append(f"--temp-dir={folder}")
    command += [f"--node-ip-address={node_ip_address}"] if node_ip_address else []
    command += [f"--num-cpus={num_cpus}"] if num_cpus is not None else []
    # Ray runs workers at niceness 15 unless told otherwise, and a stage may not be allowed to undo it.
    environment = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0", **os.environ}
    be_patient(environment)  # with a node of Ray that ends itself end the stages that serve
    log = folder / f"ray_start_{name}.log"
    node: Node | None = None
    try:
        with held(), log.open("wb") as output:  # a signal must not come between what starts and who ends it
            processes = start_group(command, environment=environment, output=output)
            node = Node(name, role, address, folder, temp_dir is None, _now(), processes)
            _remember(node)  # from here on a crash leaves something that "stop" can clean up
        address = _wait_ready(log, processes, timeout_s) or address
    except BaseException:
        if node is not None:
            node.processes.end(grace_s=6.0)
            _forget(node)
        raise
    node = replace(node, address=address)
    _remember(node)
    return node


def _is_loopback(node_ip_address: str | None) -> bool:
    if node_ip_address == "localhost":
        return True
    try:
        return node_ip_address is not None and ipaddress.ip_address(node_ip_address).is_loopback
    except ValueError:
        return False


def _refuse_running(name: str) -> None:
    before = recall(name)
    if before is None:
        return
    if before.processes.members():
        raise ClusterError(
            f"{before.role} {name!r} of the cluster at {before.address} is up since {before.started}: stop it first, "
            "or start another one with --state NAME"
        )
    _forget(before)  # left by a reboot or kill -9


def _wait_ready(log: Path, processes: ProcessGroup, timeout_s: float) -> str:
    """Wait until Ray says that the node is up; returns the head's address where this is the head, else ``""``."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        text = log.read_text(encoding="utf-8", errors="replace")
        # Ray's last line at start; the one with the address, which its other clients read as well, is before it.
        if "until terminated by a signal" in text:
            address = _JOIN_HINT.search(text)
            return address[1] if address else ""
        if not processes.members():
            raise ClusterError(f"Ray did not start; it said:\n{_tail(log)}")
        time.sleep(0.1)
    raise ClusterError(f"Ray did not start within {timeout_s:.0f} s; it said:\n{_tail(log)}")


def _tail(log: Path, lines: int = 12) -> str:
    """The last that Ray said: its last exception without the traceback, or some lines."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for exception in [*_EXCEPTION.finditer(text)][-1:]:
        text = text[exception.start() :]
    return "\n".join(text.splitlines()[-lines:])


def _worker_ports(port: int) -> list[str]:
    """Options that leave the head's port out of those that Ray gives its workers, which it does not do by itself."""
    first, last = _WORKER_PORTS
    if not first <= port <= last:
        return []
    first, last = (first, port - 1) if port - first > last - port else (port + 1, last)
    return [f"--min-worker-port={first}", f"--max-worker-port={last}"]


def _check_port(node_ip_address: str | None, port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} does not exist; take one of 1024..65535, or 0 for any free one")
    if port in _RAYS_PORTS:
        raise ValueError(f"port {port} is kept by Ray for {_RAYS_PORTS[port]}; take another one, such as 6379, or 0")
    family = socket.AF_INET6 if node_ip_address and ":" in node_ip_address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((node_ip_address or "", port))
        except socket.gaierror as error:
            raise ValueError(f"{node_ip_address} is no IP address") from error
        except OSError as error:
            if isinstance(error, PermissionError):
                raise ValueError(f"port {port} needs root; choose one above 1023 with --port") from error
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} is in use, perhaps by another Ray: choose another with --port, or 0 for any"
                ) from error
            raise ValueError(f"{node_ip_address} is not an address of this machine ({error.strerror})") from error


def _check_reachable(address: str, timeout_s: float = 5.0) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ValueError(
            f"{address!r} is no address: write HOST:PORT as 'cluster up' printed it, such as 10.0.0.5:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise ValueError(
            f"nobody answers at {address} ({error}): is the head up, the address right, and the port open to this "
            "machine?"
        ) from error


# ---------------------------------------------------------------- what is remembered
def _state_path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"state {name!r}: take up to 32 letters, digits, '.', '_' or '-'")
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "odin" / "clusters" / f"{name}.json"


def _remember(node: Node) -> None:
    text = json.dumps(asdict(node), indent=1, default=str)
    write_whole(_state_path(node.name), f"{text}\n".encode())


def _forget(node: Node) -> None:
    if node.owns_temp_dir:
        remove_folder(node.temp_dir)
    _state_path(node.name).unlink(missing_ok=True)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Let one start or stop of this name run at a time."""
    path = _state_path(name).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_temp_dir() -> Path:
    try:
        return make_ray_folder()
    except PermissionError as error:
        raise ClusterError(f"{error.filename}: {error.strerror}, or name another folder with --temp-dir") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
