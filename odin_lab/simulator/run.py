"""One simulated run: what goes in, and what came of each request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from odin.control.detectors import make_detector
from odin.monitor.watch import StageWatch
from odin.partitioner.balance.exact import balance
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Policy, Setting, windows_of
from odin.partitioner.relay import Windows
from odin_lab.simulator.arrivals import Arrivals
from odin_lab.simulator.compiled import loops
from odin_lab.simulator.conditions import Conditions
from odin_lab.simulator.control import Control
from odin_lab.simulator.deadlines import REFUSED
from odin_lab.simulator.door import Deadline, Door
from odin_lab.simulator.engine import Engine, Truth
from odin_lab.simulator.faults import CRASH_NOTICE_S, HANG_FACTOR, FaultLine, LossSeen
from odin_lab.simulator.interference import Interference
from odin_lab.simulator.losses import Losses
from odin_lab.simulator.relay import RelayLine
from odin_lab.simulator.steering import Steering
from odin_lab.simulator.whole_relay import WholeRelay
from odin_lab.simulator.world import World

__all__ = ["PREPARE_S", "Run", "simulate", "simulate_relay", "undisturbed_s"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PREPARE_S = 0.007
"""Seconds from a decision to the switch: median of some 130 moves of two-stage ResNet50 pipelines (3 to 20 ms)."""


@dataclass(frozen=True, eq=False)
class Run:
    """What came of each request; index 0 is request 1. In a relay requests may overtake one another.

    Attributes
    ----------
    arrived_s, submitted_s, finished_s
        Seconds from the beginning at which each request came, was taken by the gateway (it waits while as many as are
        allowed are in flight) and was answered, shape (requests,).
    plan_index
        Which of ``plans`` each request ran under.
    plans
        Those that requests ran under, each once.
    true_bottleneck_s
        True seconds of the slowest stage, transfers included, under that plan and the conditions of the request's
        submission, without noise; nan in a relay, whose requests run under no plan (``plans`` is the one in force).
    best_bottleneck_s
        The same of the exact best plan for these conditions; ``None`` unless asked for.
    trial
        Whether it ran under a plan that was tried out: one of kind ``trial`` or ``probe``.
    decisions
        (requests finished, decision).
    changes
        (requests finished, stage whose change was detected with the last of them).
    interference
        What was going on.
    peak_hz
        Throughput of the best plan with nothing else running.
    outcome, deadline_s, attempts, losses
        Where devices are lost or requests have deadlines, else ``None``: what became of each request
        (:data:`odin_lab.simulator.deadlines.ANSWERED` and others), the moment at which it was to be answered at the
        latest, and how many times it was sent again; and the losses as they went. ``finished_s`` is infinite for what
        was not answered.
    """

    arrived_s: FloatArray
    submitted_s: FloatArray
    finished_s: FloatArray
    plan_index: IntArray
    plans: tuple[Plan, ...]
    true_bottleneck_s: FloatArray
    best_bottleneck_s: FloatArray | None
    trial: NDArray[np.bool_]
    decisions: tuple[tuple[int, Decision], ...]
    changes: tuple[tuple[int, int], ...]
    interference: Interference
    peak_hz: float
    outcome: NDArray[np.int8] | None = None
    deadline_s: FloatArray | None = None
    attempts: IntArray | None = None
    losses: tuple[LossSeen, ...] = ()

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests were answered."""
        return np.isfinite(self.finished_s)

    @property
    def latency_s(self) -> FloatArray:
        """Seconds from each request's coming to its answer; in a closed loop requests are taken as they come."""
        latency_s: FloatArray = self.finished_s - self.arrived_s
        return latency_s

    @property
    def throughput_hz(self) -> float:
        """Requests answered per second, from the first submission on."""
        if self.outcome is None:
            return len(self.finished_s) / float(self.finished_s.max() - self.submitted_s[0])
        answered_s = self.finished_s[self.answered]
        first_s = self.submitted_s[self.outcome != REFUSED]
        return len(answered_s) / float(answered_s.max() - first_s[0]) if len(answered_s) else 0.0


def simulate(
    world: World,
    policy: Policy,
    *,
    requests: int,
    interference: Interference | None = None,
    plan: Plan | None = None,
    arrivals: str | Arrivals = "closed",
    in_flight: int | None = None,
    slots: int = 2,
    detector: str = "cusum",
    serial_trials: bool = False,
    prepare_s: float = PREPARE_S,
    best: bool = False,
    truth: Truth = "now",
    told: Setting | None = None,
    losses: str | Losses | None = None,
    deadline: str | Deadline | None = None,
    admission: str = "none",
    crash_notice_s: float = CRASH_NOTICE_S,
    hang_factor: float = HANG_FACTOR,
    seed: int = 0,
) -> Run:
    """Let a pipeline serve requests under interference, with the policy that would serve live.

    Parameters
    ----------
    world
        What is true.
    policy
        Decides; started anew. One that sets windows (:func:`odin.partitioner.policies.windows_of`), as ``relay`` does,
        runs in :func:`simulate_relay` within these windows and is not asked again; what is said here of slots, trials,
        detector, preparation and truth means nothing then.
    requests
        How many, at least 1.
    interference
        What disturbs the devices; default: nothing.
    plan
        To begin with; default: the exact best one for the baselines.
    arrivals
        See :mod:`odin_lab.simulator.arrivals`.
    in_flight
        Requests that the gateway lets in at once; default: two for each stage, as live under plans (the live relay
        lets in one and a half).
    slots
        Buffers between neighbouring stages, the one that is computed on included; 2 live.
    detector
        Text form of a detector; ``none`` detects nothing.
    serial_trials
        While a plan is tried out requests go one at a time, as in the ODIN paper.
    prepare_s
        Seconds from a decision to the first request that can be submitted under the new plan.
    best
        Also find the best plan for all conditions that there were.
    truth
        What ``Observation.true_s`` tells oracles: ``now``, the times at that moment, or ``finished``, those at which
        the request that has just been answered was submitted; ``hidden``: nothing, as live.
    told
        What policy and watch are told of layers and transfers, if that is not the truth: a profile. Its plan is the
        one to begin with, unless ``plan`` is given.
    losses
        Devices that are lost: see :mod:`odin_lab.simulator.losses`.
    deadline
        Time from its coming in which each request is to be answered, ``250ms``, or ``3x`` for three times
        :func:`undisturbed_s`.
    admission
        What is done about requests that would be late: see :mod:`odin_lab.simulator.door`.
    crash_notice_s
        Seconds from a stage's death to the moment at which the gateway knows.
    hang_factor
        A stage silent for so many times what it should take for its request is taken for lost.
    seed
        Of noise, arrivals and losses, which do not depend on the policy.

    Returns
    -------
    Run
        What came of it.

    Raises
    ------
    ValueError
        If a value is out of its range, or the policy answers with a plan that does not fit.

    Examples
    --------
    >>> from odin.partitioner.policies import make_policy
    >>> run = simulate(World.of([[0.1, 0.1], [0.1, 0.1]]), make_policy("static"), requests=100)
    >>> str(run.plans[0]), round(run.throughput_hz, 1)
    ('1|1', 9.9)
    """
    if requests < 1:
        raise ValueError(f"{requests} requests: simulate at least 1")
    if in_flight is not None and in_flight < 1:
        raise ValueError(f"in_flight={in_flight}: at least 1")
    if not 0 <= prepare_s < math.inf:
        raise ValueError(f"prepare_s={prepare_s}: seconds, 0 or more")
    if truth not in get_args(Truth):
        raise ValueError(f"truth={truth!r} is none of {', '.join(get_args(Truth))}")
    interference = interference or Interference()
    arrivals = Arrivals.parse(arrivals) if isinstance(arrivals, str) else arrivals
    setting = world.setting(plan or (told and told.plan))
    if told is not None:
        if told.baseline_s.shape != world.baseline_s.shape:
            raise ValueError(f"told of {told.baseline_s.shape} stages and layers, where {world.baseline_s.shape} are")
        setting = told._replace(plan=setting.plan)
    home = balance(world.baseline_s, send_s=world.send_s, receive_s=world.receive_s)
    arrivals = arrivals.at_peak(1 / home.bottleneck_s)
    Door(admission, stages=world.device_count)
    if losses is None and deadline is None and admission != "none":
        raise ValueError(f"admission {admission!r} means nothing without a deadline; give one, such as deadline='3x'")
    if losses is not None or deadline is not None:
        if serial_trials or slots != 2 or best:
            raise ValueError("with losses or deadlines trials are not serial, slots are 2, and best is not known")
        if not (0 <= crash_notice_s < math.inf and 0 < hang_factor < math.inf):
            raise ValueError(f"crash_notice_s={crash_notice_s}, hang_factor={hang_factor}: 0 s or more, and above 0")
        limit = Deadline.parse(deadline) if isinstance(deadline, str) else deadline
        steering = Steering(setting, policy, detector=detector, prepare_s=prepare_s)
        line = FaultLine(
            world,
            steering,
            requests=requests,
            interference=interference,
            arrivals=arrivals,
            in_flight=in_flight or 2 * world.device_count,
            losses=Losses.parse(losses) if isinstance(losses, str) else losses,
            deadline_s=math.inf if limit is None else limit.seconds(undisturbed_s(world, home.plan)),
            admission=admission,
            prepare_s=prepare_s,
            crash_notice_s=crash_notice_s,
            hang_factor=hang_factor,
            truth=truth,
            seed=seed,
        )
        line.run()
        return Run(
            line.arrived_s,
            line.submitted_s,
            line.finished_s,
            line.plan_index,
            tuple(steering.plans),
            np.full(requests, np.nan),
            None,
            line.trial,
            tuple(steering.decisions),
            tuple(steering.changes),
            interference,
            1 / home.bottleneck_s,
            line.outcome,
            line.deadline_s,
            line.attempts,
            tuple(line.seen),
        )
    windows = windows_of(policy, setting)
    if windows is not None:
        return simulate_relay(
            world,
            requests=requests,
            windows=windows,
            interference=interference,
            plan=setting.plan,
            arrivals=arrivals,
            in_flight=in_flight,
            best=best,
            seed=seed,
        )
    watch = None
    if detector != "none":
        watch = StageWatch(setting.baseline_s, make_detector(detector, world.device_count))
    engine = Engine(
        world,
        Control(setting, policy, watch, prepare_s=prepare_s),
        plan=setting.plan,
        requests=requests,
        interference=interference,
        arrivals=arrivals,
        in_flight=in_flight or 2 * world.device_count,
        slots=slots,
        serial_trials=serial_trials,
        truth=truth,
        seed=seed,
    )
    engine.run()
    return Run(
        engine.arrived_s,
        engine.submitted_s,
        engine.finished_s,
        engine.plan_index,
        tuple(engine.plans),
        engine.bottleneck_s,
        _best_bottlenecks(world, interference, engine.conditions_number) if best else None,
        engine.trial,
        tuple(engine.control.decisions),
        tuple(engine.control.changes),
        interference,
        1 / home.bottleneck_s,
    )


def simulate_relay(
    world: World,
    *,
    requests: int,
    windows: Windows | None = None,
    interference: Interference | None = None,
    plan: Plan | None = None,
    arrivals: str | Arrivals = "closed",
    in_flight: int | None = None,
    best: bool = False,
    seed: int = 0,
) -> Run:
    """Let a line of stages that hand over by readiness serve requests; see :mod:`odin.partitioner.relay`.

    Parameters
    ----------
    windows
        At which cuts stages may hand over; default: at every cut.
    plan
        The plan in force meanwhile, which only the result names; default: the exact best one for the baselines.
    world, requests, interference, arrivals, in_flight, best, seed
        As :func:`simulate` has them: with the same seed noise, events and arrivals are the same.

    Raises
    ------
    ValueError
        If a value is out of its range, or windows do not fit the world.

    Examples
    --------
    >>> run = simulate_relay(World.of([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]), requests=200)
    >>> round(run.throughput_hz, 1)
    6.7
    """
    if requests < 1:
        raise ValueError(f"{requests} requests: simulate at least 1")
    if in_flight is not None and in_flight < 1:
        raise ValueError(f"in_flight={in_flight}: at least 1")
    stages, layers = world.device_count, world.layer_count
    windows = windows or Windows.whole(stage_count=stages, layer_count=layers)
    windows.check_fits(layer_count=layers, stage_count=stages)
    interference = interference or Interference()
    home = balance(world.baseline_s, send_s=world.send_s, receive_s=world.receive_s)
    arrivals = Arrivals.parse(arrivals) if isinstance(arrivals, str) else arrivals
    fast = loops()
    whole = windows == Windows.whole(stage_count=stages, layer_count=layers)
    arrivals, in_flight = arrivals.at_peak(1 / home.bottleneck_s), in_flight or 2 * stages
    make: Callable[..., RelayLine | WholeRelay] = partial(RelayLine, windows=windows)
    if fast is not None and whole and WholeRelay.can_run(world):
        make = partial(WholeRelay, run_events=fast.run_events)
    line = make(world, requests=requests, interference=interference, arrivals=arrivals, in_flight=in_flight, seed=seed)
    line.run()
    return Run(
        line.arrived_s,
        line.submitted_s,
        line.finished_s,
        np.zeros(requests, dtype=np.int64),
        (plan or home.plan,),
        np.full(requests, np.nan),
        _best_bottlenecks(world, interference, line.conditions_number) if best else None,
        np.zeros(requests, dtype=np.bool_),
        (),
        (),
        interference,
        1 / home.bottleneck_s,
    )


def undisturbed_s(world: World, plan: Plan) -> float:
    """Seconds from a request's coming to its answer if it is alone, under a plan, with nothing else running."""
    cuts = (0, *(last for _, last in plan.ranges))
    layers_s = sum(float(world.baseline_s[k, first:last].sum()) for k, (first, last) in enumerate(plan.ranges))
    handed_s = sum(float(world.send_s[cut] + world.receive_s[cut]) for cut in cuts)
    return layers_s + handed_s


def _best_bottlenecks(world: World, interference: Interference, numbers: IntArray) -> FloatArray:
    """Seconds of the best plan for the conditions of each request, given how many changes there had been."""
    conditions = Conditions(world, interference)
    known: dict[tuple[tuple[int, tuple[str, ...]], ...], float] = {}
    found_s, last = np.full(int(numbers.max()) + 1, np.nan), int(numbers.max())
    wanted = set(numbers.tolist())
    while True:
        if conditions.number in wanted:
            key = tuple(sorted(conditions.scenarios.items()))
            if key not in known:
                known[key] = _best_s(world, conditions.true_s)
            found_s[conditions.number] = known[key]
        if conditions.number >= last:
            return found_s[numbers]
        conditions.advance(conditions.next_edge)


def _best_s(world: World, true_s: FloatArray) -> float:
    try:
        return balance(true_s, send_s=world.send_s, receive_s=world.receive_s).bottleneck_s
    except ValueError:
        if np.isinf(true_s).any():  # every plan needs a device that is dead
            return math.inf
        raise
