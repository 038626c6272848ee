"""Ray draws random numbers of its own while it starts, not the program's.

It picks ports and subscribers' ids with Python's ``random``. Drawn from the program's generator they would change what
the program draws afterwards, be the same in every program that begins with the same seed, and look, to whoever watches
a model's calls beside, as if the model had drawn them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["own_random_numbers"]


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Give Ray's modules the operating system's random numbers in this block."""
    modules = [vars(module) for name, module in sys.modules.copy().items() if name.partition(".")[0] == "ray"]
    drawing = [names for names in modules if names.get("random") is random]
    own = random.SystemRandom()
    for names in drawing:
        names["random"] = own
    try:
        yield
    finally:
        for names in drawing:
            names["random"] = random
