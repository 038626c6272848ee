"""Timing tables as files: gzip-compressed CSV with a line of JSON before it, which pandas reads as it is.

::

    # {"format": "odin-timings", "version": 1, "model": "resnet50", ...}
    scenario,round,pass,conv1,layer1.0,...
    alone,0,0,8121,3320,...                    microseconds; a block begins where pass is 0
    alone,0,1,8090,3311,...
    cpu-50,0,0,10830,4420,...
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from odin.partitioner.files import write_whole
from odin_lab.timings.table import Block, FloatArray, TimingTable

__all__ = [
    "FORMAT",
    "SUFFIX",
    "VERSION",
    "TimingsError",
    "file_name",
    "load_timings",
    "read_timings",
    "shipped_timings",
    "write_timings",
]

FORMAT = "odin-timings"
VERSION = 1
SUFFIX = ".csv.gz"

_MOST_NBYTES = 2**28  # far above any table; what unpacks to more is none
_COLUMNS = ("scenario", "round", "pass")
_TEXTS = ("model", "device", "cpu_model", "system", "created", "torch_version", "fingerprint")
_COUNTS = ("rounds", "passes", "passes_alone", "seed")
_WORDS = ("layers", "scenarios", "loads")
_NUMBERS = ("intensity", "send_s", "receive_s")


class TimingsError(ValueError):
    """A file that is no timing table, or one that is not there."""


def file_name(model: str) -> str:
    """Name of a model's file.

    Examples
    --------
    >>> file_name("torchvision:vgg16")
    'torchvision-vgg16.csv.gz'
    """
    return (re.sub(r"[^A-Za-z0-9_]+", "-", model).strip("-")[-80:] or "model") + SUFFIX


def shipped_timings() -> tuple[str, ...]:
    """Names of the models whose tables come with the package."""
    folder = _shipped_folder()
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"[!.]*{SUFFIX}")))


def load_timings(name_or_path: str | Path) -> TimingTable:
    """Return a table: a shipped one by its model's name, such as ``resnet50``, or a file by its path.

    A text with a slash, or that ends in ``.gz`` or ``.csv``, is a path.

    Raises
    ------
    TimingsError
        If there is none, or it is none that can be read; the message says which there are.
    """
    if isinstance(name_or_path, Path) or "/" in name_or_path or name_or_path.endswith((".gz", ".csv")):
        return read_timings(Path(name_or_path))
    if name_or_path not in (names := shipped_timings()):
        there = f"there is {', '.join(names)}" if names else "none comes with this version"
        raise TimingsError(
            f"no timings of {name_or_path!r} are shipped ({there}): measure them by odin record {name_or_path} "
            f"--output DIR, and give the file's path, DIR/{file_name(name_or_path)}"
        )
    return read_timings(_shipped_folder() / (name_or_path + SUFFIX))


def read_timings(path: Path) -> TimingTable:
    """Read a file, compressed or not.

    Raises
    ------
    TimingsError
        If it cannot be read, is cut off, is something else, or of a newer version.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(_MOST_NBYTES + 1)
        if len(data) > _MOST_NBYTES:
            raise TimingsError(f"{path} holds more than {_MOST_NBYTES >> 20} MiB; it is no timing table")
        text = data.decode()
    except (EOFError, zlib.error) as error:
        raise TimingsError(f"{path} is cut off or damaged ({error}): fetch or record it again") from error
    except gzip.BadGzipFile as error:
        raise TimingsError(f"{path} is damaged ({error}): fetch or record it again") from error
    except UnicodeDecodeError as error:
        raise TimingsError(f"{path} is no timing table: it is not text") from error
    except OSError as error:
        raise TimingsError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _parse(text)
    except TimingsError as error:
        raise TimingsError(f"{path} {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TimingsError(f"{path} is damaged ({why}): fetch or record it again") from error


def write_timings(table: TimingTable, path: Path) -> Path:
    """Write a table, in place of what is there; others see the old file or the whole new one.

    Times are kept to about a thousandth of their value.

    Raises
    ------
    OSError
        If the disk does not take it.
    """
    write_whole(path, gzip.compress(_format(table).encode(), compresslevel=9, mtime=0))  # equal tables, equal files
    return path


def _shipped_folder() -> Path:
    return Path(str(resources.files("odin_lab.timings"))) / "recorded"


def _format(table: TimingTable) -> str:
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    header |= {name: getattr(table, name) for name in (*_TEXTS, *_COUNTS)}
    header |= {name: list(getattr(table, name)) for name in _WORDS}
    header |= {
        name: [float(f"{value:.5g}") if math.isfinite(value) else None for value in getattr(table, name)]
        for name in _NUMBERS
    }
    header["quick"] = table.quick
    header["unit"] = "microseconds"
    header["rows"] = sum(len(block.layer_s) for block in table.blocks)
    out = io.StringIO()
    out.write(f"# {json.dumps(header, ensure_ascii=True)}\n")
    rows = csv.writer(out, lineterminator="\n")
    # pandas takes all that follows a # for a comment
    rows.writerow([*_COLUMNS, *(name.replace("#", "_") for name in table.layers)])
    for block in table.blocks:
        for number, seconds in enumerate(block.layer_s.tolist()):
            rows.writerow([block.scenario, block.round, number, *map(_microseconds, seconds)])
    return out.getvalue()


def _microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _parse(text: str) -> TimingTable:
    first, _, rest = text.partition("\n")
    header = None
    if first.startswith("#"):
        with contextlib.suppress(ValueError):
            header = json.loads(first[1:])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TimingsError(f"is no timing table: its first line has no {FORMAT!r}")
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise TimingsError(f"says it is of version {version!r}, which there is not: fetch or record it again")
    if version > VERSION:
        raise TimingsError(f"is of version {version}, and this ODIN reads up to {VERSION}: update ODIN, or record anew")
    words = {name: tuple(map(str, header[name])) for name in _WORDS}
    blocks, row_count = [], 0
    for scenario, number, layer_s in _blocks(rest, len(words["layers"])):
        blocks.append(Block(scenario, number, layer_s))
        row_count += len(layer_s)
    if row_count != header["rows"]:
        raise ValueError(f"{row_count} passes of {header['rows']}")
    values: dict[str, Any] = {name: str(header[name]) for name in _TEXTS} | words
    values |= {name: int(header[name]) for name in _COUNTS}
    for name in _NUMBERS:
        values[name] = np.array([math.nan if x is None else x for x in header[name]], dtype=np.float64)
    return TimingTable(**values, quick=bool(header["quick"]), blocks=tuple(blocks))


def _blocks(text: str, layer_count: int) -> Iterator[tuple[str, int, FloatArray]]:
    """Scenario, round and seconds of each block."""
    rows = csv.reader(io.StringIO(text))
    columns = next(rows, [])
    if tuple(columns[:3]) != _COLUMNS or len(columns) != 3 + layer_count:
        raise ValueError(f"columns {', '.join(columns[:4])}... are not {', '.join(_COLUMNS)} and {layer_count} layers")
    scenario, number, passes = "", -1, list[list[str]]()
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"line {rows.line_num + 1} has {len(row)} values of {len(columns)}")
        if row[2] == "0" and passes:
            yield scenario, number, np.array(passes, dtype=np.float64) / 1e6
            passes = []
        if not passes:
            scenario, number = row[0], int(row[1])
        if (row[0], int(row[1]), int(row[2])) != (scenario, number, len(passes)):
            raise ValueError(f"line {rows.line_num + 1} is out of order")
        passes.append(row[3:])
    if passes:
        yield scenario, number, np.array(passes, dtype=np.float64) / 1e6
