"""A thousand small models on two cores within 2 GiB: predicted, against loaded on demand without predictions.

Packs ``--models`` CNNs of 4 to 10 MiB, each with its own weights, to a temporary folder, and replays one skewed trace
(Zipf, Poisson, with bursts for single models) against both ways of scheduling, each from a cold start. The rate is
``--load`` of what the cores could run if all models were in memory. ``python -m benchmarks.fleet``
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import math
import mmap
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import nn

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    mib,
    milliseconds,
    percentile,
    process_tree,
    pss_nbytes,
    report,
    write_result,
)
from odin.fleet.estimates import percentile_99
from odin.fleet.fleet import SCHEDULERS
from odin.fleet.packed import SUFFIX
from odin.fleet.packing import pack_chain, time_alone
from odin.fleet.scheduler import LOAD, RUN, Measured
from odin.partitioner.chain import Chain, build_chain
from odin.stages.device import usable_cores
from odin_lab.simulator.fleet import Arrival, zipf_trace

PIXELS = 96
WIDTHS = ((48, 96, 192, 256), (64, 128, 256, 256), (64, 128, 256, 320), (64, 128, 288, 384))
"""Of the layers of each architecture."""
_SETTLE_S = 1.0


class Way(NamedTuple):
    """What became of the trace with one scheduler.

    Attributes
    ----------
    in_time, refused, late
        Shares of the requests.
    hit_rate
        Of the taken ones.
    cold_starts, loads, evictions
        Requests whose model was not in memory; actions.
    latency_s
        Median and 99th percentile of the answered ones.
    load_predicted_s, load_actual_s, load_within, run_within
        Of loads medians, and shares of actions that took no longer than predicted; nan without predictions.
    load_p99_s, load_error_p99
        Of loads: 99th percentile of seconds, and of actual / predicted.
    pss_nbytes, cached_nbytes, resident_nbytes
        At the end: of all processes; of the models' files in the page cache; that models in memory take by the books.
    largest_cached_nbytes
        The most that was seen in the page cache.
    """

    scheduler: str
    requests: int
    in_time: float
    refused: float
    late: float
    hit_rate: float
    cold_starts: int
    loads: int
    evictions: int
    latency_s: tuple[float, float]
    load_predicted_s: float
    load_actual_s: float
    load_p99_s: float
    load_error_p99: float
    load_within: float
    run_within: float
    pss_nbytes: int
    cached_nbytes: int
    largest_cached_nbytes: int
    resident_nbytes: int


def architecture(widths: Sequence[int]) -> nn.Module:
    """A small CNN: three strides of two, four convolutions."""
    layers: list[nn.Module] = []
    before = 3
    for number, width in enumerate(widths):
        layers += [
            nn.Conv2d(before, width, 3, stride=2 if number < 3 else 1, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, 500)).eval()


def pack_models(folder: Path, count: int, *, seed: int) -> list[float]:
    """Pack so many models; seconds of a run alone of each.

    Weights differ in their signs, which are random: bounds on values, which are part of the chain, hold for all.
    """
    torch.manual_seed(seed)
    x = torch.randn(1, 3, PIXELS, PIXELS)
    chains = [build_chain(architecture(widths), (x,), name=f"small{number}") for number, widths in enumerate(WIDTHS)]
    baselines = [time_alone(chain) for chain in chains]
    alone_s = []
    generator = torch.Generator().manual_seed(seed)
    for number in track(range(count), "packing models", transient=True):
        which = number % len(chains)
        pack_chain(
            _with_other_weights(chains[which], generator), folder, name=f"m{number:04}", baseline_s=baselines[which]
        )
        alone_s.append(baselines[which][1])
    return alone_s


def _with_other_weights(chain: Chain, generator: torch.Generator) -> Chain:
    other = copy.copy(chain)
    other.state = {
        name: tensor * (torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1))
        for name, tensor in chain.state.items()
    }
    return other


def cached_nbytes(files: Iterable[Path]) -> int:
    """Bytes of files that lie in the page cache, as mincore(2) says."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    pages = 0
    for path in files:
        with path.open("rb") as file:
            nbytes = path.stat().st_size
            address = libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
            vector = ctypes.create_string_buffer(-(-nbytes // mmap.PAGESIZE))
            if libc.mincore(address, nbytes, vector) == 0:
                pages += sum(byte & 1 for byte in vector.raw[: -(-nbytes // mmap.PAGESIZE)])
            libc.munmap(address, nbytes)
    return pages * mmap.PAGESIZE


class _Watch:
    """Looks now and then how much of the files lies in the page cache."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.largest = 0
        self._files, self._ended = files, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(20.0):
            self.largest = max(self.largest, cached_nbytes(self._files))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def replay(
    folder: Path,
    trace: Sequence[Arrival],
    scheduler: str,
    *,
    stages: Sequence[str],
    memory_mib: float,
    deadline_s: float,
) -> Way:
    """Serve a trace in real time with one scheduler, from a cold start."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    measured: list[Measured] = []
    latencies: list[float] = []
    x = torch.randn(1, 3, PIXELS, PIXELS)
    with odin.Fleet(
        folder,
        stages=stages,
        memory_mib=memory_mib,
        scheduler=scheduler,
        share_devices=True,
        on_measured=lambda name, one: measured.append(one),
    ) as fleet:
        names = fleet.models
        time.sleep(_SETTLE_S)
        watch = _Watch(files)
        futures: list[Future[Any]] = []
        begin_s = time.perf_counter()
        for arrival in track(trace, f"{scheduler}", transient=True):
            wait_s = begin_s + arrival.at_s - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            sent_s = time.perf_counter()
            future = fleet.submit(names[arrival.model], x, timeout_s=deadline_s)
            future.add_done_callback(partial(_note, sent_s=sent_s, latencies=latencies))
            futures.append(future)
        for future in futures:
            future.exception()
        watch.close()
        counts, view = fleet.counts(), fleet.view()
        pss, cached = pss_nbytes(process_tree()), cached_nbytes(files)
    loads = [one for one in measured if one.kind == LOAD]
    runs = [one for one in measured if one.kind == RUN]
    predicts = scheduler == SCHEDULERS[0]
    return Way(
        scheduler,
        len(trace),
        counts.completed / len(trace),
        counts.refused / len(trace),
        counts.failed / len(trace),
        counts.hit_rate,
        counts.cold,
        counts.loads,
        counts.evictions,
        (percentile(latencies, 0.5), percentile(latencies, 0.99)),
        statistics.median(one.expected_s for one in loads) if predicts else math.nan,
        statistics.median(one.took_s for one in loads),
        percentile_99(one.took_s for one in loads),
        percentile_99(one.took_s / one.expected_s for one in loads) if predicts else math.nan,
        _within(loads) if predicts else math.nan,
        _within(runs) if predicts else math.nan,
        pss,
        cached,
        max(watch.largest, cached),
        int(view.resident_mib * 2**20),
    )


def _note(done: Future[Any], *, sent_s: float, latencies: list[float]) -> None:
    if not done.cancelled() and done.exception() is None:
        latencies.append(time.perf_counter() - sent_s)


def _within(measured: Sequence[Measured]) -> float:
    return sum(one.took_s <= one.expected_s for one in measured) / len(measured)


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    parser.add_argument("--models", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--memory-mib", type=float, default=2048, help="that models may take (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of the trace (default %(default)s)")
    parser.add_argument("--load", type=float, nargs="+", default=[0.3, 0.6], help="shares of what the cores can run")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the popularity (default %(default)s)")
    parser.add_argument("--deadline-ms", type=float, default=100.0, help="of every request (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where models are packed; a folder in it is made and removed")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.seconds = min(arguments.models, 40), 5.0
        arguments.memory_mib = min(arguments.memory_mib, 100)
    environment = Environment.collect()
    torch.set_num_threads(1)
    stages = [f"cpu:{core}" for core in usable_cores()[:2]]
    with tempfile.TemporaryDirectory(prefix="odin-fleet-", dir=arguments.folder) as folder:
        needed = arguments.models * 10 * 2**20
        free = shutil.disk_usage(folder).free
        if free < 1.2 * needed:
            raise SystemExit(f"{arguments.models} models take up to {mib(needed)} MiB, {mib(free)} are free: --folder")
        alone_s = pack_models(Path(folder), arguments.models, seed=arguments.seed)
        total = sum(path.stat().st_size for path in Path(folder).iterdir())
        ways: list[tuple[float, Way]] = []
        for load in arguments.load:
            rate_hz = load * len(stages) / statistics.mean(alone_s)
            trace = zipf_trace(
                arguments.models,
                rate_hz=rate_hz,
                duration_s=arguments.seconds,
                exponent=arguments.zipf,
                seed=arguments.seed,
            )
            for scheduler in SCHEDULERS:
                way = replay(
                    Path(folder),
                    trace,
                    scheduler,
                    stages=stages,
                    memory_mib=arguments.memory_mib,
                    deadline_s=arguments.deadline_ms / 1e3,
                )
                ways.append((load, way))
                _tell(load, way)
    report(
        f"{arguments.models} models, {mib(total)} MiB on disk, {arguments.memory_mib:g} MiB in memory, deadline "
        f"{arguments.deadline_ms:g} ms, Zipf {arguments.zipf:g}",
        [
            "", "load", "requests", "in time", "refused", "late", "hits", "cold", "p50, p99 ms",
            "load ms: predicted", "took, p99", "loads, runs within", "PSS MiB", "files in cache, most",
        ],
        [_row(load, way) for load, way in ways],
        environment,
    )  # fmt: skip
    results = [{"load": load, **way._asdict()} for load, way in ways]
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


def _tell(load: float, way: Way) -> None:
    print(f"load {load:g}, {way.scheduler}: {way.in_time:.4f} of {way.requests} in time", file=sys.stderr)


def _row(load: float, way: Way) -> list[str]:
    return [
        way.scheduler,
        f"{load:g}",
        str(way.requests),
        f"{way.in_time:.2%}",
        f"{way.refused:.2%}",
        f"{way.late:.2%}",
        f"{way.hit_rate:.1%}",
        str(way.cold_starts),
        f"{milliseconds(way.latency_s[0])}, {milliseconds(way.latency_s[1])}",
        _known(milliseconds, way.load_predicted_s),
        f"{milliseconds(way.load_actual_s)}, {milliseconds(way.load_p99_s)}",
        f"{_known(_share, way.load_within)}, {_known(_share, way.run_within)}",
        mib(way.pss_nbytes),
        f"{mib(way.cached_nbytes)}, {mib(way.largest_cached_nbytes)}",
    ]


def _share(value: float) -> str:
    return f"{value:.0%}"


def _known(form: Callable[[float], str], value: float) -> str:
    return "-" if math.isnan(value) else form(value)


if __name__ == "__main__":
    sys.exit(main())
