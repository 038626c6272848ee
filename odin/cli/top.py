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
from odin.monitor.view.fleet_view import FleetState, View, view_from_json
from odin.monitor.view.screen import plain, plain_width
from odin.monitor.view.terminal import watch
from odin.process.signals import importing
from odin.status.server import LocalStatus, RemoteStatus, StatusClient, local_statuses

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
    parser.add_argument("--model", metavar="NAME", help="model of the pipeline, needed if a server has several")
    parser.add_argument("--address", metavar="HOST:PORT", help="watch a pipeline on any node of this Ray cluster")
    parser.add_argument("--once", action="store_true", help="print the present state as plain text and exit")
    parser.add_argument("--json", action="store_true", help="print the present state as JSON and exit")


def run(arguments: argparse.Namespace) -> int:
    """Watch; returns the exit status."""
    try:
        where = _find_in_cluster(arguments) if arguments.address else _find_here(arguments.pid, arguments.model)
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


def _find_here(pid: int | None, model: str | None) -> LocalStatus:
    found = tuple(status for status in local_statuses() if pid in (None, status.pid))
    if not found and pid is not None:
        raise ConnectionError(f"process {pid} serves no pipeline here")
    if not found:
        raise ConnectionError(
            "no pipeline runs on this machine; start one with odin run or odin.Pipeline, or give --address HOST:PORT "
            "of its Ray cluster"
        )
    if len(found) == 1 and model is None:
        return found[0]
    models = {status: name for status in found if (name := _model_of(status))}
    chosen = [status for status, name in models.items() if model in (None, name)]
    there = ", ".join(f"{name} ({status.pid})" for status, name in models.items())
    if not chosen:
        raise ConnectionError(f"no pipeline of {model or 'this user'} runs here; there are {there or 'others only'}")
    if len(chosen) > 1:
        raise ConnectionError(f"several pipelines run here; name one by its process or --model; there are {there}")
    return chosen[0]


def _model_of(where: LocalStatus | RemoteStatus) -> str:
    """The model of a pipeline, or a fleet's name; empty if it does not answer, or to another user only."""
    try:
        with closing(StatusClient(where)) as client:
            view = view_from_json(client.ask())
    except ConnectionError:
        return ""
    return view.name if isinstance(view, FleetState) else view.model


def _find_in_cluster(arguments: argparse.Namespace) -> RemoteStatus:
    check_address(arguments.address)
    with importing():
        from odin.status.in_cluster import find_pipelines  # here: it takes seconds to import Ray

    found = find_pipelines(arguments.address)
    if arguments.pid is not None:
        found = [pipeline for pipeline in found if pipeline.pid == arguments.pid]
    if not found:
        raise ConnectionError(f"no pipeline runs in the cluster at {arguments.address}")
    if arguments.model is not None:
        found = [pipeline for pipeline in found if _model_of(pipeline.status) == arguments.model]
        if not found:
            raise ConnectionError(f"no pipeline of {arguments.model} runs in the cluster at {arguments.address}")
    if len(found) > 1:
        there = ", ".join(f"{pipeline.pid} (on {pipeline.status.host})" for pipeline in found)
        raise ConnectionError(f"several pipelines run in the cluster at {arguments.address}; name one by PID: {there}")
    return found[0].status
