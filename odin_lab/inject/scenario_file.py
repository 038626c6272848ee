"""Reads scenarios from TOML; ``examples/interference.toml`` shows all there is to write."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from odin.stages.device import Device
from odin_lab.inject.load import DEFAULT_PERIOD_S, Load, LoadError
from odin_lab.inject.named import NAMED, named_load
from odin_lab.inject.scenario import Scenario, Step

__all__ = ["read_scenario"]

_WHAT = ("kind", "scenario", "program")
_LOAD_KEYS = (*_WHAT, "on", "name", "intensity", "threads", "period_s", "start_s", "end_s", "duration_s", "ramp_s")
_RANDOM_KEYS = ("on", "loads", "period_s", "duration_s", "length_s", "spacing", "seed")
_HOW_HARD = ("intensity", "threads", "period_s")


def read_scenario(path: Path, *, seed: int | None = None) -> Scenario:
    """Read a file; ``seed`` is in place of its own.

    Raises
    ------
    LoadError
        If it cannot be read; the message names the file, the entry and what to write there.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"cannot read the scenario {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not TOML: {error}") from error
    entry = _Entry(content, f"{path}", ("load", "random"))
    loads = content.get("load", [])
    if not isinstance(loads, list) or not all(isinstance(item, dict) for item in loads):
        raise LoadError(f"{path}: loads are written as [[load]], with two brackets")
    steps = [
        step
        for number, item in enumerate(loads, start=1)
        for step in _read_load(_Entry(item, f"{path}: [[load]] {number}", _LOAD_KEYS))
    ]
    if "random" in content:
        if not isinstance(content["random"], dict):
            raise LoadError(f"{path}: what happens at random is written as [random], with one bracket")
        steps += _read_random(_Entry(content["random"], f"{path}: [random]", _RANDOM_KEYS), seed)
    elif seed is not None:
        raise LoadError(f"{path}: nothing in it is random, so a seed means nothing; leave it out")
    if not steps:
        raise entry.error("there is no load in it: write [[load]] entries, or a [random] table")
    return Scenario(tuple(steps))


class _EntryError(LoadError):
    """A complaint that names its entry already."""


class _Entry:
    """One table of the file, and how to complain about it."""

    def __init__(self, values: dict[str, Any], where: str, keys: Collection[str]) -> None:
        self._values = values
        self._where = where
        for key in values:
            if key not in keys:
                close = get_close_matches(key, keys, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(keys)}"
                raise self.error(f"there is no {key!r}; {hint}")

    def error(self, message: str) -> _EntryError:
        return _EntryError(f"{self._where}: {message}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if value is None:
            raise self.error(f"{key!r} is missing: write {key} = 10.0")
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self.error(f"{key} = {value!r} is not a number")
        return float(value)

    def whole(self, key: str, default: int) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} = {value!r} is not a whole number")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{key} = {value!r} is not text in quotes")
        return value

    def texts(self, key: str, default: Collection[str] = ()) -> list[str]:
        value = self._values.get(key, list(default))
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.error(f'{key!r} has to be text, or a list of texts: write {key} = ["..."]')
        return value

    def devices(self) -> list[Device]:
        if "on" not in self:
            raise self.error('where is missing: write on = "cpu:1", or on = ["cpu:0", "cpu:1"]')
        try:
            return [Device.parse(text) for text in self.texts("on")]
        except ValueError as error:
            raise self.error(str(error)) from error


def _read_load(entry: _Entry) -> list[Step]:
    given = [key for key in _WHAT if key in entry]
    if len(given) != 1:
        raise entry.error(f"says what it is by {len(given)} of 'kind', 'scenario' and 'program'; write exactly one")
    if "end_s" in entry and "duration_s" in entry:
        raise entry.error("has 'end_s' and 'duration_s'; write one of them, or none for a load that does not end")
    start_s = entry.number("start_s", 0.0)
    end_s = start_s + entry.number("duration_s") if "duration_s" in entry else entry.number("end_s", math.inf)
    devices = entry.devices()
    try:
        return [
            Step(
                _load(entry, device),
                start_s,
                end_s,
                entry.text("name", entry.text("scenario", "")),
                entry.number("ramp_s", 0.0),
            )
            for device in devices
        ]
    except _EntryError:
        raise
    except LoadError as error:
        raise entry.error(str(error)) from error


def _load(entry: _Entry, device: Device) -> Load:
    if "scenario" in entry:
        for key in _HOW_HARD:
            if key in entry:
                raise entry.error(f"a named scenario has its own {key!r}: leave it out, or write 'kind' instead")
        return named_load(entry.text("scenario"), device)
    kind = entry.text("kind", "program")
    return Load(
        kind,
        device,
        entry.number("intensity", 1.0),
        entry.whole("threads", 0),
        entry.number("period_s", DEFAULT_PERIOD_S),
        entry.text("program", ""),
    )


def _read_random(entry: _Entry, seed: int | None) -> tuple[Step, ...]:
    spacing: Any = entry.text("spacing", "fixed")
    try:
        return Scenario.random(
            entry.devices(),
            entry.texts("loads", NAMED),
            period_s=entry.number("period_s"),
            duration_s=entry.number("duration_s"),
            length_s=entry.number("length_s"),
            seed=entry.whole("seed", 0) if seed is None else seed,
            spacing=spacing,
        ).steps
    except _EntryError:
        raise
    except LoadError as error:
        raise entry.error(str(error)) from error
