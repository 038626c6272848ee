"""One load: what it does, on which device, how hard; with a text form that parses back."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Self

from odin.stages.device import Device

__all__ = ["DEFAULT_PERIOD_S", "KINDS", "Load", "LoadError", "LoadFailedError"]

DEFAULT_PERIOD_S = 0.02

KINDS = {
    "cpu": "integer arithmetic that stays in the innermost caches",
    "membw": "copies between two arrays that together are twice as large as the last-level cache",
    "cache": "touches every line of an array of the size of the core's part of the last-level cache",
    "gpu": "matrix products on a GPU",
    "gpu-copy": "copies within a GPU's memory",
    "program": "any program",
}
"""Kinds of load, and what each does."""

_TEXT = re.compile(
    r"(?P<kind>[a-z]+(?:-[a-z]+)?)@(?P<device>\S*?(?:cpu|gpu):[0-9]+(?:-[0-9]+)?)"
    r"(?:\*(?P<intensity>[0-9.]+(?:e-?[0-9]+)?))?(?:x(?P<threads>[0-9]+))?(?:~(?P<period>[0-9.]+)s)?"
    r"(?: (?P<program>.*\S))?"
)
_MAX_THREADS = 1024
_PERIODS_S = (0.001, 10.0)


class LoadError(ValueError):
    """A load that cannot be: it does not fit its device, or the machine."""


class LoadFailedError(RuntimeError):
    """A load that should be possible did not start."""


@dataclass(frozen=True, slots=True)
class Load:
    """A co-located load.

    Text form: ``cpu@cpu:1``, ``membw@cpu:0*0.5x2`` (half of the time, two processes), ``cpu@cpu:1*0.5~0.05s`` (in
    periods of 50 ms), ``program@cpu:1 stress-ng --cpu 1``. What is as by default is left out.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    on
        Device, of this machine where the load is to be started.
    intensity
        Part of every period, 0 to 1, for which it is busy, by the wall clock. While something else wants the same core
        it gets its fair part of that time only: one process of kind ``cpu`` slows another down by 1 / (1 - intensity /
        2). A program has its own ways, and takes 1 here.
    threads
        Processes, each bound to one core: the device's cores in turn. 0 means one for each core (one on a GPU), and
        becomes that number. A program takes 1 here, and may use all cores of its device.
    period_s
        Length of one turn of being busy and idle, seconds.
    program
        Command line of kind ``program``, split as a shell does; no shell runs it.

    Raises
    ------
    LoadError
        If a value is out of its range, or they do not fit together.

    Examples
    --------
    >>> load = Load.parse("membw@cpu:0-1*0.5")
    >>> load.threads, str(load.at(0.25))
    (2, 'membw@cpu:0-1*0.25')
    """

    kind: str
    on: Device
    intensity: float = 1.0
    threads: int = 0
    period_s: float = DEFAULT_PERIOD_S
    program: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LoadError(f"there is no load {self.kind!r}; there is {', '.join(KINDS)}")
        if not 0.0 <= self.intensity <= 1.0:
            raise LoadError(f"intensity {self.intensity:g} is not within 0 to 1, the part of the time to be busy")
        if not _PERIODS_S[0] <= self.period_s <= _PERIODS_S[1]:
            raise LoadError(f"a period of {self.period_s:g} s is not within {_PERIODS_S[0]:g} to {_PERIODS_S[1]:g} s")
        if not 0 <= self.threads <= _MAX_THREADS:
            raise LoadError(f"{self.threads} processes are not within 1 to {_MAX_THREADS}")
        # As plain numbers, so that equal loads have equal texts.
        object.__setattr__(self, "intensity", float(self.intensity))
        object.__setattr__(self, "period_s", float(self.period_s))
        self._check_program()
        if self.kind.startswith("gpu") != (self.on.kind == "gpu") and self.kind != "program":
            other = "gpu" if self.on.kind == "gpu" else "cpu"
            raise LoadError(f"a load {self.kind!r} does not run on {self.on}; kind {other!r} does")
        if self.threads == 0:
            object.__setattr__(self, "threads", 1 if self.kind == "program" else self.on.threads)

    def _check_program(self) -> None:
        if self.kind != "program":
            if self.program:
                raise LoadError(f"a load {self.kind!r} runs no program: leave {self.program!r} out, or take 'program'")
            return
        try:
            words = shlex.split(self.program)
        except ValueError as error:
            raise LoadError(f"the command line {self.program!r} cannot be split: {error}") from error
        if not words or not words[0]:
            raise LoadError("a load 'program' needs a command line, such as 'stress-ng --cpu 1'")
        if "\0" in self.program or "\n" in self.program:
            raise LoadError(f"the command line {self.program!r} is not one line of text")
        if self.intensity != 1.0 or self.threads > 1 or self.period_s != DEFAULT_PERIOD_S:
            raise LoadError(
                f"{words[0]} decides itself how hard it works: leave intensity, threads and period out, and use its "
                "own options, such as those of 'stress-ng --cpu 2 --cpu-load 50'"
            )

    @property
    def command(self) -> tuple[str, ...]:
        """Words of the program's command line; empty for other kinds."""
        return tuple(shlex.split(self.program))

    @property
    def title(self) -> str:
        """A short name: the kind, or the program's."""
        return self.command[0].rpartition("/")[2] if self.kind == "program" else self.kind

    def at(self, intensity: float) -> Self:
        """The same load at another intensity."""
        return replace(self, intensity=intensity)

    def core_of(self, number: int) -> int:
        """Core of process ``number``, 0-based."""
        return self.on.indices[number % len(self.on.indices)]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises
        ------
        LoadError
            If it is not one.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise LoadError(f"{text!r} is not a load: write KIND@DEVICE*INTENSITYxTHREADS, such as cpu@cpu:1*0.5x2")
        try:
            intensity = float(match["intensity"] or 1.0)
            period_s = float(match["period"] or DEFAULT_PERIOD_S)
        except ValueError as error:
            raise LoadError(f"{text!r} is not a load: {error}") from error
        on = Device.parse(match["device"])
        return cls(match["kind"], on, intensity, int(match["threads"] or 0), period_s, match["program"] or "")

    def __str__(self) -> str:
        text = f"{self.kind}@{self.on}"
        if self.intensity != 1.0:
            text += f"*{_number(self.intensity)}"
        if self.kind != "program" and self.threads != self.on.threads:
            text += f"x{self.threads}"
        if self.period_s != DEFAULT_PERIOD_S:
            text += f"~{_number(self.period_s)}s"
        return f"{text} {self.program.strip()}" if self.program else text


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(value)
