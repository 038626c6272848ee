"""``odin cluster up | join ADDRESS | status | down``: a Ray cluster for pipelines over several machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from odin.cluster.nodes import Machine, NodeReport, node_reports
from odin.cluster.ray_token import token_enabled, token_exposed, token_path
from odin.cluster.reachable import check_address
from odin.cluster.started_nodes import ClusterError, Node, join, recall, start_head, stop

__all__ = ["add_parser", "nodes_table", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cluster`` and its four actions to the command line."""
    parser = subparsers.add_parser(
        "cluster",
        help="start, join, show and stop a Ray cluster",
        description="Start and stop a Ray cluster for pipelines over several machines. Only processes that "
        "this command started are stopped.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser("up", help="start the head of a new cluster on this machine")
    up.add_argument("--port", type=int, default=6379, help="the head's port, 0 for a free one (default %(default)s)")
    up.add_argument("--dashboard", action="store_true", help="start Ray's web dashboard, too")
    member = actions.add_parser("join", help="add this machine to a cluster")
    member.add_argument("address", metavar="ADDRESS", help="HOST:PORT of the head, as 'up' printed it")
    for action in (up, member):
        action.add_argument(
            "--node-ip-address",
            metavar="IP",
            help="address by which other machines reach this one; with 127.0.0.1 they cannot",
        )
        action.add_argument("--temp-dir", type=Path, metavar="DIR", help="Ray's folder for sockets and logs")
        action.add_argument("--num-cpus", type=int, metavar="N", help="cores that pipelines may use (default: all)")
    status = actions.add_parser("status", help="show the nodes with their cores and GPUs")
    status.add_argument("--address", metavar="ADDRESS", help="HOST:PORT of a cluster that was not started here")
    down = actions.add_parser("down", help="stop what 'up' or 'join' started on this machine")
    for action in (up, member, status, down):
        action.add_argument(
            "--state",
            default="default",
            metavar="NAME",
            help="name of the cluster, if several are started on this machine",
        )


def run(arguments: argparse.Namespace) -> int:
    """Carry out one action; returns the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        if arguments.action == "up":
            return _up(arguments, console)
        if arguments.action == "join":
            return _join(arguments, console)
        if arguments.action == "status":
            return _status(arguments, console)
        return _down(arguments, console)
    except (ClusterError, ConnectionError) as error:
        print(f"odin cluster {arguments.action}: {error}", file=sys.stderr)
        return 1


def nodes_table(reports: Iterable[NodeReport]) -> Table:
    """Render the nodes as a table."""
    table = Table("node", "address", "state", "Ray CPUs", "cores", "CPU", "GPUs")
    for report in reports:
        machine = report.machine
        table.add_row(
            report.node_id[:8],
            report.ip,
            "[green]alive[/]" if report.alive else "[red]dead[/]",
            f"{report.cpus:g}",
            _cores_text(machine) if machine else "?",
            escape(machine.cpu_model if machine else report.problem),
            escape(", ".join(f"{index}: {name}" for index, name in enumerate(machine.gpus)) if machine else "?") or "-",
        )
    return table


def _cores_text(machine: Machine) -> str:
    quota = machine.quota_cores
    return f"{machine.cores}, quota {quota:.3g}" if quota is not None and quota < machine.cores else str(machine.cores)


def _up(arguments: argparse.Namespace, console: Console) -> int:
    with console.status("starting the head"):
        node = start_head(
            name=arguments.state,
            node_ip_address=arguments.node_ip_address,
            port=arguments.port,
            temp_dir=arguments.temp_dir,
            num_cpus=arguments.num_cpus,
            dashboard=arguments.dashboard,
        )
    _print_plain(f"The head of a Ray cluster is up at {node.address}\n")
    here_only = node.address.startswith(("127.", "[::1]"))
    _print_plain("It can be reached from this machine only." if here_only else "On every other machine:")
    if token_enabled() and not here_only:
        path = token_path()
        if path is None:
            _print_plain("  export RAY_AUTH_TOKEN=...   # the same as here")
        else:
            host = node.address.rpartition(":")[0]
            _print_plain(
                f"  mkdir -p -m 700 ~/.ray && scp {host}:{path} ~/.ray/auth_token && chmod 600 ~/.ray/auth_token"
                "   # once: the token lets its holder run code on every node"
            )
    if not here_only:
        _print_plain(f"  scripts/cluster.sh join {node.address}")
    _print_plain(
        f"\nThen, here{'' if here_only else ' or there'}:\n  odin run resnet50 --input DIR --address {node.address}"
    )
    _print_plain(f"  scripts/cluster.sh status{_state_option(node)}\n  scripts/cluster.sh down{_state_option(node)}")
    _warn_exposed()
    return 0


def _join(arguments: argparse.Namespace, console: Console) -> int:
    with console.status(f"joining {arguments.address}"):
        node = join(
            arguments.address,
            name=arguments.state,
            node_ip_address=arguments.node_ip_address,
            temp_dir=arguments.temp_dir,
            num_cpus=arguments.num_cpus,
        )
    _print_plain(f"This machine is a node of the cluster at {node.address}")
    _print_plain(f"  scripts/cluster.sh status{_state_option(node)}\n  scripts/cluster.sh down{_state_option(node)}")
    _warn_exposed()
    return 0


def _status(arguments: argparse.Namespace, console: Console) -> int:
    address = arguments.address
    if address is None:
        node = recall(arguments.state)
        if node is None:
            raise ClusterError(f"no cluster {arguments.state!r} was started here; name one: --address HOST:PORT")
        if not node.running:
            raise ClusterError(
                f"the {node.role} {node.name!r} of {node.address}, started {node.started}, runs no more: it was killed "
                f"or the machine restarted; 'cluster down{_state_option(node)}' clears what is left"
            )
        address = node.address
    else:
        check_address(address)
    with console.status(f"asking the nodes at {address}"):
        reports = node_reports(address)
    console.print(nodes_table(reports))
    alive = sum(report.alive for report in reports)
    print(f"{alive} of {len(reports)} nodes alive, head at {address}")
    return 0


def _down(arguments: argparse.Namespace, console: Console) -> int:
    with console.status("stopping"):
        node = stop(arguments.state, notify=lambda message: print(message, file=sys.stderr))
    if node is None:
        print(f"nothing to stop: no cluster {arguments.state!r} was started here")
    elif node.role == "head":
        print(f"stopped the head at {node.address}; nodes that joined it end with 'cluster down' on their machines")
    else:
        print(f"this machine left the cluster at {node.address}")
    return 0


def _print_plain(text: str) -> None:
    print(text)  # not through rich: lines to copy must not be wrapped


def _state_option(node: Node) -> str:
    return "" if node.name == "default" else f" --state {node.name}"


def _warn_exposed() -> None:
    if token_enabled() and token_exposed():
        print(f"warning: other users can read {token_path()}: chmod 600 {token_path()}", file=sys.stderr)
