"""Computing less: accuracy against speed-up on real images, and deadlines kept at 2x interference within a budget.

Trains a slimmable residual network on scikit-learn's digits (minutes), puts early exits into it, narrows it, and
measures each form on images that nothing was trained by. Then requests with a deadline arrive at random at a share of
the full model's capacity, undisturbed and with a busy program on every core, answered by the full model alone (the
relay, which can move layers but has nowhere to move them), with those refused that would be late, and by whichever form
:func:`odin.reduction.selection.select` names for each request::

    python -m benchmarks.reduction --stages cpu:0,cpu:1 --output reduction.json
    python -m benchmarks.reduction --quick

Nothing else may run on the cores.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from rich.console import Console

import odin
from benchmarks.common import Environment, add_arguments, closed_loop, report, write_result
from benchmarks.digits import DigitsNet, digits, shifted
from odin.errors import DeadlineExceededError
from odin.reduction.accuracy import Interval, wilson
from odin.reduction.labelled import Labelled
from odin.reduction.programs import time_forms
from odin.reduction.reduced import FULL, Reduced, ReducedForm, reduce_model
from odin.reduction.selection import Option, select, within_budget
from odin.reduction.slimmable import train_slimmable
from odin.requests.admission import NONE, PREDICT
from odin.stages.device import parse_devices
from odin_lab.inject import Injector, Load

WIDTHS = (1.0, 0.75, 0.5, 0.25)
NARROWED = (0.75, 0.5)
CONTENDERS = ("full model, all taken", "full model, late ones refused", "least reduction in time")
SMOOTHING = 0.1
"""Weight of the newest request in the estimate of the slowdown."""


class Row(NamedTuple):
    """A form of the network."""

    name: str
    layers: int
    flops_share: float
    seconds: float
    accuracy: Interval
    lost: Interval
    agreement: float
    calibration_error: float


class Kept(NamedTuple):
    """What one contender did under one load.

    Attributes
    ----------
    in_time
        Answered before the deadline, of all.
    right
        Rightly classified, of those answered in time.
    given
        Requests that each form answered.
    choosing_s
        Median seconds that choosing a form took; nan where there was no choice.
    """

    contender: str
    loaded: bool
    requests: int
    in_time: Interval
    right: Interval | None
    given: Mapping[str, int]
    choosing_s: float


class Chooser:
    """Names a form for each request, from what is under way and how slow the machine is now."""

    def __init__(self, options: Sequence[Option], *, devices: int, budget: float) -> None:
        self.options, self.devices, self.budget = options, devices, budget
        self.slowdown = 1.0
        self._lock = threading.Lock()
        self._work_s = 0.0  # of requests under way, undisturbed

    def choose(self, time_s: float) -> Option:
        """Choose, and count what was chosen as under way."""
        with self._lock:
            wait_s = self._work_s * self.slowdown / self.devices
            chosen = select(
                self.options, time_s=time_s, wait_s=wait_s, slowdown=self.slowdown, budget=self.budget
            ).option
            self._work_s += chosen.seconds
            return chosen

    def done(self, option: Option, computed_s: float | None) -> None:
        """Note that a request is no longer under way, and how long it was computed, if it was."""
        with self._lock:
            self._work_s = max(0.0, self._work_s - option.seconds)
            if computed_s is not None:
                self.slowdown += SMOOTHING * (max(1.0, computed_s / option.seconds) - self.slowdown)


def measured(reduced: Reduced, *, rounds: int) -> list[Row]:
    """Time all forms in turn."""
    forms = reduced.forms
    seconds = time_forms([form.chain for form in forms], rounds=rounds)
    return [
        Row(
            form.name,
            len(form.chain.layers),
            form.flops / forms[0].flops,
            took_s,
            form.judgement.accuracy,
            form.judgement.lost,
            form.judgement.agreement,
            form.judgement.calibration_error,
        )
        for form, took_s in zip(forms, seconds, strict=True)
    ]


class Live:
    """A pipeline for each form, all on the same devices."""

    def __init__(
        self, stack: ExitStack, forms: Sequence[ReducedForm], stages: str, images: Labelled, *, budget: float
    ) -> None:
        self.stages = parse_devices(stages)
        self.images, self.budget = images, budget

        def opened(form: ReducedForm, admission: str) -> odin.Pipeline:
            return stack.enter_context(
                odin.Pipeline(
                    form.model,
                    stages=self.stages,
                    example_input=images.images[:1],
                    policy="relay",
                    share_devices=True,
                    admission=admission,
                )
            )

        self.pipes = {form.name: opened(form, NONE) for form in forms}
        self.refusing = opened(forms[0], PREDICT)
        self.injector = stack.enter_context(Injector())
        self.losses = {form.name: form.judgement.lost.value for form in forms}
        inputs = images.images[:1]
        loops = {
            name: closed_loop(lambda index, pipe=pipe: pipe.submit(inputs), count=200, in_flight=4, warmup=40)  # type: ignore[misc]  # mypy and defaults of lambdas
            for name, pipe in self.pipes.items()
        }
        self.capacity_hz = loops[FULL].throughput_hz
        self.options = [
            Option(name, len(self.stages) / loop.throughput_hz, self.losses[name]) for name, loop in loops.items()
        ]

    def serve(self, contender: str, *, loaded: bool, rate_hz: float, deadline_s: float, count: int, seed: int) -> Kept:
        """Send requests at random times; count what is answered in time, and rightly."""
        loads = [Load("cpu", device) for device in self.stages] if loaded else []
        handles = [self.injector.start(load) for load in loads]
        try:
            return self._serve(contender, loaded, rate_hz, deadline_s, count, seed)
        finally:
            for handle in handles:
                handle.stop()

    def _serve(self, contender: str, loaded: bool, rate_hz: float, deadline_s: float, count: int, seed: int) -> Kept:
        draws = random.Random(seed)
        reduces = contender == CONTENDERS[2]
        pipes = {FULL: self.refusing} if contender == CONTENDERS[1] else self.pipes
        options = self.options if reduces else [one for one in self.options if one.name == FULL]
        chooser = Chooser(options, devices=len(self.stages), budget=self.budget)
        found: list[tuple[str, bool, bool]] = []
        choosing: list[float] = []
        waiting: list[Future[Any]] = []
        warm = count // 4
        next_s = time.perf_counter()
        for number in range(warm + count):
            next_s += draws.expovariate(rate_hz)
            time.sleep(max(0.0, next_s - time.perf_counter()))
            index = draws.randrange(len(self.images.labels))
            begin_s = time.perf_counter()
            left_s = next_s + deadline_s - begin_s
            option = chooser.choose(left_s)
            choosing.append(time.perf_counter() - begin_s)
            if left_s <= 0:
                chooser.done(option, None)
                if number >= warm:
                    found.append((option.name, False, False))
                continue
            pipe = pipes[option.name]
            future = pipe.submit(self.images.images[index : index + 1], timeout_s=left_s)

            def note(done: Future[Any], option: Option = option, index: int = index, number: int = number) -> None:
                try:
                    scores = done.result()
                except DeadlineExceededError:
                    scores = None
                timelines = pipes[option.name].timelines()
                computed_s = None
                if scores is not None and timelines:
                    computed_s = math.fsum(stage.wall_s for stage in timelines[-1].stages)
                chooser.done(option, computed_s)
                if number >= warm:
                    right = scores is not None and int(scores.argmax()) == int(self.images.labels[index])
                    found.append((option.name, scores is not None, right))

            future.add_done_callback(note)
            waiting.append(future)
        for future in waiting:
            future.exception()
        end_s = time.perf_counter() + 10
        while len(found) < count and time.perf_counter() < end_s:  # callbacks have a thread of their own
            time.sleep(0.01)
        answered = [one for one in found if one[1]]
        return Kept(
            contender,
            loaded,
            len(found),
            wilson(len(answered), len(found)),
            wilson(sum(right for _, _, right in answered), len(answered)) if answered else None,
            dict(Counter(name for name, _, _ in answered)),
            sorted(choosing)[len(choosing) // 2] if reduces else math.nan,
        )


def chosen_forms(reduced: Reduced, rows: Sequence[Row], *, budget: float, most: int) -> list[ReducedForm]:
    """The full model and the fastest forms within the budget, at most so many in all."""
    options = within_budget([Option(row.name, row.seconds, row.lost.value) for row in rows], budget)
    names = [FULL, *(option.name for option in options[1:][-(most - 1) :])]
    return [form for form in reduced.forms if form.name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=50)
    parser.add_argument("--stages", default="cpu:0,cpu:1", help="devices of the pipelines (default %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images (default %(default)s)")
    parser.add_argument("--channels", type=int, default=16, help="of the first blocks (default %(default)s)")
    parser.add_argument("--depth", type=int, default=2, help="blocks of each resolution (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=25, help="of training (default %(default)s)")
    parser.add_argument("--budget", type=float, default=0.003, help="accuracy that may be lost (default %(default)s)")
    parser.add_argument("--rate", type=float, default=0.7, help="arrivals / capacity (default %(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=10.0, help="in times of a request alone (default %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=4000, help="of each live run (default %(default)s)")
    parser.add_argument("--no-live", action="store_true", help="only accuracy against speed-up")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size, arguments.channels, arguments.depth, arguments.epochs = 8, 16, 1, 8
        arguments.rounds, arguments.requests = 5, 600
    console = Console(stderr=True, highlight=False)
    torch.set_num_threads(1)
    training, held_out = digits(size=arguments.size, seed=arguments.seed)
    with console.status("training") as status:
        networks = train_slimmable(
            lambda width: DigitsNet(width, channels=arguments.channels, depth=arguments.depth),
            training,
            widths=WIDTHS,
            epochs=arguments.epochs,
            seed=arguments.seed,
            augment=shifted,
            tell=lambda epoch, loss: status.update(f"training: epoch {epoch} of {arguments.epochs}, loss {loss:.3f}"),
        )
        reduced = reduce_model(
            networks[1.0],
            training,
            held_out,
            exits=5,
            widths=NARROWED,
            trained_widths=networks,
            name="digits",
            seed=arguments.seed,
            tell=status.update,
        )
        status.update("timing")
        rows = measured(reduced, rounds=arguments.rounds)
    environment = Environment.collect()
    report(
        f"forms of a network trained on digits, {len(held_out.labels)} held-out images, one core",
        ("form", "layers", "operations", "ms", "speed-up", "accuracy %", "lost %", "agrees %", "confidence off by %"),
        [
            (
                row.name,
                str(row.layers),
                f"{row.flops_share:.0%}",
                f"{row.seconds * 1e3:.3g}",
                f"{rows[0].seconds / row.seconds:.2f}",
                f"{row.accuracy.value * 100:.2f} ({row.accuracy.low * 100:.1f}..{row.accuracy.high * 100:.1f})",
                f"{row.lost.value * 100:.2f} ({row.lost.low * 100:.1f}..{row.lost.high * 100:.1f})",
                f"{row.agreement * 100:.1f}",
                f"{row.calibration_error * 100:.1f}",
            )
            for row in rows
        ],
        environment,
    )
    for note in reduced.notes:
        console.print(note, markup=False)
    kept = [] if arguments.no_live else live(reduced, rows, held_out, arguments, environment)
    write_result(
        arguments.output,
        environment=environment,
        parameters={name: value for name, value in vars(arguments).items() if name != "output"},
        results={"forms": rows, "live": kept},
    )
    return 0


def live(
    reduced: Reduced, rows: Sequence[Row], images: Labelled, arguments: argparse.Namespace, environment: Environment
) -> list[Kept]:
    """Deadlines kept by each contender, undisturbed and with a load on every core."""
    forms = chosen_forms(reduced, rows, budget=arguments.budget, most=3)
    kept = []
    with ExitStack() as stack:
        serving = Live(stack, forms, arguments.stages, images, budget=arguments.budget)
        alone_s = next(option.seconds for option in serving.options if option.name == FULL)
        for loaded in (False, True):
            for contender in CONTENDERS:
                kept.append(
                    serving.serve(
                        contender,
                        loaded=loaded,
                        rate_hz=arguments.rate * serving.capacity_hz,
                        deadline_s=arguments.deadline * alone_s,
                        count=arguments.requests,
                        seed=arguments.seed,
                    )
                )
    report(
        f"answered in time at {arguments.rate:g} of the capacity ({serving.capacity_hz:.0f}/s), deadline "
        f"{arguments.deadline * alone_s * 1e3:.1f} ms",
        ("contender", "load", "in time %", "right of these %", "answered by", "choosing us"),
        [
            (
                one.contender,
                "cpu on every core" if one.loaded else "none",
                f"{one.in_time.value * 100:.1f}",
                "-" if one.right is None else f"{one.right.value * 100:.2f}",
                ", ".join(f"{name} {count}" for name, count in sorted(one.given.items())),
                "-" if math.isnan(one.choosing_s) else f"{one.choosing_s * 1e6:.0f}",
            )
            for one in kept
        ],
        environment,
    )
    return kept


if __name__ == "__main__":
    sys.exit(main())
