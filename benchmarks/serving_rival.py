"""Other servers with the model of benchmarks/serving.py: folded and channels last in torch, one thread on each core.

``python -m benchmarks.serving_rival ray-serve resnet50 --cores 0,1 --ready-file FILE``. Each answers the protocol's
``POST /v2/models/net/infer``, so that one client asks them all: Ray Serve and LitServe by a few lines of their users'
code, as they have no protocol of their own; MLServer as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
_HEADER = "Inference-Header-Content-Length"


def read_binary(body: bytes, header_nbytes: int) -> Array:
    """The only input of a request whose tensors are raw bytes."""
    (given,) = json.loads(body[:header_nbytes])["inputs"]
    return np.frombuffer(body, np.float32, offset=header_nbytes).reshape(given["shape"])


def write_binary(output: Array) -> tuple[bytes, int]:
    """The answer with raw bytes, and how many of it are JSON."""
    data = np.ascontiguousarray(output).tobytes()
    about = {"name": "output", "datatype": "FP32", "shape": output.shape, "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"model_name": "net", "outputs": [about]}).encode()
    return header + data, len(header)


def pinned_model(model: str, cores: tuple[int, ...], claims: Path) -> Callable[[Array], Array]:
    """The model on the next free core, in the calling thread alone."""
    import torch

    from odin_lab.live.plain_models import folded_model
    from odin_lab.live.ray_serve import claim

    torch.set_num_threads(1)
    infer = folded_model(model, None)
    os.sched_setaffinity(0, {claim(cores, claims)})
    return infer


def write_ready(file: Path, **ports: int) -> None:
    """Say that it serves, in one step."""
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(ports))
    partial.rename(file)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- Ray Serve
class RayReplica:
    """One image at a time, in a thread beside the event loop."""

    def __init__(self, model: str, cores: tuple[int, ...], claims: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._infer = self._thread.submit(pinned_model, model, cores, Path(claims)).result()

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request."""
        from starlette.responses import Response

        image = read_binary(await request.body(), int(request.headers[_HEADER]))
        output = await asyncio.get_running_loop().run_in_executor(self._thread, self._infer, image)
        body, header_nbytes = write_binary(output)
        return Response(body, media_type="application/octet-stream", headers={_HEADER: str(header_nbytes)})


def ray_serve(model: str, cores: tuple[int, ...], ready: Path, claims: str) -> None:
    """A replica on each core, with what Serve's documentation advises for throughput."""
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")  # read by Serve when it is imported
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    port = free_port()
    ray.init(num_cpus=len(cores) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")  # type: ignore[arg-type]
    try:
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port), logging_config=quiet)
        deployment = serve.deployment(
            name="net",
            num_replicas=len(cores),
            max_ongoing_requests=4,
            logging_config=quiet,
            ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        )(RayReplica)
        serve.run(deployment.bind(model, cores, claims), name="benchmark", route_prefix="/")
        write_ready(ready, http=port)
        _until_asked_to_end()
    finally:
        ray.shutdown()


# ---------------------------------------------------------------- LitServe
def litserve(model: str, cores: tuple[int, ...], ready: Path, claims: str) -> None:
    """A worker on each core."""
    import litserve as ls

    from benchmarks.serving_litserve import TorchApi

    server = ls.LitServer(TorchApi(model, cores, claims), accelerator="cpu", workers_per_device=len(cores))
    port = free_port()
    write_ready(ready, http=port)  # the port; it answers when its workers do
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


# ---------------------------------------------------------------- MLServer
def mlserver(model: str, cores: tuple[int, ...], ready: Path, claims: str) -> None:
    """One process with a thread for each core: ``parallel_workers`` fails beside today's uvloop."""
    from mlserver import MLServer, Settings

    from benchmarks import serving_mlserver

    http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
    settings = Settings(
        host="127.0.0.1",
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        parallel_workers=0,
        grpc_max_message_length=64 * 2**20,
    )

    async def serve() -> None:
        server = MLServer(settings)
        models = [serving_mlserver.settings(model, cores, claims), serving_mlserver.reciprocal_settings()]
        loading = asyncio.create_task(server.start(models))
        await asyncio.to_thread(write_ready, ready, http=http_port, grpc=grpc_port)
        await loading

    asyncio.run(serve())


def _until_asked_to_end() -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    over.wait()


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("ray-serve", "mlserver", "litserve"))
    parser.add_argument("model")
    parser.add_argument("--cores", required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    arguments = parser.parse_args()
    cores = tuple(map(int, arguments.cores.split(",")))
    serve = {"ray-serve": ray_serve, "mlserver": mlserver, "litserve": litserve}[arguments.name]
    with tempfile.TemporaryDirectory() as claims:
        serve(arguments.model, cores, arguments.ready_file, claims)
    return 0


if __name__ == "__main__":
    sys.exit(main())
