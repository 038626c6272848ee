"""Malformed requests to a whole server: no answer that says it is the server's fault, no hang, nothing that grows.

``odin serve`` has four models: plain, with dynamic batching, packed (a fleet), and a family of two variants. It gets
valid requests with some of their bytes changed, by HTTP and by gRPC, HTTP/2 that makes no sense, and what schemathesis
makes of the server's OpenAPI description; then a thousand connections stay open and idle, others send slowly or close
one half, while requests are answered. Wrong are 500 and every other 5xx but 504 (a changed ``timeout`` may pass), by
gRPC ``UNKNOWN``, ``INTERNAL``, ``UNAVAILABLE`` and ``DATA_LOSS``, and what is not answered within ``--patience``.

``python -m benchmarks.malformed``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import torch

from benchmarks.common import Environment, mib, process_tree, pss_nbytes, report, write_result
from benchmarks.malformed_clients import Sent, idle, meaningless_frames, send_calls, send_http
from benchmarks.malformed_requests import MODELS, SIZE
from benchmarks.malformed_schema import ask_by_description
from benchmarks.serving_servers import Served, start
from odin.stages.device import usable_cores
from odin_lab.load.client import Input

__all__ = ["large", "main", "small"]


class Size(NamedTuple):
    """What a server takes: bytes of memory, descriptors and threads of all its processes."""

    memory_nbytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Size:
        """Now."""
        tree, descriptors, threads = process_tree(pid), 0, 0
        for one in tree:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(one)
                descriptors += process.num_fds()
                threads += process.num_threads()
        return cls(pss_nbytes(tree), descriptors, threads)


class Row(NamedTuple):
    """One kind of requests: how many, what came of them, and what the server took before and after."""

    kind: str
    sent: Sent
    seconds: float
    before: Size
    after: Size


def _net(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * width, 10),
    ).eval()


def small() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """A network that takes next to no time."""
    torch.manual_seed(1)
    return _net(4), (torch.zeros(1, 1, SIZE, SIZE),)


def large() -> tuple[torch.nn.Module, tuple[torch.Tensor]]:
    """The same, wider."""
    torch.manual_seed(2)
    return _net(16), (torch.zeros(1, 1, SIZE, SIZE),)


def main() -> int:
    """Send everything and print; returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000, help="by HTTP, and by gRPC (default %(default)s)")
    parser.add_argument("--frames", type=int, default=5_000, help="connections of HTTP/2 (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=120, help="that schemathesis gets (default %(default)s)")
    parser.add_argument("--connections", type=int, default=1_000, help="that stay idle (default %(default)s)")
    parser.add_argument("--patience", type=float, default=30.0, metavar="S", help="for an answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    arguments = parser.parse_args()
    environment = Environment.collect(("torch", "uvicorn", "grpcio", "schemathesis"))
    cores, inputs = usable_cores()[:2], (Input("input", "FP32", (1, 1, SIZE, SIZE)),)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "models"
        _write_models(folder, cores)
        command = [sys.executable, "-m", "odin", "serve", str(folder), "--http-port", "0", "--grpc-port", "0"]
        with start(command, inputs) as served:
            rest, grpc_address = (urlsplit(served.ways[way].url).netloc for way in ("rest", "grpc"))
            chance = random.Random(arguments.seed)
            many, patience_s = arguments.requests, arguments.patience
            kinds: dict[str, Callable[[], Coroutine[Any, Any, Sent]]] = {
                "warm-up, not counted": lambda: _both(rest, grpc_address, chance, patience_s),
                "HTTP": lambda: send_http(rest, many, chance, patience_s),
                "gRPC": lambda: send_calls(grpc_address, many, chance, patience_s),
                "HTTP/2": lambda: meaningless_frames(grpc_address, arguments.frames, chance, patience_s),
                "by the description": lambda: ask_by_description(rest, MODELS, Path(scratch), arguments.seconds),
                "idle connections": lambda: idle(rest, grpc_address, arguments.connections, chance, patience_s),
            }
            for kind, send in kinds.items():
                before, begin_s = Size.of(served.pid), time.perf_counter()
                sent = asyncio.run(send())
                rows.append(Row(kind, sent, time.perf_counter() - begin_s, before, Size.of(served.pid)))
                print(f"{kind}: {sent.requests} requests, wrong: {sent.wrong or 'none'}", file=sys.stderr)
            _check_alive(served, inputs)
    counted = rows[1:]
    report(
        "Malformed requests",
        ["", "requests", "answers", "wrong", "slowest, s", "seconds", "MiB", "descriptors", "threads"],
        [_cells(row) for row in counted],
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=counted)
    return int(any(row.sent.wrong for row in counted))


def _cells(row: Row) -> list[str]:
    answers = ", ".join(f"{name}: {count:,}" for name, count in sorted(row.sent.answers.items()))
    sizes = [
        f"{row.before.descriptors} -> {row.after.descriptors}",
        f"{row.before.threads} -> {row.after.threads}",
    ]
    memory = f"{mib(row.before.memory_nbytes)} -> {mib(row.after.memory_nbytes)}"
    wrong, slowest = "; ".join(row.sent.wrong) or "none", f"{row.sent.slowest_s:.2f}"
    return [row.kind, f"{row.sent.requests:,}", answers, wrong, slowest, f"{row.seconds:.0f}", memory, *sizes]


async def _both(rest: str, grpc_address: str, chance: random.Random, patience_s: float) -> Sent:
    """Let the server make all that it makes once."""
    await send_http(rest, 3_000, chance, patience_s)
    return await send_calls(grpc_address, 3_000, chance, patience_s)


def _write_models(folder: Path, cores: Sequence[int]) -> None:
    folder.mkdir(mode=0o700)
    stages = f"stages = {json.dumps([f'cpu:{core}' for core in cores])}\n"
    source = "benchmarks.malformed:small"
    (folder / "net.toml").write_text(f'source = "{source}"\n{stages}')
    (folder / "batched.toml").write_text(f'source = "{source}"\n{stages}batch = 8\ndynamic_batching = true\n')
    variants = "".join(
        f'[[variants]]\nname = "{name}"\nsource = "benchmarks.malformed:{name}"\naccuracy = {accuracy}\n'
        for name, accuracy in (("small", 0.7), ("large", 0.9))
    )
    (folder / "family.toml").write_text(stages + variants)
    pack = ["pack", source, "--name", "packed", "--into", str(folder)]
    subprocess.run([sys.executable, "-m", "odin", *pack], check=True, stdout=subprocess.DEVNULL)


def _check_alive(served: Served, inputs: Any) -> None:
    """Every model answers, by both protocols."""
    for way in served.ways.values():
        for model in MODELS:
            way._replace(model=model).ask(inputs)


if __name__ == "__main__":
    sys.exit(main())
