"""Two models on the same two cores: planned together, against each for itself.

Both pipelines stay open; in each turn both have the same policy: ``together``, ``relay``, ``static`` (each has the best
plan of one that is alone). In a turn both are under load, first for ``--settle`` seconds, in which layers move, then
for ``--seconds`` that count::

    closed loop   as many requests under way as keep a pipeline busy: two for each stage, and one more than there are
                  stages under the relay
    open loop     at random times, at a part (``--parts``) of what each model serves alone; latency counts from those
    alone         one model under load in a closed loop, under the relay

Turns are in rounds whose order is drawn anew. The sum of throughputs has each model's divided by that alone in the same
round: 1 is what one model alone makes of the cores. The worst p99 is that of the model whose p99 is larger.

``--share`` does that again with the second model held to a part of each core. ``python -m benchmarks.tenants``
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    interleave,
    milliseconds,
    percentile,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from odin.stages.device import usable_cores
from odin_lab.feeding import Feeder

PAIRS = ("resnet50+mobilenet_v2", "resnet50+resnet50")
POLICIES = ("together", "relay", "static")
_ALONE = "alone"
COLUMNS = ("", "sum of throughputs, of each alone", "requests/s", "p99 ms", "worst p99 ms", "layers at the end")


class Served(NamedTuple):
    """What a model served in a turn: requests per second, their seconds, and its plan at the end."""

    rate_hz: float
    latency_s: list[float]
    plan: str

    @property
    def p99_s(self) -> float:
        """99th percentile of the latency."""
        return percentile(self.latency_s, 0.99) if self.latency_s else float("nan")


class OpenLoop:
    """Submits at random times at a given rate, from entering this until leaving it; latency counts from those times."""

    def __init__(self, pipe: odin.Pipeline, x: torch.Tensor, *, rate_hz: float, seed: int) -> None:
        self._pipe, self._x, self._rate_hz, self._random = pipe, x, rate_hz, random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="open-loop", daemon=True)
        self.done: list[tuple[float, float]] = []
        """When each was answered, and how long it took."""

    def _feed(self) -> None:
        at_s = time.perf_counter()
        while True:
            at_s += self._random.expovariate(self._rate_hz)
            if self._over.wait(max(0.0, at_s - time.perf_counter())):
                return
            self._pipe.submit(self._x).add_done_callback(partial(self._answered, at_s))

    def _answered(self, at_s: float, future: object) -> None:
        now_s = time.perf_counter()
        self.done.append((now_s, now_s - at_s))

    def __enter__(self) -> OpenLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60.0)


class Pair:
    """Two pipelines on the same cores, open side by side.

    Parameters
    ----------
    models
        Their names.
    stack
        Closes them.
    share
        Of the second one.
    settle_s, seconds
        Of a turn.
    """

    def __init__(
        self, models: Sequence[str], stack: ExitStack, *, share: float, settle_s: float, seconds: float
    ) -> None:
        stages = [f"cpu:{core}" for core in usable_cores()[:2]]
        self._x = torch.randn(1, 3, 224, 224)
        self._settle_s, self._seconds, self._turns = settle_s, seconds, 0
        self.pipes = [
            stack.enter_context(odin.Pipeline(model, stages=stages, policy="static", share_devices=True, share=part))
            for model, part in zip(models, (1.0, share), strict=True)
        ]
        self._homes = [pipe.plan for pipe in self.pipes]
        for pipe in self.pipes:
            for future in [pipe.submit(self._x) for _ in range(8)]:
                future.result(60.0)

    def closed(self, policy: str, *, which: Sequence[int] = (0, 1)) -> list[Served]:
        """A turn in which requests follow one another."""
        self._prepare(policy)
        with ExitStack() as stack:
            feeders = []
            for index in which:
                pipe = self.pipes[index]
                in_flight = len(pipe.devices) + 1 if policy == "relay" else 2 * len(pipe.devices)
                feeders.append(stack.enter_context(Feeder(partial(self._submit, index), in_flight=in_flight)))
            return self._measure(
                [
                    lambda feeder=feeder: [  # type: ignore[misc]
                        (one.finished_s, one.finished_s - one.submitted_s) for one in feeder.answers
                    ]
                    for feeder in feeders
                ],
                which,
            )

    def opened(self, policy: str, rates_hz: Sequence[float]) -> list[Served]:
        """A turn in which requests come at given rates."""
        self._prepare(policy)
        self._turns += 1
        with ExitStack() as stack:
            loops = [
                stack.enter_context(OpenLoop(pipe, self._x, rate_hz=rate_hz, seed=2 * self._turns + index))
                for index, (pipe, rate_hz) in enumerate(zip(self.pipes, rates_hz, strict=True))
            ]
            return self._measure([lambda loop=loop: list(loop.done) for loop in loops], (0, 1))  # type: ignore[misc]

    def _submit(self, index: int, _: int) -> Future[Any]:
        return self.pipes[index].submit(self._x)

    def _prepare(self, policy: str) -> None:
        for pipe, home in zip(self.pipes, self._homes, strict=True):
            pipe.policy = "static"
            if pipe.plan != home:
                pipe.migrate(home)
            pipe.policy = policy

    def _measure(self, done: Sequence[Callable[[], list[tuple[float, float]]]], which: Sequence[int]) -> list[Served]:
        time.sleep(self._settle_s)
        begin_s = time.perf_counter()
        time.sleep(self._seconds)
        end_s = time.perf_counter()
        plans = [
            str(self.pipes[index].windows if self.pipes[index].policy == "relay" else self.pipes[index].plan)
            for index in which
        ]
        served = []
        for read, plan in zip(done, plans, strict=True):
            latency_s = [took_s for at_s, took_s in read() if begin_s <= at_s <= end_s]
            served.append(Served(len(latency_s) / (end_s - begin_s), latency_s, plan))
        return served


Turns = Mapping[str, list[list[Served]]]
"""By name, one for each round."""


def sums(turns: Turns, name: str) -> list[float]:
    """Throughputs over those alone in the same round, added up.

    Examples
    --------
    >>> alone = {"alone 0": [[Served(10.0, [], "")]], "alone 1": [[Served(20.0, [], "")]]}
    >>> sums({"static": [[Served(5.0, [], ""), Served(12.0, [], "")]], **alone}, "static")
    [1.1]
    """
    alone = [[turn[0].rate_hz for turn in turns[f"{_ALONE} {index}"]] for index in (0, 1)]
    return [
        sum(own.rate_hz / by_itself[number] for own, by_itself in zip(turn, alone, strict=True))
        for number, turn in enumerate(turns[name])
    ]


def rows(turns: Turns) -> list[list[str]]:
    """A row for each name."""
    table = []
    for name, own in turns.items():
        both = list(zip(*own, strict=True))
        table.append(
            [
                name,
                "" if name.startswith(_ALONE) else with_quartiles(summarize(sums(turns, name)), "{:.3f}".format),
                " + ".join(f"{summarize([turn.rate_hz for turn in each]).median:.1f}" for each in both),
                " + ".join(milliseconds(summarize([turn.p99_s for turn in each]).median) for each in both),
                with_quartiles(summarize([max(one.p99_s for one in turn) for turn in own]), milliseconds),
                " + ".join(each[-1].plan for each in both),
            ]
        )
    return table


def measure_pair(models: Sequence[str], arguments: argparse.Namespace, *, share: float) -> dict[str, Turns]:
    """Closed and open loops of a pair."""
    with ExitStack() as stack:
        pair = Pair(models, stack, share=share, settle_s=arguments.settle, seconds=arguments.seconds)
        alone: dict[str, Callable[[], list[Served]]] = {
            f"{_ALONE} {index}": partial(pair.closed, "relay", which=(index,)) for index in (0, 1)
        }
        closed = {policy: partial(pair.closed, policy) for policy in arguments.policies}
        turn = partial(interleave, rounds=arguments.rounds, warmup=0, seed=arguments.seed)
        found: dict[str, Turns] = {"closed loop": turn({**alone, **closed})}
        print(f"{'+'.join(models)}, closed loop: done", file=sys.stderr)
        alone_hz = [summarize([one[0].rate_hz for one in found["closed loop"][name]]).median for name in sorted(alone)]
        for part in arguments.parts:
            rates_hz = [part * hz for hz in alone_hz]
            opened = {policy: partial(pair.opened, policy, rates_hz) for policy in arguments.policies}
            title = f"open loop at {part:.0%} of each alone ({rates_hz[0]:.1f} and {rates_hz[1]:.1f}/s)"
            found[title] = turn({**alone, **opened})
            print(f"{'+'.join(models)}, {title}: done", file=sys.stderr)
        return found


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="MODEL+MODEL", help="default: %(default)s")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="default: %(default)s")
    parser.add_argument("--parts", nargs="*", type=float, default=[0.3, 0.45], help="of open loops (%(default)s)")
    parser.add_argument("--share", type=float, default=0.3, help="of the second model, again; 1: not (%(default)s)")
    parser.add_argument("--settle", type=float, default=6.0, metavar="S", help="before a turn counts (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="of a turn (%(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.settle, arguments.seconds, arguments.parts = 1, 2.0, 2.0, arguments.parts[:1]
    pairs = [tuple(text.split("+")) for text in arguments.pairs]
    if any(len(models) != 2 for models in pairs):
        parser.error(f"--pairs {' '.join(arguments.pairs)}: give two models joined by +, such as {PAIRS[0]}")
    environment = Environment.collect(("torch", "ray", "numpy"))
    torch.set_num_threads(1)
    results: dict[str, dict[str, Turns]] = {}
    for models in pairs:
        for share in dict.fromkeys((1.0, arguments.share)):
            name = "+".join(models) + (f", {models[1]} with at most {share:.0%} of each core" if share < 1 else "")
            results[name] = measure_pair(models, arguments, share=share)
            for loop, turns in results[name].items():
                title = f"{name}, two cores, {loop}; {arguments.rounds} rounds, medians (quartiles)"
                report(title, COLUMNS, rows(turns), environment)
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
