"""How long each layer takes on a type of device with nothing else running, measured once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from odin.partitioner.files import write_whole

__all__ = [
    "LayerTimes",
    "Profile",
    "ProfileCache",
    "ProfileKey",
    "cache_directory",
    "device_type",
    "measure_undisturbed",
    "profile_layers",
    "warn_if_suspect",
]

Values = TypeVar("Values")

FORMAT = "odin-profile"
VERSION = 2
"""Files of version 1 do not record whether the machine was quiet: those profiles are measured again."""

_MOST_WAITED = 0.1
"""Part of the time that others may have the core while layers are timed: some background work there always is."""
_MOST_SPREAD = 0.5
"""The same where run-queue delay is not known: half of the passes take this much longer than the least, at most."""
_ATTEMPTS, _PAUSE_S = 3, 0.5


def device_type(kind: str, model: str, *, threads: int = 1) -> str:
    """Name what a profile holds for: every device of that type has the same baselines.

    Examples
    --------
    >>> device_type("cpu", "Intel(R) Xeon(R) Processor", threads=2), device_type("gpu", "NVIDIA H100")
    ('cpu x2 Intel(R) Xeon(R) Processor', 'gpu NVIDIA H100')
    """
    name = " ".join(model.split())
    return f"cpu x{threads} {name}" if kind == "cpu" else f"{kind} {name}"


class LayerTimes(NamedTuple):
    """What :func:`profile_layers` measured.

    Attributes
    ----------
    layer_s
        Minimum seconds of each layer over all passes.
    spread
        (median - minimum) / minimum of each layer: how noisy the machine was; 0.0 for a layer that took no time.
    repeats
        Passes that were timed.
    waited
        Part of the time in which the measuring thread was runnable but not running, since others had its core (Linux
        ``schedstat``); 0.0 where unknown.
    """

    layer_s: tuple[float, ...]
    spread: tuple[float, ...]
    repeats: int
    waited: float = 0.0

    @classmethod
    def of(cls, passes: Sequence[Sequence[float]], *, run_delay_s: float = 0.0) -> Self:
        """Sum up passes through the chain, each the seconds of all layers; ``run_delay_s`` is that of all together.

        Raises
        ------
        ValueError
            If there is no pass or no layer, or passes have different numbers of layers.
        """
        if not passes or not passes[0] or len(set(map(len, passes))) > 1:
            raise ValueError(f"passes of {[len(seconds) for seconds in passes]} layers; time all layers in each pass")
        by_layer = list(zip(*passes, strict=True))
        least = tuple(min(seconds) for seconds in by_layer)
        spread = tuple(
            (statistics.median(seconds) - low) / low if low > 0 else 0.0
            for seconds, low in zip(by_layer, least, strict=True)
        )
        total_s = math.fsum(math.fsum(seconds) for seconds in passes)
        return cls(least, spread, len(passes), run_delay_s / total_s if total_s > 0 else 0.0)

    @classmethod
    def least(cls, several: Iterable[Self]) -> Self:
        """Put measurements of the same layers together: interference only ever adds time."""
        several = list(several)
        layer_s = tuple(map(min, zip(*(times.layer_s for times in several), strict=True)))
        medians = (
            [low * (1 + spread) for low, spread in zip(times.layer_s, times.spread, strict=True)] for times in several
        )
        spread = tuple(
            max(median / low - 1, 0.0) if low > 0 else 0.0
            for low, median in zip(layer_s, map(min, zip(*medians, strict=True)), strict=True)
        )
        return cls(layer_s, spread, sum(times.repeats for times in several), min(times.waited for times in several))

    @property
    def suspect(self) -> str:
        """Why times may be too long because something else ran; empty if there is no sign of it."""
        if self.waited > _MOST_WAITED:
            return f"other programs had the core for {self.waited:.0%} of the time"
        total_s = math.fsum(self.layer_s)
        excess_s = math.fsum(low * spread for low, spread in zip(self.layer_s, self.spread, strict=True))
        if total_s > 0 and excess_s > _MOST_SPREAD * total_s:
            return f"half of the passes took {1 + excess_s / total_s:.1f} times as long as the fastest, or longer"
        return ""


def measure_undisturbed(
    measure: Callable[[int], LayerTimes], *, attempts: int = _ATTEMPTS, sleep: Callable[[float], None] = time.sleep
) -> LayerTimes:
    """Measure, and again if something else seems to have run meanwhile; if all attempts are suspect, the least of them.

    Parameters
    ----------
    measure
        Told the number of the attempt, from 0: it may take another device of the same type.
    """
    tried: list[LayerTimes] = []
    while len(tried) < attempts:
        if tried:
            sleep(_PAUSE_S)
        tried.append(measure(len(tried)))
        if not tried[-1].suspect:
            return tried[-1]
    return LayerTimes.least(tried)


def profile_layers(
    run_layer: Callable[[int, Values], Values],
    values: Values,
    layer_count: int,
    *,
    repeats: int = 10,
    warmup: int = 2,
    budget_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], None] | None = None,
    run_delay: Callable[[], float] | None = None,
) -> LayerTimes:
    """Time every layer: the minimum over several passes through the whole chain.

    Whole passes, rather than one layer again and again, because a layer that repeats finds its weights and inputs in
    the caches, which it does not in the pipeline. The minimum, because interference only ever adds time.

    Parameters
    ----------
    run_layer
        ``run_layer(index, values)`` gives the values after layer ``index``.
    values
        The chain's input values, never changed by the layers.
    layer_count
        Number of layers.
    repeats, warmup
        Passes that are timed (>= 1), and passes before them that are not.
    budget_s
        No further pass is started once timed passes have taken this long (but three are made, or ``repeats`` if fewer).
    clock
        Seconds, monotonic.
    synchronize
        Waits until the device is idle; called before each reading of the clock (GPU kernels run asynchronously).
    run_delay
        Seconds for which this thread has been runnable but not running so far.

    Raises
    ------
    ValueError
        If there is no layer or no pass to time.
    """
    if layer_count < 1:
        raise ValueError(f"layer_count is {layer_count}; there is nothing to profile")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup {warmup}; time at least one pass, warm up with 0 or more")
    wait = synchronize if synchronize is not None else _no_wait
    passes: list[list[float]] = []
    spent_s = waited_s = 0.0
    for number in range(-warmup, repeats):
        current, seconds = values, []
        wait()
        delay_s = run_delay() if run_delay is not None else 0.0
        before = clock()
        for index in range(layer_count):
            current = run_layer(index, current)
            wait()
            after = clock()
            seconds.append(after - before)
            before = after
        if number < 0:
            continue
        passes.append(seconds)
        spent_s += sum(seconds)
        waited_s += run_delay() - delay_s if run_delay is not None else 0.0
        if spent_s >= budget_s and len(passes) >= 3:
            break
    return LayerTimes.of(passes, run_delay_s=waited_s)


def _no_wait() -> None:
    return


@dataclass(frozen=True)
class Profile:
    """Baselines of one chain on one type of device.

    Attributes
    ----------
    device_type
        See :func:`device_type`.
    layer_s
        Baseline seconds of each layer for one request of ``batch`` items.
    spread
        Relative noise of each layer, see :class:`LayerTimes`.
    repeats
        Passes timed.
    batch
        Leading size of the inputs.
    created
        When it was measured, ISO 8601, UTC.
    torch_version
        The PyTorch that ran the layers.
    waited
        See :class:`LayerTimes`.
    suspect
        Why it may be too long, since something else ran while it was measured; empty if nothing speaks for that. A
        suspect profile is used, and measured again when it is asked for the next time.

    Raises
    ------
    ValueError
        If ``layer_s`` is empty, not finite or negative, or does not match ``spread``.
    """

    device_type: str
    layer_s: tuple[float, ...]
    spread: tuple[float, ...]
    repeats: int
    batch: int
    created: str
    torch_version: str
    waited: float = 0.0
    suspect: str = ""

    def __post_init__(self) -> None:
        if not self.layer_s or len(self.layer_s) != len(self.spread):
            raise ValueError(f"a profile of {len(self.layer_s)} layers has {len(self.spread)} spreads; measure it anew")
        if not all(math.isfinite(value) and value >= 0 for value in (*self.layer_s, *self.spread)):
            raise ValueError("a profile has times that are not finite seconds >= 0; measure it anew")

    @classmethod
    def of(cls, times: LayerTimes, *, device_type: str, batch: int, torch_version: str) -> Self:
        """Make a profile of what was measured just now."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            device_type,
            times.layer_s,
            times.spread,
            times.repeats,
            batch,
            created,
            torch_version,
            times.waited,
            times.suspect,
        )

    def least(self, other: Profile) -> Profile:
        """Return this profile with the times of another one of the same layers where those are shorter."""
        of_both = LayerTimes.least(
            LayerTimes(each.layer_s, each.spread, each.repeats, each.waited) for each in (self, other)
        )
        return replace(self, layer_s=of_both.layer_s, spread=of_both.spread, repeats=of_both.repeats)

    @property
    def total_s(self) -> float:
        """Baseline seconds of the whole chain."""
        return math.fsum(self.layer_s)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read :meth:`to_json`'s values.

        Raises
        ------
        ValueError
            If they are not a profile.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a profile ({error}); measure it anew") from error


class ProfileKey(NamedTuple):
    """The key of a profile: all that it depends on.

    Attributes
    ----------
    fingerprint
        The chain's, see ``Chain.fingerprint``.
    shapes
        Shape of each input, batch included.
    dtype
        Precision that the layers ran in, for example ``"float32"``.
    device_type
        See :func:`device_type`.
    engine
        What ran them.
    """

    fingerprint: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    device_type: str
    engine: str = "torch"


class _File(msgspec.Struct):
    """The content of a cache file."""

    format: str
    version: int
    key: ProfileKey
    profile: Profile


class ProfileCache:
    """Profiles on disk, one file per key.

    Anything wrong with a file (cut off, another format or version, another key) makes it a miss, never an error: the
    profile is measured again and the file replaced. Replacement is atomic, so that readers and other writers see the
    old or the new file and nothing between.

    Parameters
    ----------
    directory
        Where files lie; None is ``$ODIN_CACHE_DIR/profiles``, or ``~/.cache/odin/profiles`` if that is not set
        (``$XDG_CACHE_HOME`` in place of ``~/.cache`` if set).
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = Path(directory) if directory is not None else cache_directory("profiles")

    def path(self, key: ProfileKey) -> Path:
        """File of a key."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self.directory / f"{digest[:32]}.json"

    def load(self, key: ProfileKey) -> Profile | None:
        """Return the profile stored for ``key``, or None."""
        try:
            file = msgspec.json.decode(self.path(key).read_bytes(), type=_File)
        except (OSError, ValueError, RecursionError):
            return None
        return file.profile if (file.format, file.version, file.key) == (FORMAT, VERSION, key) else None

    def store(self, key: ProfileKey, profile: Profile) -> bool:
        """Keep a profile; False if the disk will not have it, which costs time later but is no error."""
        content = {"format": FORMAT, "version": VERSION, "key": key, "profile": profile.to_json()}
        try:
            write_whole(self.path(key), f"{json.dumps(content, indent=1)}\n".encode())
        except OSError:
            return False
        return True

    def get(self, key: ProfileKey, measure: Callable[[], Profile], *, refresh: bool = False) -> Profile:
        """Return the stored profile, or measure one and store it; ``refresh`` measures anyway.

        A stored profile that is suspect is measured again; if the new one is suspect too, the shorter times are kept.
        """
        stored = None if refresh else self.load(key)
        if stored is not None and not stored.suspect:
            return stored
        profile = measure()
        if stored is not None and profile.suspect and len(stored.layer_s) == len(profile.layer_s):
            profile = profile.least(stored)
        self.store(key, profile)
        return profile

    def doubt(self, key: ProfileKey, why: str) -> None:
        """Mark the stored profile as suspect, if there is one: it is measured again when it is asked for."""
        stored = self.load(key)
        if stored is not None and not stored.suspect:
            self.store(key, replace(stored, suspect=why))


def warn_if_suspect(profile: Profile, *, who: str = "") -> None:
    """Tell the user of a profile that was measured while something else ran, and what to do."""
    if profile.suspect:
        warnings.warn(
            f"the baselines of {profile.device_type} may be too long: {profile.suspect}{f' ({who})' if who else ''}. "
            "So slowdowns will be told too small, and layers be divided less well. They are measured again at the next "
            "start, of a server too; for good ones end what else runs before it, or measure when it is quiet: 'odin "
            "partition --refresh', 'odin run --refresh-profile', refresh_profile=True of odin.Pipeline",
            stacklevel=2,
        )


def cache_directory(kind: str) -> Path:
    """Folder for what is kept of one kind: ``$ODIN_CACHE_DIR/KIND``, else ``odin/KIND`` in the user's cache folder."""
    if configured := os.environ.get("ODIN_CACHE_DIR"):
        return Path(configured).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "odin" / kind
