"""The relay beside plans, and beside what a user would pick instead: two replicas of the model fed from one queue.

Two single-core stages in one pipeline, whose policy is switched: ``static`` (the best plan), ``filter``, ``relay``.
And two single-core replicas (:mod:`benchmarks.replicas`) for each of ONNX Runtime, OpenVINO and torch (the same chain).
All stay open; who has no turn is idle and uses no CPU. In its turn each serves a closed loop with as few requests under
way as keep it busy, two for each stage under a plan and one more than there are cores otherwise, while a load comes to
the last of the two cores and goes::

    undisturbed | load, 10 requests | arrived ... later | gone, 10 requests | returned

In each round everybody has a turn, in an order drawn anew; a turn lets the load come and go ``--turns`` times. Latency
is what the caller sees. The fluid bound is made of the slowdowns of those same requests; for replicas it is the sum of
1 / (mean seconds that each computed), so what they lose of it is hand-over and waiting. CPU seconds are those of the
program that submits and of all that it has started to serve: stages and Ray's own processes, or replicas.
``python -m benchmarks.relay``
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    mib,
    process_tree,
    pss_nbytes,
    release_memory,
    report,
    write_result,
)
from benchmarks.exported import export_apart
from benchmarks.feeding import where, windows_of
from benchmarks.recovery import bound_hz
from benchmarks.replicas import Replicas, Served
from benchmarks.runtimes import check_runtimes, installed_runtimes
from benchmarks.visits import COST_COLUMNS, PHASES, RATE_COLUMNS, REPLICAS, Visit, cost_rows, rate_rows, visit
from odin.stages.device import usable_cores
from odin_lab.feeding import Feeder, KeptEvents
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load

MODELS = ("resnet50", "vgg16", "mobilenet_v2")
POLICIES = ("static", "filter", "relay")
_LOOK_S = 0.002
_EVENTS_S = 60.0


class Memory(NamedTuple):
    """PSS in bytes of all that starting it added, and of that without Ray's own processes."""

    total_nbytes: int
    without_ray_nbytes: int


def replicas_bound_hz(served: Sequence[Served], begin_s: float, end_s: float) -> float:
    """Sum over replicas of 1 / (mean seconds that one computed on a request of that time).

    Examples
    --------
    >>> replicas_bound_hz([Served(0, 1.0, 0.1), Served(1, 1.5, 0.2), Served(0, 9.0, 5.0)], 0.5, 2.0)
    15.0
    """
    by_replica: dict[int, list[float]] = {}
    for replica, finished_s, compute_s in tuple(served):
        if begin_s <= finished_s <= end_s:
            by_replica.setdefault(replica, []).append(compute_s)
    return sum(len(own_s) / sum(own_s) for own_s in by_replica.values())


class Machine:
    """The pipeline and the replicas of one model, open side by side.

    Parameters
    ----------
    model
        Its name.
    stack
        Closes all of them.
    runtimes
        Of the replicas.
    options
        More options of the pipeline.
    count, rest, settle, turns
        See :func:`visit`, and how often the load comes in a turn.
    """

    def __init__(
        self,
        model: str,
        stack: ExitStack,
        *,
        runtimes: Sequence[str],
        options: Mapping[str, Any],
        count: int,
        rest: int,
        settle: int,
        turns: int,
    ) -> None:
        cores = usable_cores()[:2]
        self._x, self._cores, self._turns = torch.randn(1, 3, 224, 224), len(cores), turns
        self._visit = partial(visit, count=count, rest=rest, settle=settle)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="odin-benchmark-")))
        export_apart(model, folder, runtimes)
        self.memory: dict[str, Memory] = {}
        """What each takes, once it has served. The pipeline comes first: pages of libraries count once."""
        before = tree_nbytes()
        self.recorder = KeptEvents()
        self.pipe = stack.enter_context(
            odin.Pipeline(
                model,
                stages=[f"cpu:{core}" for core in cores],
                policy="static",
                on_event=self.recorder,
                share_devices=True,
                **options,
            )
        )
        self.home = self.pipe.plan
        for policy in ("static", "relay", "static"):
            self.pipe.policy = policy
            self._warm(self.pipe.submit)
        self._pipeline_pids = process_tree()[1:]
        rays = set(self._pipeline_pids) - {stage.pid for stage in self.pipe.view().stages}
        total_nbytes = tree_nbytes() - before
        self.memory["pipeline"] = Memory(total_nbytes, total_nbytes - pss_nbytes(rays))
        self.replicas: dict[str, Replicas] = {}
        for runtime in runtimes:
            before = tree_nbytes()
            replicas = Replicas(model, cores, runtime=runtime, in_flight=self._cores + 1, folder=folder)
            self.replicas[runtime] = stack.enter_context(replicas)
            self._warm(replicas.submit)
            taken_nbytes = tree_nbytes() - before
            self.memory[REPLICAS + runtime] = Memory(taken_nbytes, taken_nbytes)
        self._injector = stack.enter_context(Injector(on_event=self.pipe.note_load))

    def _warm(self, submit: Callable[[torch.Tensor], Future[Any]]) -> None:
        for future in [submit(self._x) for _ in range(4 * self._cores)]:
            future.result(60.0)

    def by_policy(self, policy: str, load: Load) -> list[Visit]:
        """One turn of the pipeline under a policy, from the undisturbed plan on."""
        pipe = self.pipe
        visits = []
        for _ in range(self._turns):
            pipe.policy = "static"
            if pipe.plan != self.home:
                pipe.migrate(self.home)
            pipe.policy = policy
            in_flight = self._cores + 1 if windows_of(pipe) else 2 * self._cores
            with Feeder(lambda _: pipe.submit(self._x), in_flight=in_flight) as feeder:
                come = partial(self._come, load)
                visits.append(self._visit(feeder, self._pipeline_bound, come, pids=self._pipeline_pids))
        return visits

    def by_replicas(self, runtime: str, load: Load) -> list[Visit]:
        """One turn of the replicas of a runtime."""
        replicas, come = self.replicas[runtime], partial(self._come, load)

        def bound(begin_s: float, end_s: float) -> tuple[float, str]:
            return replicas_bound_hz(replicas.served, begin_s, end_s), ""

        with Feeder(lambda _: replicas.submit(self._x), in_flight=self._cores + 1) as feeder:
            return [self._visit(feeder, bound, come, pids=replicas.pids) for _ in range(self._turns)]

    def _come(self, load: Load) -> Callable[[], object]:
        return self._injector.start(load).stop

    def _pipeline_bound(self, begin_s: float, end_s: float) -> tuple[float, str]:
        recorder, deadline_s = self.recorder, time.perf_counter() + _EVENTS_S
        while recorder.timelines(-1)[0].completed_s <= end_s:  # events come a moment after the answers
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"the pipeline has told of no request for {_EVENTS_S:.0f} s")
            time.sleep(_LOOK_S)
        timelines = recorder.timelines(recorder.finished_by(begin_s), recorder.finished_by(end_s))
        return bound_hz(self.pipe, timelines), where(self.pipe, timelines)


def tree_nbytes() -> int:
    """PSS of this process and all that it started."""
    release_memory()
    return pss_nbytes(process_tree())


Found = dict[str, dict[str, list[Visit]]]
"""Visits by load and contender, in the order in which they pair."""


def measure_model(
    model: str, loads: Sequence[Load], options: Mapping[str, Any], arguments: argparse.Namespace
) -> tuple[Found, dict[str, Memory]]:
    """All visits of each load, and what the pipeline and the replicas take of memory."""
    sizes = {name: getattr(arguments, name) for name in ("count", "rest", "settle", "turns")}
    found: Found = {}
    with ExitStack() as stack:
        machine = Machine(model, stack, runtimes=arguments.replicas, options=options, **sizes)
        for load in loads:
            candidates = {policy: partial(machine.by_policy, policy, load) for policy in arguments.policies}
            for runtime in arguments.replicas:
                candidates[REPLICAS + runtime] = partial(machine.by_replicas, runtime, load)
            turns = interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)
            found[str(load)] = {name: [one for turn in own for one in turn] for name, own in turns.items()}
            print(f"{model}, {load}: done", file=sys.stderr)
        return found, machine.memory


def pipeline_options(engine: str) -> dict[str, Any]:
    """What a pipeline is told beside its model: the engine, where ODIN has that option.

    Raises
    ------
    ValueError
        If it does not, and another engine than torch is asked for.
    """
    if "engine" in inspect.signature(odin.Pipeline).parameters:
        return {"engine": engine}
    if engine != "torch":
        raise ValueError(f"engine {engine!r}: this ODIN computes with torch only")
    return {}


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    core = usable_cores()[:2][-1]
    loads = [f"program@cpu:{core} stress-ng --cpu 1", f"program@cpu:{core} stress-ng --stream 1"]
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="beside replicas (default %(default)s)")
    parser.add_argument("--engine", default="torch", help="what ODIN's stages compute with (default %(default)s)")
    parser.add_argument(
        "--replicas",
        nargs="*",
        default=["torch", *installed_runtimes()],
        metavar="RUNTIME",
        help="what replicas compute with: torch, onnxruntime, openvino (default: all that are installed)",
    )
    parser.add_argument("--loads", nargs="+", default=loads, metavar="LOAD", help="default: %(default)s")
    parser.add_argument(
        "--turns", type=int, default=1, help="times that the load comes in a turn (default %(default)s)"
    )
    parser.add_argument("--count", type=int, default=40, help="requests of each stretch (default %(default)s)")
    parser.add_argument("--rest", type=int, default=24, help="undisturbed requests before (default %(default)s)")
    parser.add_argument("--settle", type=int, default=40, help="requests to react (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.count, arguments.rest, arguments.settle = 1, 8, 6, 8
    try:
        check_runtimes(arguments.replicas)
        options = pipeline_options(arguments.engine)
    except ValueError as error:
        parser.error(str(error))
    environment = Environment.collect(("torch", "ray", "numpy", "onnxruntime", "openvino"))
    torch.set_num_threads(1)
    loads_given = [Load.parse(text) for text in arguments.loads]
    results = {}
    for model in arguments.models:
        found, memory = measure_model(model, loads_given, options, arguments)
        results[model] = {"visits": found, "memory": memory}
        mibs = ", ".join(f"{name} {mib(own.without_ray_nbytes)}" for name, own in memory.items())
        for load, visits in found.items():
            title = f"{model}, two cores, {load}; {arguments.rounds} rounds, medians (quartiles)"
            for columns, rows_of, more in (
                (RATE_COLUMNS, rate_rows, ""),
                (COST_COLUMNS, cost_rows, f"; MiB without Ray's own processes: {mibs}"),
            ):
                rows = [row for phase in range(len(PHASES)) for row in rows_of(visits, phase)]
                report(title + more, columns, rows, environment)
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
