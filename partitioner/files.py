"""Files to write: whether they can be, before the work is done, and then whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["check_different", "check_folder", "check_writable", "write_whole"]


def check_writable(path: str | os.PathLike[str], what: str, *, makes_folder: bool = False) -> None:
    """Raise ``ValueError`` if no file can be written there; changes nothing.

    Parameters
    ----------
    path
        The file, there or not.
    what
        What names it, for the message: ``--output``.
    makes_folder
        Whether who writes makes its folder, too.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ValueError(f"{what} {file} is a folder; name a file")
        if not file.exists():
            folder = file.absolute().parent
            if makes_folder:
                check_folder(folder, what)
                return
            if not folder.exists():
                raise ValueError(f"{what} {file}: there is no folder {file.parent}; make it first")
            if not folder.is_dir():
                raise ValueError(f"{what} {file}: {file.parent} is no folder; name a file in one")
            file = folder
        if not os.access(file, os.W_OK):
            raise ValueError(f"{what} {path}: {file} cannot be written to; name another one, or change its permissions")
    except OSError as error:  # a name that is too long, a folder that cannot be looked into
        raise ValueError(f"{what} {path}: {error.strerror}; name a file that can be written") from error


def check_folder(path: str | os.PathLike[str], what: str) -> None:
    """Raise ``ValueError`` if files cannot be written into a folder, which may have to be made; changes nothing."""
    folder = Path(path).absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ValueError(f"{what} {path}: {folder} is a file; name a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{what} {path}: {folder} cannot be written to; name another folder")
    except OSError as error:
        raise ValueError(f"{what} {path}: {error.strerror}; name a folder that can be written to") from error


def check_different(**files: str | Path | None) -> None:
    """Raise ``ValueError`` if two options name the same file to write."""
    seen: dict[Path, str] = {}
    for option, file in files.items():
        if file is not None and (other := seen.setdefault(Path(file).absolute(), option)) != option:
            raise ValueError(f"--{other} and --{option} both name {file}; give each a file of its own")


def write_whole(path: Path, data: bytes) -> None:
    """Write atomically: under another name first, then rename.

    A link is followed. What is there and no plain file, such as ``/dev/stdout``, is written to as it is.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp lets only its owner read
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
