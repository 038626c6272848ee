"""What building a chain found out, kept on disk: one file of data per key, in a folder that nobody else can write.

Anything wrong with a file or with the folder makes it a miss, never an error: the chain is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from odin.partitioner.profile import cache_directory

__all__ = ["ChainCache"]

_FORMAT, _VERSION = "odin-chain", 1
_OURS = re.compile(r"[0-9a-f]{64}\.json|\.writing-[0-9a-f]{16}")
_FILE_NBYTES = 64 << 20


class ChainCache:
    """Files by key, each JSON with a checksum; the oldest go when they are many or large.

    Files and their folder must belong to this user, and nobody else may write them; links are not followed. They hold
    no pickle and no code.

    Parameters
    ----------
    directory
        Where files lie; None is ``$ODIN_CACHE_DIR/chains``, or ``~/.cache/odin/chains`` if that is not set
        (``$XDG_CACHE_HOME`` in place of ``~/.cache`` if set).
    limit_nbytes, limit_files
        What all files together may take up, and how many there may be.
    """

    def __init__(
        self, directory: str | Path | None = None, *, limit_nbytes: int = 256 << 20, limit_files: int = 256
    ) -> None:
        try:
            self.directory = Path(directory) if directory is not None else cache_directory("chains")
        except RuntimeError:  # a user without a home
            self.directory = Path(os.devnull, "chains")
        self._limit_nbytes = limit_nbytes
        self._limit_files = limit_files

    def load(self, key: str) -> dict[str, Any] | None:
        """Return what was stored for a key (hexadecimal SHA-256), or None."""
        try:
            with self._folder(make=False) as folder:
                data = _read(folder, f"{key}.json", self.directory)
                with contextlib.suppress(OSError):
                    os.utime(f"{key}.json", dir_fd=folder)  # the least used are removed first
            if data is None:
                return None
            head, _, body = data.partition(b"\n")
            if json.loads(head) != _head(key, body):
                return None
            content = json.loads(body)
        except (OSError, ValueError, RecursionError, MemoryError):
            return None
        return content if isinstance(content, dict) else None

    def store(self, key: str, content: dict[str, Any]) -> bool:
        """Keep values of JSON; False if the disk or the folder will not have them."""
        body = json.dumps(content, separators=(",", ":")).encode()
        data = json.dumps(_head(key, body)).encode() + b"\n" + body
        if len(data) > min(_FILE_NBYTES, self._limit_nbytes):
            return False
        try:
            with self._folder(make=True) as folder:
                _replace(folder, f"{key}.json", data)
                self._remove_oldest(folder, kept=f"{key}.json")
        except OSError:
            return False
        return True

    def discard(self, key: str) -> None:
        """Remove what is stored for a key."""
        with contextlib.suppress(OSError), self._folder(make=False) as folder:
            os.unlink(f"{key}.json", dir_fd=folder)

    @contextlib.contextmanager
    def _folder(self, *, make: bool) -> Iterator[int]:
        """Open the folder; ``OSError`` if it is not to be had, or not to be trusted."""
        if make:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check(os.fstat(descriptor), self.directory)
            yield descriptor
        finally:
            os.close(descriptor)

    def _remove_oldest(self, folder: int, *, kept: str) -> None:
        found = []
        for name in os.listdir(folder):
            if _OURS.fullmatch(name) and name != kept:
                with contextlib.suppress(OSError):  # another process may have removed it
                    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    found.append((about.st_mtime_ns, name, about.st_size))
        room = self._limit_nbytes - os.stat(kept, dir_fd=folder).st_size
        for number, (_, name, nbytes) in enumerate(sorted(found, reverse=True), 2):
            room -= nbytes
            if room < 0 or number > self._limit_files:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)


def _head(key: str, body: bytes) -> dict[str, Any]:
    return {"format": _FORMAT, "version": _VERSION, "key": key, "sha256": hashlib.sha256(body).hexdigest()}


def _check(about: os.stat_result, path: Path) -> None:
    """Raise ``OSError``, after a warning, if somebody else could have written a file or folder."""
    if about.st_uid != os.geteuid():
        problem = f"belongs to another user (number {about.st_uid})"
    elif about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be written by others: chmod go-w {path}"
    else:
        return
    warnings.warn(
        f"{path} {problem}; it is not used, and models are captured and checked anew at every start. Remove it, or "
        "name another folder in ODIN_CACHE_DIR",
        stacklevel=2,
    )
    raise PermissionError(problem)


def _read(folder: int, name: str, directory: Path) -> bytes | None:
    # without waiting: a pipe by that name would never be opened
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > _FILE_NBYTES:
            return None
        _check(about, directory / name)
        return file.read(_FILE_NBYTES)


def _replace(folder: int, name: str, data: bytes) -> None:
    """Write a file so that others see the old or the new one and nothing between."""
    temporary = f".writing-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode=0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
