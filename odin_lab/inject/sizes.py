"""How large the arrays of the memory loads are: by the caches of the core, within the memory that is free."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from odin.stages.host import available_nbytes
from odin_lab.inject.load import Load, LoadError

__all__ = ["Cache", "buffer_nbytes", "last_level_cache"]

MIB = 2**20
_CPUS = Path("/sys/devices/system/cpu")
_UNKNOWN_CACHE_NBYTES = 32 * MIB
_PART_OF_FREE = 4
"""A load takes at most one part in so many of the memory that is free: others run here too."""

_LEAST_NBYTES = {"membw": 64 * MIB, "cache": MIB}


class Cache(NamedTuple):
    """A cache: its bytes, and how many cores share it."""

    nbytes: int
    sharers: int


def last_level_cache(core: int, *, cpus: Path = _CPUS) -> Cache | None:
    """The largest cache that a core uses, as Linux tells; None if it does not.

    A virtual machine may be told of a cache that it shares with others unseen.
    """
    found = []
    for index in (cpus / f"cpu{core}" / "cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            nbytes = _parse_size((index / "size").read_text().strip())
            sharers = _count_cores((index / "shared_cpu_list").read_text().strip())
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified") and nbytes > 0:
            found.append(Cache(nbytes, max(1, sharers)))
    return max(found, default=None)


def buffer_nbytes(load: Load, *, free_nbytes: int | None = None, cpus: Path = _CPUS) -> int:
    """Bytes of the array, or of both arrays together, of each process of a load; 0 for kinds without.

    Two arrays of the size of the last-level cache for ``membw``, one of the core's part of it for ``cache``; less where
    memory is short.

    Parameters
    ----------
    load
        What is to be started.
    free_nbytes
        Bytes that may be taken; None asks the system.
    cpus
        Where Linux describes the cores.

    Raises
    ------
    LoadError
        If there is too little memory for the load to be one.
    """
    if load.kind not in _LEAST_NBYTES:
        return 0
    allowed = (available_nbytes() if free_nbytes is None else free_nbytes) // _PART_OF_FREE // load.threads
    nbytes = min(_wanted_nbytes(load, cpus), allowed) // MIB * MIB
    if nbytes < _LEAST_NBYTES[load.kind]:
        raise LoadError(
            f"{load}: each process needs {_LEAST_NBYTES[load.kind] // MIB} MiB, but only {allowed // MIB} MiB may be "
            f"taken for each, a quarter of what is free by {load.threads}: free memory, or start fewer"
        )
    return nbytes


def _wanted_nbytes(load: Load, cpus: Path) -> int:
    cache = last_level_cache(load.on.indices[0], cpus=cpus) or Cache(_UNKNOWN_CACHE_NBYTES, 1)
    if load.kind == "membw":
        return min(max(2 * cache.nbytes, 256 * MIB), 1024 * MIB)
    return max(cache.nbytes // cache.sharers, MIB)


def _parse_size(text: str) -> int:
    units = {"K": 2**10, "M": MIB, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _count_cores(text: str) -> int:
    count = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count
