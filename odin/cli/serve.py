"""``odin serve``: models over the network, by REST and gRPC of the Open Inference Protocol.

Exit status: 1 if no model could be served, or a port not be opened; 2 for wrong usage; 130 after Ctrl-C, 143 after
SIGTERM. The first signal lets requests under way finish, a second drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from odin.cli.arguments import add_engine, add_precision, positive, positive_number
from odin.models.model_names import check_model_name, check_weights_file
from odin.partitioner.files import check_writable
from odin.process.phases import tell_phases
from odin.process.signals import draining, importing
from odin.requests.admission import NONE, PREDICT
from odin.stages.device import parse_devices

if TYPE_CHECKING:  # they import torch, and what the extra "serve" installs
    from odin.server.config import Limits, ModelConfig
    from odin.server.life import Ports

__all__ = ["add_parser", "run"]

_LOOPBACK = "127.0.0.1"


def add_parser(subparsers: Any) -> None:
    """Add ``odin serve`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="serve models over the network, by the Open Inference Protocol",
        description="Serve a model, or all models of a folder, by REST and gRPC of the Open Inference Protocol (v2).",
        epilog="Exit status: 1 nothing could be served, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM.",
    )
    parser.add_argument(
        "what",
        metavar="MODEL|FOLDER",
        help="a model as for odin run, or a folder with a file NAME.toml or NAME.packed for each model",
    )
    one = parser.add_argument_group("one model", "with a folder these are fields of each model's file")
    one.add_argument("--name", help="name that clients ask for (default: the model's own)")
    one.add_argument("--stages", help="one device per stage: cpu:0,cpu:2-3,gpu:0; auto: every free one (default)")
    one.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file (default: random weights)")
    one.add_argument("--plan", metavar="COUNTS", help="layers per stage, such as 7|11 (default: the fastest)")
    one.add_argument(
        "--batch", type=positive, metavar="N", help="most images per micro-batch; larger requests are split (default 1)"
    )
    one.add_argument("--image-size", type=positive, metavar="PIXELS", help="height and width of the model's input")
    one.add_argument("--labels", metavar="FILE", help="names of the classes, one per line")
    one.add_argument(
        "--policy", help="decides where requests pass from stage to stage: auto, relay, filter, ... (default: auto)"
    )
    one.add_argument(
        "--admission",
        choices=(PREDICT, NONE),
        help=f"whether requests that would be late are refused (default {PREDICT})",
    )
    one.add_argument("--deadline-ms", type=positive_number, metavar="MS", help="deadline of requests that have none")
    one.add_argument("--max-in-flight", type=positive, metavar="N", help="most micro-batches in the stages")
    one.add_argument("--max-waiting", type=int, metavar="N", help="most micro-batches in the queue (default 1024)")
    one.add_argument(
        "--share",
        type=float,
        metavar="PART",
        help="largest part of each device's time to use, such as 0.5 (default: all)",
    )
    one.add_argument("--log", metavar="FILE", help="record every event in FILE, for odin replay")
    one.add_argument(
        "--dynamic-batching", action="store_true", default=None, help="batch waiting requests, up to --batch images"
    )
    one.add_argument(
        "--batch-wait-ms",
        type=_seconds,
        metavar="MS",
        help="how long a request may wait for others to be batched with (default 0)",
    )
    add_engine(one)
    add_precision(one, default=None, checked=False)
    packed = parser.add_argument_group("packed models", "files NAME.packed of a folder, made by odin pack")
    packed.add_argument(
        "--memory-mib",
        type=positive_number,
        default=2048.0,
        metavar="MIB",
        help="memory for loaded models; others are loaded when requests come (default 2048)",
    )
    packed.add_argument(
        "--fleet-stages",
        default="auto",
        metavar="CORES",
        help="cores that run them: auto, or cpu:0,cpu:1 (default: auto)",
    )
    network = parser.add_argument_group("network")
    network.add_argument("--host", default=_LOOPBACK, help="address to listen on (default: %(default)s, this machine)")
    network.add_argument("--http-port", type=_port, default=8000, metavar="PORT", help="0: any (default %(default)s)")
    network.add_argument("--grpc-port", type=_port, default=8001, metavar="PORT", help="0: any (default %(default)s)")
    network.add_argument("--token-file", metavar="FILE", help="clients must send the bearer token in FILE")
    network.add_argument("--tls-cert", metavar="FILE", help="TLS certificate for both ports, PEM")
    network.add_argument("--tls-key", metavar="FILE", help="its key, PEM")
    network.add_argument(
        "--max-request-mib", type=positive_number, default=64.0, metavar="MIB", help="largest request (default 64)"
    )
    network.add_argument(
        "--max-requests",
        type=positive,
        default=1024,
        metavar="N",
        help="most requests at a time; more are refused (default 1024)",
    )
    network.add_argument(
        "--drain-s",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds to finish requests when stopped (default 30)",
    )
    parser.add_argument("--access-log", metavar="FILE", help="write a line of JSON per request; -: to standard error")
    parser.add_argument(
        "--ready-file", metavar="FILE", help="written with the ports, as JSON, when all models are ready"
    )
    parser.add_argument("--address", help="HOST:PORT of the Ray cluster to use (default: start one)")
    parser.add_argument("--port", action=_TwoPorts, help=argparse.SUPPRESS)


class _TwoPorts(argparse.Action):
    """What other servers have, and this one has twice."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error("there is no --port: say --http-port for REST, and --grpc-port for gRPC")


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time of 0 s or more")
    return number


_OF_ONE = (
    "stages",
    "weights",
    "plan",
    "batch",
    "image_size",
    "labels",
    "policy",
    "admission",
    "deadline_ms",
    "max_in_flight",
    "max_waiting",
    "log",
    "engine",
    "precision",
    "calibration",
    "dynamic_batching",
    "batch_wait_ms",
    "share",
)
"""Options that are fields of a model's file."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    folder = Path(arguments.what) if Path(arguments.what).is_dir() else None
    if folder is None:
        if arguments.what.endswith("/"):
            raise ValueError(f"there is no folder {arguments.what}")
        check_model_name(arguments.what)
        if arguments.weights is not None:
            check_weights_file(arguments.weights)
        if arguments.stages not in (None, "auto"):
            parse_devices(arguments.stages)
        if arguments.labels is not None and not Path(arguments.labels).is_file():
            raise ValueError(f"--labels {arguments.labels}: no such file; name one with a line per class")
    for option, file in (("--log", arguments.log), ("--ready-file", arguments.ready_file)):
        if file is not None:
            check_writable(file, option)
    if arguments.access_log not in (None, "-"):
        check_writable(arguments.access_log, "--access-log")
    given = {name: getattr(arguments, name) for name in _OF_ONE if getattr(arguments, name) is not None}
    if folder is not None and (given or arguments.name):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in (*(["name"] if arguments.name else []), *given))
        raise ValueError(
            f"{options} with a folder: each model's file says it, as {', '.join(given) or 'its name'} = ..."
        )
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise ValueError("give --tls-cert and --tls-key together")
    token = None if arguments.token_file is None else _read_token(Path(arguments.token_file))
    console = Console(stderr=True)
    if arguments.host not in (_LOOPBACK, "localhost", "::1") and token is None:
        console.print(
            f"[yellow]whoever reaches {escape(arguments.host)} can use the models[/]: no --token-file is given"
        )
    with importing():
        try:
            import odin.server.grpc_service
            import odin.server.rest  # noqa: F401 - whether they are there
        except ImportError as error:
            raise ValueError(
                f"what serving needs is not installed ({error.name}): pip install 'odin-pipeline[serve]'"
            ) from None
        from odin.server.config import Limits

    limits = Limits(request_mib=arguments.max_request_mib, requests=arguments.max_requests, drain_s=arguments.drain_s)
    configs = [] if folder is not None else [_one_model(arguments.what, arguments.name, given)]
    return _serve(arguments, folder, configs, limits, token, console)


def _read_token(path: Path) -> str:
    token = path.read_text("utf-8").strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise ValueError(f"{path}: a token is one word of ASCII characters")
    return token


def _one_model(source: str, name: str | None, given: dict[str, Any]) -> ModelConfig:
    from odin.server.config import parse_model

    name = name or Path(source.rpartition(":")[2]).stem
    return parse_model({"source": source, **given}, name=name, folder=Path.cwd(), where=f"model {source}")


def _serve(
    arguments: argparse.Namespace,
    folder: Path | None,
    configs: list[ModelConfig],
    limits: Limits,
    token: str | None,
    console: Console,
) -> int:
    with importing():
        import torch

        from odin.server.dataplane import DataPlane
        from odin.server.grpc_service import GrpcServer
        from odin.server.http_server import HttpServer
        from odin.server.life import ray_kept, serve
        from odin.server.operations import Operations
        from odin.server.repository import Repository
        from odin.server.rest import make_app
        from odin.server.served_fleet import ServedFleet

    torch.set_num_threads(1)  # this process translates; the cores are the stages'
    # Inputs are views of what was received, which nobody writes to.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
    cert, key = arguments.tls_cert, arguments.tls_key
    tls = None if cert is None else (Path(cert), Path(key))

    async def live() -> bool:
        packed = None
        if folder is not None:
            packed = ServedFleet(folder, memory_mib=arguments.memory_mib, stages=arguments.fleet_stages)
        repository = Repository(folder, configs, drain_s=limits.drain_s, on_event=operations.on_event, packed=packed)
        names = repository.find()
        dataplane = DataPlane(repository, limits)
        app = make_app(dataplane, token=token, extra_routes=operations.routes(dataplane))
        http = HttpServer(app, host=arguments.host, port=arguments.http_port, limits=limits, tls=tls)
        grpc = GrpcServer(dataplane, host=arguments.host, port=arguments.grpc_port, limits=limits, token=token, tls=tls)
        telling = _Telling(console, arguments.host, arguments.ready_file, tls=tls is not None)
        try:
            return await serve(dataplane, http=http, grpc=grpc, names=names, stop=drain.is_set, telling=telling)
        finally:
            telling.end()

    operations = Operations(access_log=arguments.access_log)
    with closing(operations), draining() as drain, ray_kept(arguments.address):
        return 0 if asyncio.run(live()) else 1


class _Telling:
    """Tells a terminal of a server's life, and a file when it is ready."""

    def __init__(self, console: Console, host: str, ready_file: str | None, *, tls: bool) -> None:
        self._console, self._host, self._tls = console, host, tls
        self._ready_file = None if ready_file is None else Path(ready_file)
        self._ports: Ports | None = None
        self._phases = contextlib.ExitStack()
        self._began_s = time.perf_counter()

    def opened(self, ports: Ports) -> None:
        """See :class:`odin.server.life.Telling`."""
        self._ports = ports
        scheme = "https" if self._tls else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._say(
            f"REST  {scheme}://{host}:{ports.http}   (/ is a page to look at, /metrics for Prometheus)",
            f"gRPC  {host}:{ports.grpc}",
        )

    def loading(self, name: str) -> None:
        """See :class:`odin.server.life.Telling`."""
        self._console.print(f"loading {escape(name)}:", style="dim", highlight=False)
        self._phases.enter_context(
            tell_phases(lambda text: self._console.print(escape(text), style="dim", highlight=False))
        )

    def loaded(self, name: str, error: str) -> None:
        """See :class:`odin.server.life.Telling`."""
        self._phases.close()
        if error:
            self._console.print(f"[bold red]not served:[/] {escape(error)}")

    def ready(self) -> None:
        """See :class:`odin.server.life.Telling`."""
        assert self._ports is not None
        self._say(f"ready after {time.perf_counter() - self._began_s:.1f} s (process {os.getpid()})")
        if self._ready_file is not None:
            # Renamed, so that whoever waits for it never reads half of it.
            part = self._ready_file.with_name(f"{self._ready_file.name}.{os.getpid()}")
            part.write_text(json.dumps(self._ports._asdict()) + "\n", "utf-8")
            part.replace(self._ready_file)

    def draining(self, under_way: int) -> None:
        """See :class:`odin.server.life.Telling`."""
        self.end()
        self._say(f"ending: {under_way} requests under way" if under_way else "ending")

    def end(self) -> None:
        """No more is to be told."""
        self._phases.close()
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(escape(line), highlight=False, soft_wrap=True)
