"""The folder of the lease files: checked to belong to this user or root, then used by its descriptor only.

Anybody can make a folder, or a link, in the temporary directory under the name that we are about to use. Whoever owns
the folder decides who holds a device. So it must belong to this user or to root, must be no link, and its files are
opened relative to it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from odin.stages.device import DeviceError

__all__ = ["SHARED", "default_folder", "open_folder"]

SHARED = Path("/var/lib/odin-devices")
"""Leases of all users, if root has made it: ``sudo install -d -m 1777 /var/lib/odin-devices``."""

_REMEDY = "remove it, or name another folder in ODIN_LEASE_DIR"


def default_folder() -> Path:
    """Where leases lie: ``ODIN_LEASE_DIR``; else :data:`SHARED` if root has made it; else a folder of this user's."""
    named = os.environ.get("ODIN_LEASE_DIR")
    if named:
        return Path(named)
    with contextlib.suppress(OSError):
        found = SHARED.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0:
            return SHARED
    return Path(f"/tmp/odin-devices-{os.getuid()}")


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open the folder, made first if there is none; yields its descriptor.

    One that root makes under a name of the user's choice is for all users; others are for their user alone.

    Raises
    ------
    DeviceError
        If it cannot be used or is not to be trusted; the message names it, its owner and the remedy.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = False
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            made = True
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        kind = "is a link" if folder.is_symlink() else f"cannot be used ({error.strerror})"
        raise DeviceError(f"the folder of leases {folder}{_owner(folder)} {kind}: {_REMEDY}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in (os.getuid(), 0):
            raise DeviceError(
                f"the folder of leases {folder} belongs to {user_name(found.st_uid)}, who could keep devices from you: "
                f"{_REMEDY}; one for several users must be root's: sudo install -d -m 1777 {SHARED}"
            )
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise DeviceError(
                f"in the folder of leases {folder} of {user_name(found.st_uid)} anybody can replace files: "
                f"chmod +t {folder}, or name another folder in ODIN_LEASE_DIR"
            )
        if made and os.getuid() == 0 and folder.name != f"odin-devices-{os.getuid()}":
            os.fchmod(descriptor, 0o1777)
        yield descriptor
    finally:
        os.close(descriptor)


def user_name(user: int) -> str:
    """Name and number of a user."""
    try:
        return f"{pwd.getpwuid(user).pw_name} (user {user})"
    except KeyError:
        return f"user {user}"


def _owner(path: Path) -> str:
    try:
        return f" of {user_name(path.lstat().st_uid)}"
    except OSError:
        return ""
