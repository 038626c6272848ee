"""The file that ``odin run`` writes: never overwritten unasked, and gone on with by ``--resume``.

Beside ``results.jsonl`` stands ``results.jsonl.run.json``, which tells what the results depend on. A line with an error
is no result: its input is done again. The file changes only when the stages are ready, by :meth:`RunOutput.begin`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from odin.partitioner.files import write_whole

__all__ = ["ImageKey", "RunOutput", "RunSettings", "check_output", "count_missing", "open_output", "remaining"]


class ImageKey(NamedTuple):
    """One image of one pass over the inputs; ``written`` if its result is in the file already."""

    path: Path
    repeat: int
    written: bool = False


@dataclass(frozen=True)
class RunSettings:
    """What an image's result depends on.

    Attributes
    ----------
    model, weights, image_size, precision, batch, top, repeat, engine, calibration
        The options as given; ``None`` where they were not.
    state
        Digest of the model's parameters and buffers: files and factories keep their names when they change.
    folder
        The current folder, which relative paths of images begin at.
    """

    model: str
    weights: str | None
    state: str
    image_size: int | None
    precision: str | None
    batch: int
    top: int
    repeat: int
    folder: str
    engine: str = "torch"
    calibration: str | None = None

    def difference(self, now: RunSettings) -> str:
        """How ``now`` differs, in a few words; empty if it gives the same results."""
        for field in ("model", "image_size", "precision", "engine", "calibration", "batch", "top", "repeat"):
            before, after = getattr(self, field), getattr(now, field)
            if before != after:
                return f"{_option(field, before)}, this run has {_option(field, after)}"
        if self.state != now.state:
            if self.weights != now.weights:
                return f"{_option('weights', self.weights)}, this run has {_option('weights', now.weights)}"
            told = "its weights are not the same every time" if self.weights is None else f"{self.weights} has changed"
            return f"other weights ({told})"
        return ""


def _option(field: str, value: object) -> str:
    if field == "model":
        return f"model {value}"
    name = "--" + field.replace("_", "-")
    return f"no {name}" if value is None else f"{name} {value}"


def remaining(
    paths: Sequence[Path], *, repeat: int, batch: int = 1, done: Mapping[tuple[str, int], int] | None = None
) -> Iterator[ImageKey]:
    """What is to be computed, in order: all inputs but the requests of which every result is there.

    A request of which one result is missing is done whole, so that it holds the same images as it did: there are models
    whose images depend on each other.
    """
    left = Counter(done or {})
    keys = (ImageKey(path, number) for number in range(repeat) for path in paths)
    if not left:
        yield from keys
        return
    while group := list(islice(keys, batch)):
        marked = []
        for key in group:
            name = os.path.abspath(key.path), key.repeat
            marked.append(key._replace(written=left[name] > 0))
            left[name] -= 1
        if not all(key.written for key in marked):
            yield from marked


def count_missing(paths: Sequence[Path], repeat: int, done: Mapping[tuple[str, int], int]) -> int:
    """How many results there are still to be written."""
    if not done:
        return len(paths) * repeat
    return sum(not key.written for key in remaining(paths, repeat=repeat, done=done))


class RunOutput:
    """The place of the results, opened but not changed yet.

    Attributes
    ----------
    name
        As the user gave it.
    done
        How many results the file has of each image and pass; empty if the run begins anew.
    """

    def __init__(self, name: str, file: TextIO, *, resume: bool = False) -> None:
        self.name = name
        self.done: Counter[tuple[str, int]] = Counter()
        self._file = file
        self._path = Path(os.path.realpath(name))
        self._kept = stat.S_ISREG(os.fstat(file.fileno()).st_mode) if name != "-" else False
        self._resumes = resume and os.fstat(file.fileno()).st_size > 0
        self._end = 0  # of the last whole line
        self._failed = False  # there are lines without a result

    @property
    def settings_path(self) -> Path:
        """Where it is told what the results depend on."""
        return self._path.with_name(f"{self._path.name}.run.json")

    @property
    def keeps_settings(self) -> bool:
        """Whether it is a file, rather than a pipe or a device: only then :meth:`begin` needs the settings."""
        return self._kept

    def read(self, now: RunSettings) -> None:
        """Find out what is :attr:`done`, if the run is to be resumed.

        Raises
        ------
        ValueError
            If the file was written with other settings, or holds anything else than results.
        """
        if not self._resumes:
            return
        remedy = "give --overwrite to replace the results, or another --output"
        before = self._settings(remedy)
        if difference := before.difference(now):
            raise ValueError(f"--resume: {self.name} was written with {difference}; give the same again, {remedy}")
        relative = False
        for image, repeat, has_result in self._records(remedy):
            relative |= not os.path.isabs(image)
            if has_result:
                self.done[os.path.normpath(os.path.join(before.folder, image)), repeat] += 1
            else:
                self._failed = True
        if relative and before.folder != now.folder:
            raise ValueError(
                f"--resume: {self.name} names images relative to {before.folder}, this run is in {now.folder}; "
                f"start it there, or {remedy}"
            )

    def begin(self, settings: RunSettings | None) -> TextIO:
        """Make the file ready to be written to, and return it: emptied, or with the results that it keeps."""
        if not self._kept:
            return self._file
        try:
            if self._resumes:
                self._keep_results()
            else:
                os.ftruncate(self._file.fileno(), 0)
                assert settings is not None
                text = json.dumps(dataclasses.asdict(settings), indent=1)
                write_whole(self.settings_path, f"{text}\n".encode())
        except OSError as error:
            raise ValueError(f"--output {self.name}: {error.strerror}") from error
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self.name != "-":
            try:
                self._file.close()
            except OSError as error:  # what could not be written before is tried again
                raise OSError(error.errno, error.strerror, self.name) from error

    def _settings(self, remedy: str) -> RunSettings:
        try:
            return RunSettings(**json.loads(self.settings_path.read_bytes()))
        except FileNotFoundError:
            told = "is not there"
        except (OSError, ValueError, TypeError) as error:
            told = f"cannot be read ({error})"
        raise ValueError(
            f"--resume: {self.settings_path} {told}, so nobody knows what {self.name} was written with; {remedy}"
        )

    def _records(self, remedy: str) -> Iterator[tuple[str, int, bool]]:
        """Image, pass, and whether it has a result, of every whole line; a torn last one ends where it began."""
        wrong = 0
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if wrong:
                    raise ValueError(f"--resume: {self.name}, line {wrong}, is no result of odin run; {remedy}")
                record = _record(line)
                if record is None:
                    wrong = number  # only the last line may be torn
                    continue
                self._end += len(line)
                if record:
                    yield record["image"], record.get("repeat", 0), "error" not in record

    def _keep_results(self) -> None:
        """Take away what is no result: a torn line in place, failed images by a new file in place of the old one."""
        descriptor = self._file.fileno()
        if not self._failed:
            os.ftruncate(descriptor, self._end)
            with open(self._path, "rb") as old:
                old.seek(max(0, self._end - 1))
                ended = old.read(1) in (b"\n", b"")
            if not ended:
                os.write(descriptor, b"\n")
            return
        new, name = tempfile.mkstemp(dir=self._path.parent, prefix=".writing-", suffix=self._path.suffix)
        try:
            with os.fdopen(new, "wb") as file, open(self._path, "rb") as old:
                for line in old:
                    record = _record(line)
                    if record and "error" not in record:
                        file.write(line if line.endswith(b"\n") else line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(self._path, name)
            fresh = _open(name)
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        self._file.close()
        self._file = fresh


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's record, empty for a blank line; None if it is none."""
    if not line.strip():
        return {}
    try:
        record = json.loads(line)
    except ValueError:
        return None
    good = (
        isinstance(record, dict) and isinstance(record.get("image"), str) and isinstance(record.get("repeat", 0), int)
    )
    return record if good else None


@contextmanager
def open_output(name: str, *, resume: bool = False, overwrite: bool = False) -> Iterator[RunOutput]:
    """Open the place of the results before the work, so that a bad path fails first; ``-`` is standard output.

    Raises
    ------
    ValueError
        If it cannot be written to, holds results and nobody said what to do with them, or is in use.
    """
    if name == "-":
        yield RunOutput("-", sys.stdout)
        return
    try:
        file = _open(name)
    except BlockingIOError:
        raise ValueError(f"--output {name}: another odin run is writing to it; wait for its end") from None
    except OSError as error:
        raise ValueError(f"--output {name}: {error.strerror}") from error
    output = RunOutput(name, file, resume=resume)
    try:
        check_output(name, resume=resume, overwrite=overwrite)  # once more, now that nobody else writes
        yield output
    finally:
        output.close()


def check_output(name: str, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise ``ValueError`` if the place of the results holds some and nobody said what to do with them."""
    if name == "-":
        if resume or overwrite:
            raise ValueError(
                f"--{'resume' if resume else 'overwrite'} needs --output FILE: there is no file of results"
            )
        return
    try:
        status = os.stat(name)
    except OSError:  # open_output tells
        return
    if not stat.S_ISREG(status.st_mode):
        if resume:
            raise ValueError(f"--resume: --output {name} is not a file, so it has kept no results")
    elif status.st_size and not (resume or overwrite):
        raise ValueError(
            f"--output {name} exists and is not empty; give --resume to do only what is missing in it, --overwrite to "
            "replace it, or another name"
        )


def _open(name: str) -> TextIO:
    """Open to append; a file is locked until it is closed, also by ``kill -9``.

    Raises
    ------
    BlockingIOError
        If another process has it locked.
    """
    while True:
        file = open(name, "a", encoding="utf-8")  # noqa: SIM115 - the caller closes it
        try:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks
                return file
            if os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another run has put a new file in its place meanwhile
