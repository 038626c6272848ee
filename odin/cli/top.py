"""``odin top``: watch a running pipeline from another terminal, on its machine or on another node of its cluster.

Exit status: 0 after q or the pipeline's end; 1 if there is no pipeline to watch or it stops answering; 130 after
Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import Any

import msgspec
from rich.console import Console

from odin.cluster.reachable import check_address
from odin.monitor.view.fleet_view import View, view_from_json
from odin.monitor.view.screen import plain, plain_width
from odin.monitor.view.terminal import watch
from odin.process.signals import importing
from odin.status.server import RemoteStatus, StatusClient, local_pipelines

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin top`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "top",
        help="watch a running pipeline, or a fleet",
        description="Watch a running pipeline: stages, slowdowns and their causes, throughput, moves; or a fleet: "
        "models in memory, requests, executors. q quits.",
        epilog="Exit status: 0 after q or the pipeline's end, 1 if there is none to watch, 2 for wrong usage.",
    )
    parser.add_argument(
        "pid", nargs="?", type=int, metavar="PID", help="process of the pipeline or fleet, needed if several run here"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="watch a pipeline on any node of this Ray cluster")
    parser.add_argument("--once", action="store_true", help="print the present state as plain text and exit")
    parser.add_argument("--json", action="store_true", help="print the present state as JSON and exit")


def run(arguments: argparse.Namespace) -> int:
    """Watch; returns the exit status."""
    try:
        where = _find_in_cluster(arguments) if arguments.address else _find_here(arguments.pid)
        with closing(StatusClient(where)) as client:
            if arguments.json:
                print(client.ask())
            elif arguments.once:
                print(plain(view_from_json(client.ask()), width=plain_width()))
            else:
                _watch(client)
    except ConnectionError as error:
        print(f"odin top: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(client: StatusClient) -> None:
    last: list[View] = []

    def next_view() -> View:
        try:
            last[:] = [view_from_json(client.ask())]
        except ConnectionError as error:
            if not last:
                raise
            if last[0].ended is None:  # it went away between two questions, without a last word
                last[:] = [msgspec.structs.replace(last[0], ended=str(error))]
        return last[0]

    watch(next_view, Console())


def _find_here(pid: int | None) -> int:
    pids = local_pipelines()
    if pid is not None:
        return pid
    if not pids:
        raise ConnectionError(
            "no pipeline runs on this machine; start one with odin run or odin.Pipeline, or give --address HOST:PORT "
            "of its Ray cluster"
        )
    if len(pids) > 1:
        raise ConnectionError(
            f"several pipelines run here; name one, such as odin top {pids[0]}; there are {', '.join(map(str, pids))}"
        )
    return pids[0]


def _find_in_cluster(arguments: argparse.Namespace) -> RemoteStatus:
    check_address(arguments.address)
    with importing():
        from odin.status.in_cluster import find_pipelines  # here: it takes seconds to import Ray

    found = find_pipelines(arguments.address)
    if arguments.pid is not None:
        found = [pipeline for pipeline in found if pipeline.pid == arguments.pid]
    if not found:
        raise ConnectionError(f"no pipeline runs in the cluster at {arguments.address}")
    if len(found) > 1:
        there = ", ".join(f"{pipeline.pid} (on {pipeline.status.host})" for pipeline in found)
        raise ConnectionError(f"several pipelines run in the cluster at {arguments.address}; name one by PID: {there}")
    return found[0].status
