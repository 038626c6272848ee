"""DNNScaler's question on this machine: batching or instances, how good is the choice, and is the limit kept?

For each model: both modes are probed as ``odin tune`` does, and swept over all their values; the chosen one serves
with its knob turned, once by DNNScaler's search and once by Clipper's AIMD, while a load beside it comes and goes. The
limit is a multiple of the latency of one sample on all cores, since models differ by ten times::

    python -m benchmarks.tuning --stages cpu:0-1 --output tuning.json
    python -m benchmarks.tuning --quick --models mobilenet_v2

Nothing else may run on the cores. The figures are of one machine and one run each; p95s of a shared host are noisy.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.common import Environment, report, write_result
from odin.stages.device import parse_devices
from odin.tuning.choice import Probe, best_within
from odin.tuning.policy import KNOBS, POLICIES
from odin_lab.inject import Load
from odin_lab.simulator.tuning import share_within
from odin_lab.tuning.campaign import Findings, best_of_sweep, find
from odin_lab.tuning.measure import Effort, probe
from odin_lab.tuning.modes import Mode, modes_of
from odin_lab.tuning.served import Served
from odin_lab.tuning.serving import Serving, serve

MODELS = ("mobilenet_v2", "efficientnet_b0", "resnet18", "resnet50", "densenet121", "vgg16")
LIMIT_TIMES = 4.0


class Run(NamedTuple):
    """A policy that served.

    Attributes
    ----------
    settled_s
        Until the knob stood still before the first load; None if it did not.
    within, load_within
        Part of the time, and of that with a load, in periods whose p95 kept the limit.
    calm_value, of_best
        The knob's value before the first load, and the throughput that the sweep had with it as a part of the best.
    """

    policy: str
    settled_s: float | None
    turns: int
    within: float
    load_within: float
    throughput_hz: float
    calm_value: int
    of_best: float | None


class Outcome(NamedTuple):
    """One model.

    Attributes
    ----------
    alone_s
        Mean latency of one sample on all cores.
    limit_s
        What was to be kept.
    probes, swept
        What was measured.
    knob, start, why
        The choice.
    best
        Of the sweep within the limit; None if nothing keeps it.
    runs
        By policy.
    """

    model: str
    alone_s: float
    limit_s: float
    probes: tuple[Probe, ...]
    swept: tuple[Probe, ...]
    knob: str
    start: int
    why: str
    best: Probe | None
    runs: tuple[Run, ...]


def measure(
    model: str,
    modes: Sequence[Mode],
    *,
    times: float,
    limit_ms: float | None,
    effort: Effort,
    seconds: float,
    load: str,
    period: int,
) -> Outcome:
    """Everything for one model."""
    if limit_ms is None:
        with Served(model, modes[0]._replace(largest=1)) as served:
            alone = probe(modes[0], 1, served.submit, effort=effort)
        assert alone is not None  # nobody ends it early
        alone_s = alone.mean_s
        limit_s = times * alone_s
    else:
        limit_s, alone_s = limit_ms / 1e3, float("nan")
    findings = find(modes, lambda mode: Served(model, mode), limit_s=limit_s, effort=effort, sweep=True)
    assert findings.choice is not None
    assert findings.mode is not None
    if limit_ms is not None:
        alone_s = next(one.mean_s for one in findings.probes if one.value == 1)
    runs = []
    for policy in POLICIES:
        with Served(model, findings.mode) as served:
            serving = serve(
                served,
                start=findings.choice.start if findings.mode.knob == "instances" else 1,
                largest=findings.largest,
                limit_s=limit_s,
                seconds=seconds,
                policy=policy,
                requests=period,
                loads=[Load.parse(load)],
                spells=[(seconds / 3, seconds / 2), (2 * seconds / 3, 5 * seconds / 6)],
            )
        runs.append(_run(policy, serving, findings, limit_s))
    choice, best = findings.choice, best_within(findings.swept, limit_s=limit_s)
    return Outcome(
        model,
        alone_s,
        limit_s,
        findings.probes,
        findings.swept,
        choice.knob,
        choice.start,
        choice.why,
        best,
        tuple(runs),
    )


def _run(policy: str, serving: Serving, findings: Findings, limit_s: float) -> Run:
    periods, kept_s, load_s = serving.periods, 0.0, 0.0
    for begin_s, end_s, _ in serving.spells:
        inside = [period for period in periods if begin_s <= period.at_s < end_s]
        share = share_within(inside, limit_s, begin_s=begin_s)
        if not math.isnan(share):
            kept_s, load_s = kept_s + share * (end_s - begin_s), load_s + end_s - begin_s
    calm_s = min((begin_s for begin_s, _, _ in serving.spells), default=serving.seconds)
    value = [serving.start, *(period.after for period in periods if period.at_s < calm_s)][-1]
    found = best_of_sweep(findings, value, limit_s=limit_s)
    return Run(
        policy,
        serving.settled_s,
        sum(period.after != period.before for period in periods),
        serving.within(limit_s),
        kept_s / load_s if load_s else math.nan,
        serving.throughput_hz,
        value,
        None if found is None else found[1],
    )


def show(outcomes: Sequence[Outcome], environment: Environment) -> None:
    """Print the choice for each model, and how the policies did."""
    chosen, kept = [], []
    for one in outcomes:
        rates = []
        for knob in KNOBS:
            best = best_within([two for two in one.swept if two.knob == knob], limit_s=one.limit_s)
            rates.append("-" if best is None else f"{best.throughput_hz:.1f} ({best.value})")
        chosen.append((one.model, f"{one.limit_s * 1e3:.0f}", *rates, f"{one.knob} {one.start}"))
        kept += [
            (
                one.model,
                run.policy,
                "-" if run.settled_s is None else f"{run.settled_s:.1f}",
                str(run.calm_value),
                "-" if run.of_best is None else f"{run.of_best:.2f}",
                str(run.turns),
                *("-" if math.isnan(share) else f"{share:.0%}" for share in (run.within, run.load_within)),
                f"{run.throughput_hz:.1f}",
            )
            for run in one.runs
        ]
    report(
        "batching or instances: most samples/s of a sweep within the limit, and with what",
        ("model", "limit ms", "batch", "instances", "chosen"),
        chosen,
        environment,
    )
    report(
        "the knob turned while a load comes and goes",
        ("model", "policy", "settled s", "value", "of the best", "turns", "within", "with load", "samples/s"),
        kept,
        environment,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.tuning", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", default=",".join(MODELS), help="built-in models (default %(default)s)")
    parser.add_argument("--stages", default="cpu:0-1", help="cores (default %(default)s)")
    parser.add_argument(
        "--times", type=float, default=LIMIT_TIMES, help="limit / latency of one sample (default %(default)g)"
    )
    parser.add_argument("--latency-ms", type=float, help="the same limit for all, instead")
    parser.add_argument("--batch", type=int, default=16, help="largest batch (default %(default)s)")
    parser.add_argument("--instances", type=int, help="most instances (default: two per core)")
    parser.add_argument("--requests", type=int, default=60, help="of each measurement (default %(default)s)")
    parser.add_argument("--period", type=int, default=40, help="requests between turns (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=180.0, help="each policy serves (default %(default)g)")
    parser.add_argument("--load", help="that comes and goes (default: cpu at half on the last core)")
    parser.add_argument("--quick", action="store_true", help="one small model and few requests, to see that it runs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    arguments = parser.parse_args(argv)
    devices = parse_devices(arguments.stages)
    cores = [index for device in devices for index in device.indices]
    models: list[str] = [name.strip() for name in arguments.models.split(",") if name.strip()]
    effort, seconds, batch = Effort(arguments.requests), arguments.seconds, arguments.batch
    instances, period = arguments.instances or 2 * len(cores), arguments.period
    if arguments.quick:
        models, effort, seconds, batch, period = models[:1], Effort(8, 1, 10.0), 6.0, min(batch, 3), 5
        instances = min(instances, len(cores))
    modes = modes_of(devices, batch=batch, instances=instances)
    console = Console(width=140, highlight=False)
    outcomes: list[Outcome] = []
    for model in models:
        console.print(f"{model}, load average {os.getloadavg()[0]:.1f}", style="dim")
        outcomes.append(
            measure(
                model,
                modes,
                times=arguments.times,
                limit_ms=arguments.latency_ms,
                effort=effort,
                seconds=seconds,
                load=arguments.load or f"cpu@cpu:{cores[-1]}*0.5",
                period=period,
            )
        )
        console.print(outcomes[-1].why, markup=False)
        write_result(  # what there is so far: the whole takes long
            arguments.output,
            environment=Environment.collect(),
            parameters={name: value for name, value in vars(arguments).items() if name != "output"},
            results=outcomes,
        )
    show(outcomes, Environment.collect())


if __name__ == "__main__":
    main()
