"""The highest rate at which 99% of requests are answered within three times the lone latency, by policy.

For each policy an ``odin serve``, one after the other in interleaved rounds, alone and with a load on the second core,
asked over REST by MLPerf LoadGen at random moments (``odin load URL --p99-ms``); the rate is found by bisection. What
comes of it is no MLPerf result. The bound is the same for all: three times the median of a lone client at the first
server of all, with no load.
``python -m benchmarks.serving_rates``
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    paired_ratio,
    pinned,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.serving_servers import Way, odin_server
from benchmarks.spells import default_load
from odin.stages.device import usable_cores
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load
from odin_lab.load.client import Input

__all__ = ["main"]

_TIMES, _WARM_S = 3.0, 1.0


class Rate(Struct, frozen=True):
    """What the search came to; a rate of 0: none passed."""

    rate_hz: float
    p50_ms: float
    p99_ms: float


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=2)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--policies", nargs="+", default=["relay", "filter", "static"])
    parser.add_argument("--admission", default="none", help="default %(default)s: none is refused")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each trial (default %(default)g)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.model = 1, 2.0, "mobilenet_v2"
    environment = Environment.collect(("torch", "ray", "numpy", "uvicorn", "mlcommons-loadgen"))
    cores, inputs = usable_cores()[:2], (Input("input", "FP32", (1, 3, 224, 224)),)
    load = Load.parse(default_load(cores[-1]))
    with pinned(cores):
        with odin_server(arguments.model, cores, inputs) as served:
            way = served.ways["rest"]
            way.measure(inputs, clients=1, seconds=_WARM_S)
            bound_ms = _TIMES * 1e3 * way.measure(inputs, clients=1, seconds=arguments.seconds).p50_s
        cases: dict[str, tuple[str, Load | None]] = {
            f"{policy}, {when}": (policy, busy)
            for policy in arguments.policies
            for when, busy in (("alone", None), ("second core busy", load))
        }
        candidates = {
            name: partial(_find, arguments, cores, inputs, bound_ms, policy, busy)
            for name, (policy, busy) in cases.items()
        }
        found = interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)
    rows = []
    for name, rates in found.items():
        base = [one.rate_hz for one in found.get(f"static, {name.partition(', ')[2]}", [])]
        ratio = paired_ratio([one.rate_hz for one in rates], base) if base and min(base) > 0 else None
        rows.append(
            [
                name,
                with_quartiles(summarize([one.rate_hz for one in rates]), lambda value: f"{value:.2f}"),
                "" if ratio is None else with_quartiles(ratio, lambda value: f"{value:.2f}"),
                f"{summarize([one.p50_ms for one in rates]).median:.0f}",
                f"{summarize([one.p99_ms for one in rates]).median:.0f}",
            ]
        )
    title = f"{arguments.model}: highest rate with p99 within {bound_ms:.0f} ms"
    report(title, ["", "requests/s", "of static", "p50 ms", "p99 ms"], rows, environment)
    parameters = {**vars(arguments), "bound_ms": bound_ms}
    write_result(arguments.output, environment=environment, parameters=parameters, results=found)
    return 0


def _find(
    arguments: argparse.Namespace,
    cores: Sequence[int],
    inputs: Sequence[Input],
    bound_ms: float,
    policy: str,
    load: Load | None,
) -> Rate:
    more = ("--policy", policy, "--admission", arguments.admission)
    with odin_server(arguments.model, cores, inputs, more=more) as served, Injector() as injector:
        way = served.ways["rest"]
        handle = None if load is None else injector.start(load)
        try:
            way.measure(inputs, clients=4, seconds=2 * _WARM_S)
            return _search(way, bound_ms, arguments)
        finally:
            if handle is not None:
                handle.stop()


def _search(way: Way, bound_ms: float, arguments: argparse.Namespace) -> Rate:
    """``odin load``, as a user would call it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "load.json"
        command = [sys.executable, "-m", "odin", "load", way.url, "--model", way.model, "--p99-ms", f"{bound_ms:.3f}"]
        options = ["--seconds", f"{arguments.seconds:g}", "--output", str(output)]
        subprocess.run([*command, *options], stdout=subprocess.DEVNULL, check=False)
        return _best(json.loads(output.read_text()))


def _best(result: dict[str, Any]) -> Rate:
    """Of the trial at the highest rate that passed."""
    highest_hz = result["highest_hz"] or 0.0
    for trial in result["trials"]:
        figures = trial["figures"]
        if figures["scenario"] == "server" and highest_hz and math.isclose(figures["rate_hz"], highest_hz):
            return Rate(highest_hz, 1e3 * figures["p50_s"], 1e3 * figures["p99_s"])
    return Rate(0.0, math.nan, math.nan)


if __name__ == "__main__":
    sys.exit(main())
