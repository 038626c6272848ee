"""A tiny closed loop in which any policy can be driven: deterministic, seeded, no clock, no processes.

A change of the true times, what a policy is told, and when a decision is felt, with ``in_flight=3``, ``flag_delay=1``
and a change from request 50 on::

    request finished   49    50    51                52    53    54    55
    true times         calm  slow  slow              slow  slow  slow  slow
    changed            .     .     yes, age 2        .     .     .     .
    decide() says      -     -     Decision(4|2)     -     -     -     -
    ran under          3|3   3|3   3|3               3|3   3|3   4|2   4|2

52 and 53 were in the pipeline already when 51 finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odin.partitioner.balance.exact import stage_times
from odin.partitioner.plan import Plan
from odin.partitioner.policies.base import Decision, Observation, Policy, Setting

__all__ = ["PolicyRun", "drive_policy", "setting_for", "slowed"]

FloatArray = NDArray[np.float64]


class PolicyRun(NamedTuple):
    """What happened, request by request; request ``r`` is at index ``r - 1``.

    Attributes
    ----------
    plans
        Plan that each request ran under.
    decisions
        (request with whose completion it was made, decision).
    bottleneck_s
        True seconds of the slowest stage, transfers included, without noise, shape (requests,).
    finished_s
        Time at which each request finished, shape (requests,).
    flagged
        (request, stages reported as changed with it).
    """

    plans: list[Plan]
    decisions: list[tuple[int, Decision]]
    bottleneck_s: FloatArray
    finished_s: FloatArray
    flagged: list[tuple[int, tuple[int, ...]]]

    @property
    def moves(self) -> int:
        """Decisions made, each of which is a change of plan."""
        return len(self.decisions)

    @property
    def plans_tried(self) -> list[str]:
        """Text of each decision's plan, in order."""
        return [str(decision.plan) for _, decision in self.decisions]

    @property
    def kinds(self) -> list[str]:
        """Kind of each decision, in order."""
        return [decision.kind for _, decision in self.decisions]

    @property
    def final_plan(self) -> Plan:
        """Plan in force at the end: the last decision's, else the first."""
        return self.decisions[-1][1].plan if self.decisions else self.plans[0]


def slowed(times_s: ArrayLike, factors: Mapping[int, ArrayLike]) -> FloatArray:
    """Times with some stages slowed down: ``factors`` is {stage: factor or one per layer}, inf for a dead stage.

    Examples
    --------
    >>> slowed([[1.0, 1.0], [1.0, 1.0]], {1: 2.5}).tolist()
    [[1.0, 1.0], [2.5, 2.5]]
    """
    times: FloatArray = np.array(times_s, dtype=float)
    for stage, factor in factors.items():
        times[stage] = times[stage] * np.asarray(factor, dtype=float)
    return times


def setting_for(
    times_s: ArrayLike,
    plan: Plan | Iterable[int] | str,
    *,
    send_s: ArrayLike | None = None,
    receive_s: ArrayLike | None = None,
    intensity: ArrayLike | None = None,
) -> Setting:
    """Setting whose baselines are ``times_s``, shape (stages, layers); transfers are free unless given.

    Examples
    --------
    >>> setting_for([[1.0, 1.0], [2.0, 2.0]], (1, 1)).baseline_s.sum(axis=1).tolist()
    [2.0, 4.0]
    """
    times = np.array(times_s, dtype=float)
    layers = times.shape[1]
    free = np.zeros(layers + 1)
    return Setting(
        plan=Plan.parse(plan) if isinstance(plan, str) else Plan(plan),
        baseline_s=times,
        send_s=free if send_s is None else np.asarray(send_s, dtype=float),
        receive_s=free if receive_s is None else np.asarray(receive_s, dtype=float),
        intensity=np.full(layers, np.nan) if intensity is None else np.asarray(intensity, dtype=float),
    )


def drive_policy(
    policy: Policy,
    baseline_s: ArrayLike,
    plan: Plan | Iterable[int] | str,
    *,
    changes: Mapping[int, ArrayLike] | Callable[[int], ArrayLike | None] = MappingProxyType({}),
    requests: int,
    in_flight: int = 3,
    noise: ArrayLike = 0.0,
    layer_noise: float = 0.0,
    seed: int = 0,
    flag_delay: int | None = 0,
    false_alarms: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
    clairvoyant: bool = False,
    layers_measured: bool = True,
    dead_s: float = 1000.0,
    send_s: ArrayLike | None = None,
    receive_s: ArrayLike | None = None,
    intensity: ArrayLike | None = None,
    watch: Callable[[Observation, Decision | None], None] | None = None,
) -> PolicyRun:
    """Start the policy and let it see ``requests`` requests.

    Parameters
    ----------
    baseline_s
        Undisturbed seconds, shape (stages, layers); also the true times until the first change.
    plan
        Plan to begin with (anything that ``Plan`` takes).
    changes
        ``{request: true times (stages, layers) from this request on}``, or a function of the request number (from 1)
        that gives the true times.
    in_flight
        Requests in the pipeline at once, >= 1: after a decision, the next ``in_flight - 1`` requests to finish ran
        under the old plan still. 1 is serial: the next request runs under the new plan.
    noise
        Standard deviation of the logarithm of each stage's time (median 1, one factor per stage and request), one
        number or one per stage. Observations report it truthfully.
    layer_noise
        The same, independent for each layer; on top, not reported.
    seed
        Of the noise. The noise of a request does not depend on what the policy does.
    flag_delay
        A stage's change is flagged with its (flag_delay + 1)-th request under the new times, its ``age`` then being
        flag_delay + 1; None flags none. A stage without layers is blind: what changes there is flagged only when it
        has layers again, if it still matters then.
    false_alarms
        ``{request: stages}`` flagged though nothing changed, with ``age`` flag_delay + 1.
    clairvoyant
        Whether observations have ``true_s``, as in simulation.
    layers_measured
        Whether observations have ``layer_s``; nan otherwise.
    dead_s
        What a request takes on a stage for layers whose true time is infinite (a timeout): requests do finish.
    send_s, receive_s, intensity
        For the setting; transfers count for completion times and ``bottleneck_s``, not in ``stage_s``.
    watch
        Called with each observation and what the policy answered.

    Raises
    ------
    AssertionError
        If the policy answers with the plan in force.
    ValueError
        If it answers with a plan that does not fit.

    Examples
    --------
    Stage 1 becomes twice as slow at request 50:

    >>> from odin.partitioner.policies import make_policy
    >>> calm = np.ones((2, 6))
    >>> run = drive_policy(
    ...     make_policy("odin:alpha=2"), calm, (3, 3), changes={50: slowed(calm, {1: 2.0})}, requests=200
    ... )
    >>> run.plans_tried, run.final_plan, run.decisions[0][0]
    (['4|2', '3|3', '4|2'], Plan((4, 2)), 53)
    """
    setting = setting_for(baseline_s, plan, send_s=send_s, receive_s=receive_s, intensity=intensity)
    stages, layers = setting.baseline_s.shape
    sigma = np.broadcast_to(np.asarray(noise, dtype=float), (stages,)).copy()
    random = np.random.default_rng(seed)
    delay = 0 if flag_delay is None else flag_delay

    policy.start(setting)
    in_force = setting.plan
    submitted = [in_force] * in_flight  # plans of the requests in the pipeline, the next to finish first
    run = PolicyRun([], [], np.empty(requests), np.empty(requests), [])
    known = setting.baseline_s.copy()  # what the detector takes each stage to be like
    strange = np.zeros(stages, dtype=int)  # requests for which it has not been
    age = np.zeros(stages, dtype=np.int64)
    left_s = np.zeros(stages)  # when each stage finished the request before
    true = setting.baseline_s

    for request in range(1, requests + 1):
        times = changes(request) if callable(changes) else changes.get(request)
        ran_under = submitted.pop(0)
        if times is not None:
            true = np.array(times, dtype=float)
            true.setflags(write=False)
        if times is not None or request == 1 or ran_under != run.plans[-1]:
            bottleneck_s = max(stage_times(ran_under, true, setting.send_s, setting.receive_s))

        # Always drawn, whatever the plan, so that two policies see the same noise.
        factor = np.exp(sigma * random.standard_normal(stages))
        layer_factor = np.exp(layer_noise * random.standard_normal(layers))
        taken = np.where(np.isinf(true), dead_s, true) * factor[:, None] * layer_factor
        on_stage = np.repeat(np.arange(stages), ran_under)
        layer_s = taken[on_stage, np.arange(layers)]
        stage_s: FloatArray = np.asarray(np.bincount(on_stage, layer_s, minlength=stages), dtype=np.float64)

        # One request behind the other: a stage begins when it is free and the request has come.
        ranges = np.array(ran_under.ranges)
        busy_s = stage_s + setting.receive_s[ranges[:, 0]] + setting.send_s[ranges[:, 1]]
        at_s = run.finished_s[request - 1 - in_flight] if request > in_flight else 0.0
        for stage in range(stages):
            at_s = max(at_s, left_s[stage]) + busy_s[stage]
            left_s[stage] = at_s
        run.finished_s[request - 1] = at_s
        run.bottleneck_s[request - 1] = bottleneck_s
        run.plans.append(ran_under)

        holds = np.array(ran_under) > 0
        differs = (true != known).any(axis=1)
        strange = np.where(differs, strange + holds, 0)
        age = age + 1
        changed = np.zeros(stages, dtype=bool)
        if flag_delay is not None:
            changed = strange > flag_delay
        known[changed] = true[changed]
        strange[changed] = 0
        changed[list(false_alarms.get(request, ()))] = True
        age[changed] = np.minimum(delay + 1, age[changed])
        if changed.any():
            run.flagged.append((request, tuple(np.flatnonzero(changed).tolist())))

        observation = Observation(
            request=request,
            plan=ran_under,
            stage_s=stage_s,
            layer_s=layer_s if layers_measured else np.full(layers, np.nan),
            interval_s=float("nan") if request == 1 else at_s - run.finished_s[request - 2],
            changed=changed,
            age=age.copy(),
            noise=sigma.copy(),
            true_s=true if clairvoyant else None,
        )
        decision = policy.decide(observation)
        if watch is not None:
            watch(observation, decision)
        if decision is not None:
            decision.plan.check_fits(layer_count=layers, stage_count=stages)
            assert decision.plan != in_force, f"request {request}: {decision.plan} is in force already"
            in_force = decision.plan
            run.decisions.append((request, decision))
        submitted.append(in_force)
    return run
