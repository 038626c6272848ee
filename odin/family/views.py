"""What a request got of a family, and a family at one moment."""

from __future__ import annotations

from typing import Any, NamedTuple

from odin.family.counts import VariantCounts
from odin.family.facts import Facts

__all__ = ["Answer", "FamilyView", "VariantView"]


class Answer(NamedTuple):
    """What a request got.

    Attributes
    ----------
    value
        The model's output.
    variant, accuracy
        Which variant; ``nan`` if its accuracy is not known.
    form, accuracy_lost
        ``"full"``, or which reduced form of the model it is, such as ``"exit-8"``; share of accuracy that this loses.
    predicted_s, actual_s
        Seconds from the submission: as expected when the variant was chosen, and as they were.
    step
        How far it was necessary to go, see :class:`odin.family.facts.Choice`.
    """

    value: Any
    variant: str
    accuracy: float
    form: str
    accuracy_lost: float
    predicted_s: float
    actual_s: float
    step: str


class VariantView(NamedTuple):
    """A variant at one moment; its state is ``loaded``, ``loading`` or ``unloaded``."""

    facts: Facts
    state: str
    under_way: int
    counts: VariantCounts


class FamilyView(NamedTuple):
    """A family at one moment."""

    policy: str
    memory_mib: float
    loaded_mib: float
    refused: int
    variants: tuple[VariantView, ...]
