"""What a request is told that no variant serves as it wants."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odin.errors import DeadlineExceededError
from odin.family.facts import Facts, Refusal, Want

__all__ = ["refused"]


def refused(facts: Sequence[Facts], want: Want, refusal: Refusal, *, named: bool = False) -> DeadlineExceededError:
    """The error, whose message names the best that could be done; of a request that ``named`` a variant, when that
    would be done.
    """
    if named:
        one = facts[refusal.soonest]
        if math.isinf(refusal.soonest_s):
            message = f"refused: variant {one.name!r} could not be loaded a short while ago (an event says why)"
            return DeadlineExceededError(message, refused=True)
        message = (
            f"refused: variant {one.name!r} would be done in {refusal.soonest_s * 1e3:.1f} ms, and "
            f"{want.latency_s * 1e3:.1f} ms are allowed: allow longer, or name none (variant=None)"
        )
        return DeadlineExceededError(message, refused=True, predicted_s=refusal.soonest_s)
    has_reduced = any(one.reduced for one in facts)
    if refusal.soonest < 0:
        allowed = " (reduced forms are not allowed)" if has_reduced and not want.budget else ""
        best = "the accuracy of none is known"
        if refusal.most_accurate >= 0:
            one = facts[refusal.most_accurate]
            best = f"the best is {one.name!r} with {one.accuracy:.4g}"
        message = (
            f"refused: no variant has an accuracy of {want.accuracy:.4g}{allowed}; {best}: ask for less, or have the "
            "variants' accuracy measured (odin profile)"
        )
        return DeadlineExceededError(message, refused=True, predicted_s=math.inf)
    one = facts[refusal.soonest]
    if math.isinf(refusal.soonest_s):
        message = (
            f"refused: no variant with an accuracy of {want.accuracy:.4g} serves at present: {one.name!r} could not be "
            "loaded a short while ago (an event says why); try again later, or ask for less accuracy"
        )
        return DeadlineExceededError(message, refused=True)
    known = "unknown accuracy" if math.isnan(one.accuracy) else f"accuracy {one.accuracy:.4g}"
    more = ", or allow less computation (accuracy_budget=0.003)" if has_reduced and not want.budget else ""
    message = (
        f"refused: no variant with an accuracy of {want.accuracy:.4g} would be done in {want.latency_s * 1e3:.1f} ms; "
        f"the soonest is {one.name!r} ({known}) in {refusal.soonest_s * 1e3:.1f} ms: allow longer, ask for less "
        f"accuracy{more}"
    )
    return DeadlineExceededError(message, refused=True, predicted_s=refusal.soonest_s)
