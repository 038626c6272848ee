"""The interface of policies: ``Setting`` and ``Observation`` in, ``Decision`` out.

The same policy objects run live and in simulation: a policy sees each finished request as an :class:`Observation` and
answers with a :class:`Decision` or nothing. It does no input or output, reads no clock and starts no thread.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows

__all__ = [
    "Decision",
    "Observation",
    "Policy",
    "Setting",
    "TenantSetting",
    "checked_decision",
    "not_started",
    "text_form",
    "windows_of",
]

FloatArray = NDArray[np.float64]


class TenantSetting(NamedTuple):
    """What a pipeline is among others on the same devices.

    Attributes
    ----------
    name
        What others call it: its model's name.
    devices
        Of each stage, with its node: stages of the same device share it.
    share
        Largest part of any device's time that it uses, above 0, at most 1.
    """

    name: str
    devices: tuple[str, ...]
    share: float = 1.0


class Setting(NamedTuple):
    """What a policy may know before the first request: it does not change while a pipeline runs.

    Attributes
    ----------
    plan
        The plan that serving starts with.
    baseline_s
        Seconds of each layer on each stage's device with nothing else running, shape (stages, layers).
    send_s, receive_s
        Seconds to send, and to receive, the tensors that cross each cut, shape (layers + 1,). Cut i is before layer i.
    intensity
        Arithmetic intensity of each layer, floating-point operations per byte of weights, inputs and outputs, shape
        (layers,): low for memory-bound layers. ``nan`` where unknown.
    reach
        The widest windows: at which cuts each boundary may hand over without a stage getting ready for it. None: at
        those of the plan only.
    single_s
        As ``baseline_s`` (which is of a full micro-batch), for one sample; None if that is not known.
    batch
        Samples in a full micro-batch.
    tenant
        What it is to others on the same devices. None: there are none.
    """

    plan: Plan
    baseline_s: FloatArray
    send_s: FloatArray
    receive_s: FloatArray
    intensity: FloatArray
    reach: Windows | None = None
    single_s: FloatArray | None = None
    batch: int = 1
    tenant: TenantSetting | None = None

    @property
    def stage_count(self) -> int:
        """Number of stages."""
        return int(self.baseline_s.shape[0])

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return int(self.baseline_s.shape[1])


class Observation(NamedTuple):
    """The measurements of one finished request.

    Attributes
    ----------
    request
        Number of requests finished so far, this one included: 1, 2, ...
    plan
        The plan that the request ran under. After a decision, requests submitted earlier still finish under the old
        plan.
    stage_s
        Wall seconds that each stage spent in its layers, shape (stages,); 0.0 for a stage without layers.
    layer_s
        Seconds of each layer on the stage that ran it, shape (layers,); ``nan`` where it was not measured.
    interval_s
        Seconds since the request before it finished; ``nan`` for the first.
    changed
        Whether a change of the stage's slowdown, up or down, was detected with this request, shape (stages,).
    age
        Requests since the estimated change point of the stage's last detected change, this one included, shape
        (stages,). So many of the latest observations belong to the present conditions.
    noise
        Standard deviation of the logarithm of the stage's time when nothing changes, shape (stages,).
    true_s
        True seconds of each layer on each device at this moment, shape (stages, layers): known in simulation only.
    disturbed
        Whether the stage is above its undisturbed level now, shape (stages,); None without a detector.
    delay_s
        The part of ``stage_s`` in which the stage was ready to compute but did not have its core, shape (stages,); None
        where that is not known.
    at_s
        When the request finished, on a clock that all pipelines of a process share; ``nan`` where there is none.
    """

    request: int
    plan: Plan
    stage_s: FloatArray
    layer_s: FloatArray
    interval_s: float
    changed: NDArray[np.bool_]
    age: NDArray[np.int64]
    noise: FloatArray
    true_s: FloatArray | None = None
    disturbed: NDArray[np.bool_] | None = None
    delay_s: FloatArray | None = None
    at_s: float = math.nan


class Decision(NamedTuple):
    """A policy's decision to move layers.

    Attributes
    ----------
    plan
        Layers per stage for requests from now on.
    kind
        ``move`` to a plan that is expected to be better; ``trial`` of a plan, to measure it; ``settle`` on the best
        plan tried; ``undo`` a move that made throughput worse; ``probe`` a stage that has not run layers for long.
    why
        The reason in a few words, for the log and the screen.
    predicted_s
        Predicted seconds per request of the slowest stage under the plan; ``nan`` for policies that do not predict.
    windows
        Where the boundaries may lie from now on (:mod:`odin.partitioner.relay`). None: where the plan has them.
    """

    plan: Plan
    kind: Literal["move", "trial", "settle", "undo", "probe"]
    why: str
    predicted_s: float = math.nan
    windows: Windows | None = None


def checked_decision(answer: Any, setting: Setting) -> Decision | None:
    """Check a policy's answer, and convert its values to plain Python types.

    Numpy numbers become Python's, a plan in another form becomes a :class:`~odin.partitioner.plan.Plan`, ``why``
    becomes a text, and a prediction that is not a positive finite number becomes nan.

    Raises
    ------
    TypeError, ValueError
        If the answer is not a decision, or its plan does not fit the pipeline.

    Examples
    --------
    >>> setting = Setting(Plan((2, 1)), np.ones((2, 3)), np.zeros(4), np.zeros(4), np.ones(3))
    >>> checked_decision(Decision((1, np.int64(2)), "move", None, np.float32(0.5)), setting)
    Decision(plan=Plan((1, 2)), kind='move', why='', predicted_s=0.5, windows=None)
    """
    if answer is None:
        return None
    if not isinstance(answer, Decision):
        raise TypeError(f"its answer is {answer!r}, not a Decision or None; give Decision(plan, kind, why)")
    plan, kind, why, predicted_s, windows = answer
    if not isinstance(kind, str):
        raise TypeError(f"its decision's kind is {kind!r}; give 'move', 'trial', 'settle', 'undo' or 'probe'")
    plan = _as_plan(plan)
    plan.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
    windows = _as_windows(windows, plan, setting)
    return Decision(plan, _plain_text(kind), "" if why is None else _plain_text(why), _as_seconds(predicted_s), windows)


def not_started(policy: Policy) -> ValueError:
    """The error of a policy that is to decide before it was started."""
    return ValueError(f"policy {policy.name} was not started; call start(setting) before decide")


def text_form(name: str, policy: object) -> str:
    """A policy's name with those of its keyword options that are not the default: ``filter:cost=4.0``."""
    defaults = type(policy).__init__.__kwdefaults__ or {}
    given = [f"{key}={getattr(policy, key)}" for key, value in defaults.items() if getattr(policy, key) != value]
    return name + (":" + ",".join(given) if given else "")


def windows_of(policy: Policy, setting: Setting) -> Windows | None:
    """Where a policy wants boundaries to lie from its start on: None for those that move layers by plans."""
    wanted = getattr(policy, "windows", None)
    return None if wanted is None else _as_windows(wanted(setting), setting.plan, setting)


def _as_windows(windows: Any, plan: Plan, setting: Setting) -> Windows | None:
    """Check windows; None for those of the plan."""
    if windows is None:
        return None
    if isinstance(windows, str):
        windows = Windows.parse(windows)
    if not isinstance(windows, Windows):
        raise TypeError(f"its windows are {windows!r}; give Windows, such as Windows.parse('@0-18|@18'), or None")
    windows.check_fits(layer_count=setting.layer_count, stage_count=setting.stage_count)
    return None if windows.plan == plan else windows


def _as_plan(plan: Any) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str):
        return Plan.parse(plan)
    try:
        counts = [int(count) for count in plan]
        whole = all(count == given for count, given in zip(counts, plan, strict=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"its decision's plan is {plan!r}; give a Plan, such as Plan((7, 11))") from error
    if not whole:
        raise ValueError(f"its decision's plan is {plan!r}; layers are not divided: give whole numbers")
    return Plan(counts)


def _as_seconds(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, float) and math.isnan(value):
        return value
    if isinstance(value, str | bytes):
        raise TypeError(f"its decision's predicted_s is {value!r}; give seconds as a number, or nan")
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"its decision's predicted_s is {value!r}; give seconds as a number, or nan") from error
    return seconds if 0 < seconds < math.inf else math.nan


def _plain_text(value: Any) -> Any:
    return value if type(value) is str else str(value)


class Policy(Protocol):
    """Decides when and where layers move: gets observations, returns a decision or nothing."""

    @property
    def name(self) -> str:
        """Text form that :func:`odin.partitioner.policies.make_policy` reads back, such as ``odin:alpha=10``."""

    def start(self, setting: Setting) -> None:
        """Reset all state for a new pipeline; called before the first observation."""

    def decide(self, observation: Observation) -> Decision | None:
        """Take one finished request; return a decision for a plan other than the present one, or None.

        A decision is carried out at once: requests submitted later run under the new plan.
        """
