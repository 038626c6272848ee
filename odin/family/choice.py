"""ODIN's choice of a variant, and the two that always take the same.

::

    of the variants that are accurate enough:
      1. full and loaded, the least dear first      its layers move as conditions change, so the next one is asked
                                                    only if it would be late nevertheless
      2. full, to be loaded                         if loading it and computing is in time
      3. reduced and loaded, the least lost first   if the request's budget allows what it loses
      4. reduced, to be loaded
      5. all of these again, in time by a fair chance   to be refused costs a request as much as to be late
      6. refused, naming what could be done
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import product

from odin.family.demand import Demand
from odin.family.facts import Choice, Facts, Predict, Prediction, Refusal, Seen, Step, Want

__all__ = ["AlwaysPolicy", "OdinPolicy", "refusal"]

PREFERENCES = ("cost", "accuracy")


class OdinPolicy:
    """Asks each variant when it would be done under present conditions, the preferred one first.

    Parameters
    ----------
    prefer
        ``"cost"``: of the variants that do what is asked the one with the least seconds of a device, of equal ones the
        more accurate; ``"accuracy"``: the most accurate, of equal ones the less dear.

    Examples
    --------
    >>> from odin.family.facts import Facts, Prediction, Want
    >>> facts = [Facts("small", 0, 0.01, accuracy=0.9, cost_s=1), Facts("large", 0, 0.04, accuracy=0.97, cost_s=4)]
    >>> def predict(variant, *, loaded=False):
    ...     return Prediction(facts[variant].latency_s(), facts[variant].latency_s())
    >>> policy = OdinPolicy()
    >>> policy.choose(facts, {0, 1}, Want(accuracy=0.9, latency_s=0.05), predict).variant
    0
    >>> policy.choose(facts, {0, 1}, Want(accuracy=0.95, latency_s=0.03), predict).soonest_s
    0.04
    """

    refuses = True
    starts_with_one = False

    def __init__(self, *, prefer: str = "cost") -> None:
        if prefer not in PREFERENCES:
            raise ValueError(f"prefer={prefer!r}; choose one of {', '.join(map(repr, PREFERENCES))}")
        self.prefer = prefer
        self.name = "odin" if prefer == "cost" else f"odin:prefer={prefer}"
        self._demand = Demand()

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        """See :class:`odin.family.facts.VariantPolicy`."""
        able, predict = self._in_order(facts, want), _once(predict)
        missed = -1
        forms = (False, True) if want.budget > 0 else (False,)
        for surely, reduced in product((True, False), forms):
            kind = [one for one in able if facts[one].reduced == reduced]
            for is_loaded in (True, False):
                for one in kind:
                    if one in tried or (one in loaded) != is_loaded:
                        continue
                    prediction = predict(one)
                    takes_s = prediction.latest_s if surely else prediction.fair_s
                    if takes_s <= want.latency_s and takes_s < math.inf:  # infinite: it cannot be loaded at present
                        missed = _missed(kind[: kind.index(one)], loaded, want, predict, missed) if is_loaded else one
                        step = "reduced" if reduced else "first" if one == _home(facts, kind, want) else "variant"
                        if not is_loaded:
                            step = "reduced-load" if reduced else "load"
                        why = "unloaded" if missed not in (-1, one) else _why(facts, able, one, want)
                        return Choice(one, *prediction, step, missed, why)
            missed = _missed(kind, loaded, want, predict, missed)
        return refusal(facts, want, predict, missed=missed)

    def _in_order(self, facts: Sequence[Facts], want: Want) -> list[int]:
        """Indices of the variants that do what is asked for, in the order of preference.

        Of reduced forms the one that loses least comes first; what seems to gain loses nothing, as that is chance.
        """
        able = [index for index, one in enumerate(facts) if one.does(want)]
        able.sort(key=lambda index: _rank(facts, index, cheapest_first=self.prefer == "cost"))
        return sorted(able, key=lambda index: max(0.0, facts[index].lost))

    def look(self, facts: Sequence[Facts], seen: Sequence[Seen], *, memory_mib: float) -> Sequence[Step]:
        """See :class:`odin.family.facts.VariantPolicy`."""
        return self._demand.look(facts, seen, memory_mib=memory_mib)


class AlwaysPolicy:
    """Gives every request the same variant, whatever it asks for: the best, or the cheapest, of the loaded ones."""

    refuses = False
    starts_with_one = False

    def __init__(self, which: str) -> None:
        if which not in ("best", "cheapest"):
            raise ValueError(f"{which!r}: choose 'best' or 'cheapest'")
        self.name = which

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        """See :class:`odin.family.facts.VariantPolicy`; reduced forms are never taken."""
        whole = [index for index, one in enumerate(facts) if not one.reduced and index not in tried]
        among = [index for index in whole if index in loaded] or whole
        if not among:
            return refusal(facts, want, predict)
        one = min(among, key=lambda index: _rank(facts, index, cheapest_first=self.name == "cheapest"))
        return Choice(one, *predict(one), "first" if one in loaded else "load")

    def look(self, facts: Sequence[Facts], seen: Sequence[Seen], *, memory_mib: float) -> Sequence[Step]:
        """Nothing is loaded or unloaded."""
        return ()


def _once(predict: Predict) -> Predict:
    """Ask for each variant once at most."""
    known: dict[tuple[int, bool], Prediction] = {}

    def remembered(variant: int, *, loaded: bool = False) -> Prediction:
        if (variant, loaded) not in known:
            known[variant, loaded] = predict(variant, loaded=loaded)
        return known[variant, loaded]

    return remembered


def refusal(facts: Sequence[Facts], want: Want, predict: Predict, *, missed: int = -1) -> Refusal:
    """What to tell a request that no variant serves as it wants."""
    allowed = [index for index, one in enumerate(facts) if one.does(want._replace(accuracy=0.0))]
    able = [index for index in allowed if facts[index].is_accurate(want.accuracy)]
    fair_s = {index: predict(index).fair_s for index in able}
    soonest = min(able, key=lambda index: fair_s[index], default=-1)
    known = [index for index in allowed if not math.isnan(facts[index].accuracy)]
    most_accurate = max(known, key=lambda index: facts[index].accuracy, default=-1)
    return Refusal(soonest, fair_s.get(soonest, math.inf), most_accurate, missed)


def _why(facts: Sequence[Facts], able: Sequence[int], chosen: int, want: Want) -> str:
    """Why a request gets a variant, if all that are preferred to it are loaded; see :class:`Choice`."""
    preferred = [one for one in able if not facts[one].reduced] or able
    if chosen == preferred[0]:
        return "asked"
    home = _home(facts, preferred, want)
    return "deadline" if chosen == home or facts[home].latency_s(want.samples) > want.latency_s else "interference"


def _home(facts: Sequence[Facts], kind: Sequence[int], want: Want) -> int:
    """The variant that would be taken with nothing else running, if all were loaded."""
    return next((one for one in kind if facts[one].latency_s(want.samples) <= want.latency_s), kind[0])


def _missed(preferred: Sequence[int], loaded: Collection[int], want: Want, predict: Predict, before: int = -1) -> int:
    """The first of these that is not loaded, and would be in time if it were."""
    if before >= 0:
        return before
    for one in preferred:
        if one not in loaded and predict(one, loaded=True).latest_s <= want.latency_s:
            return one
    return -1


def _rank(facts: Sequence[Facts], index: int, *, cheapest_first: bool) -> tuple[float, float, int]:
    """Sorts variants by cost or by accuracy, equal ones by the other; an unknown accuracy is the lowest."""
    one = facts[index]
    inaccuracy = 1.0 if math.isnan(one.accuracy) else -one.accuracy
    return (one.cost_s, inaccuracy, index) if cheapest_first else (inaccuracy, one.cost_s, index)
