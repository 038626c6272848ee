"""How long the exact balance takes: 152 layers on 52 stages, 1,000 layers on 1,000 stages.

Run it with ``python benchmarks/balance.py [--repeats 15]``. Each problem is new (seeded), so nothing can be reused.
CPU time is shown beside wall time, because it is what remains comparable while other programs use the cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.balance.exact import balance
from odin.stages.device import cpu_model

LIMITS_S = {(152, 52): 5e-3, (1000, 1000): 1.0}
CASES = ("no transfer", "transfer", "transfer per stage", "heavy-tailed transfer", "min_layers=1", "half dead")


def problem(
    case: str, layers: int, stages: int, random: np.random.Generator
) -> tuple[NDArray[np.float64], Mapping[str, NDArray[np.float64]], int]:
    """Return times (stages, layers), transfer arguments and min_layers of one seeded problem."""
    times_s = random.lognormal(0.0, 1.0, layers) * 1e-3 * random.uniform(1.0, 3.0, (stages, 1))
    if case == "half dead":
        times_s[::2] = np.inf
    if case == "no transfer":
        return times_s, {}, 0
    spread = 2.0 if case == "heavy-tailed transfer" else 0.5
    shape = (stages, layers + 1) if case == "transfer per stage" else (layers + 1,)
    transfer = {name: random.lognormal(0.0, spread, shape) * 3e-4 for name in ("send_s", "receive_s")}
    return times_s, transfer, int(case == "min_layers=1")


def main() -> int:
    """Time every case; exit status 1 if a median is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="problems per case (default 15)")
    repeats = parser.parse_args().repeats
    print(f"command: {Path(sys.executable).name} {' '.join(sys.argv)}")
    print(f"environment: {cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, "
          f"Python {platform.python_version()}, numpy {np.__version__}")  # fmt: skip
    print(f"\n{'layers':>6} {'stages':>6}  {'case':22} {'median ms':>10} {'min ms':>10} {'max ms':>10} "
          f"{'cpu ms':>10} {'limit ms':>9}")  # fmt: skip
    late = 0
    for (layers, stages), limit_s in LIMITS_S.items():
        for case in CASES:
            random = np.random.default_rng(0)
            taken_s, cpu_s = [], []
            for _ in range(repeats + 1):
                times_s, transfer, min_layers = problem(case, layers, stages, random)
                send_s, receive_s = transfer.get("send_s"), transfer.get("receive_s")
                before, cpu_before = time.perf_counter(), time.thread_time()
                balance(times_s, min_layers=min_layers, send_s=send_s, receive_s=receive_s)
                taken_s.append(time.perf_counter() - before)
                cpu_s.append(time.thread_time() - cpu_before)
            taken_s, cpu_s = taken_s[1:], cpu_s[1:]  # the first warms up
            median_s = statistics.median(taken_s)
            late += median_s > limit_s
            row_ms = (median_s * 1e3, min(taken_s) * 1e3, max(taken_s) * 1e3)
            print(f"{layers:6} {stages:6}  {case:22} {row_ms[0]:10.2f} {row_ms[1]:10.2f} {row_ms[2]:10.2f} "
                  f"{statistics.median(cpu_s) * 1e3:10.2f} {limit_s * 1e3:9.0f}")  # fmt: skip
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main())
