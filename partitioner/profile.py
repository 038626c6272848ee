"""How long each layer takes on a type of device with nothing else running, measured once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

__all__ = ["LayerTimes", "Profile", "ProfileCache", "ProfileKey", "device_type", "profile_layers"]

Values = TypeVar("Values")

FORMAT = "odin-profile"
VERSION = 1


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
    """

    layer_s: tuple[float, ...]
    spread: tuple[float, ...]
    repeats: int

    @classmethod
    def of(cls, passes: Sequence[Sequence[float]]) -> Self:
        """Sum up passes through the chain, each the seconds of all layers.

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
        return cls(least, spread, len(passes))


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
    spent_s = 0.0
    for number in range(-warmup, repeats):
        current, seconds = values, []
        wait()
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
        if spent_s >= budget_s and len(passes) >= 3:
            break
    return LayerTimes.of(passes)


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

    def __post_init__(self) -> None:
        if not self.layer_s or len(self.layer_s) != len(self.spread):
            raise ValueError(f"a profile of {len(self.layer_s)} layers has {len(self.spread)} spreads; measure it anew")
        if not all(math.isfinite(value) and value >= 0 for value in (*self.layer_s, *self.spread)):
            raise ValueError("a profile has times that are not finite seconds >= 0; measure it anew")

    @classmethod
    def of(cls, times: LayerTimes, *, device_type: str, batch: int, torch_version: str) -> Self:
        """Make a profile of what was measured just now."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(device_type, times.layer_s, times.spread, times.repeats, batch, created, torch_version)

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
            return cls(
                device_type=str(values["device_type"]),
                layer_s=tuple(map(float, values["layer_s"])),
                spread=tuple(map(float, values["spread"])),
                repeats=int(values["repeats"]),
                batch=int(values["batch"]),
                created=str(values["created"]),
                torch_version=str(values["torch_version"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a profile ({error!r}); measure it anew") from error


class ProfileKey(NamedTuple):
    """What a profile depends on.

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
    """

    fingerprint: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    device_type: str


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
        self.directory = Path(directory) if directory is not None else _default_directory()

    def path(self, key: ProfileKey) -> Path:
        """File of a key."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self.directory / f"{digest[:32]}.json"

    def load(self, key: ProfileKey) -> Profile | None:
        """Return the profile stored for ``key``, or None."""
        try:
            content = json.loads(self.path(key).read_bytes())
            if content["format"] != FORMAT or content["version"] != VERSION:
                return None
            if content["key"] != json.loads(json.dumps(key)):
                return None
            return Profile.from_json(content["profile"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def store(self, key: ProfileKey, profile: Profile) -> bool:
        """Keep a profile; False if the disk will not have it, which costs time later but is no error."""
        content = {"format": FORMAT, "version": VERSION, "key": key, "profile": profile.to_json()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.directory, prefix=".writing-", suffix=".json")
        except OSError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
            os.replace(name, self.path(key))
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(name)
            if isinstance(error, OSError):
                return False
            raise
        return True

    def get(self, key: ProfileKey, measure: Callable[[], Profile], *, refresh: bool = False) -> Profile:
        """Return the stored profile, or measure one and store it; ``refresh`` measures anyway."""
        stored = None if refresh else self.load(key)
        if stored is not None:
            return stored
        profile = measure()
        self.store(key, profile)
        return profile


def _default_directory() -> Path:
    if configured := os.environ.get("ODIN_CACHE_DIR"):
        return Path(configured).expanduser() / "profiles"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "odin" / "profiles"
