"""Another user can put a folder, a link or a file where leases are to lie; none of it is followed or believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from descriptors import open_descriptors

from odin.stages import lease_folder
from odin.stages.device import Device, DeviceError
from odin.stages.lease import Lease, free_indices
from odin.stages.lease_folder import default_folder, open_folder

CORE = Device("cpu", (1,))
STRANGER = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


def take(folder: Path) -> None:
    Lease(CORE, label="mine", directory=folder).release()


@pytest.mark.parametrize("use", [take, lambda folder: free_indices("cpu", [1], directory=folder)], ids=["take", "look"])
def test_a_link_is_not_followed(tmp_path: Path, use: Callable[[Path], None]):
    # chmod once opened the folder that the link pointed to for everybody.
    theirs = tmp_path / "private"
    theirs.mkdir(mode=0o700)
    link = tmp_path / "leases"
    link.symlink_to(theirs)
    with pytest.raises(DeviceError, match=f"{link} of .*user {os.getuid()}.* is a link: remove it.*ODIN_LEASE_DIR"):
        use(link)
    assert theirs.stat().st_mode & 0o7777 == 0o700
    assert list(theirs.iterdir()) == []


def test_a_link_to_nowhere_makes_nothing(tmp_path: Path):
    link = tmp_path / "leases"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="is a link"):
        take(link)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    path = tmp_path / "leases"
    path.write_text("")
    with pytest.raises(DeviceError, match=f"{path} of .* cannot be used .Not a directory.: remove it"):
        take(path)


@as_root
def test_a_folder_of_another_user_is_not_believed(tmp_path: Path):
    folder = tmp_path / "leases"
    folder.mkdir()
    os.chown(folder, STRANGER, STRANGER)
    with pytest.raises(DeviceError, match=f"{folder} belongs to user {STRANGER}, who could.*ODIN_LEASE_DIR.*sudo"):
        take(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_of_another_user_is_not_believed_without_root_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("odin.stages.lease_folder.os.getuid", lambda: STRANGER)
    tmp_path.chmod(0o700)
    if tmp_path.stat().st_uid == 0:  # root's is believed by everybody
        with open_folder(tmp_path):
            pass
    else:
        with pytest.raises(DeviceError, match="belongs to"):
            take(tmp_path)


def test_a_folder_in_which_anybody_can_replace_files(tmp_path: Path):
    folder = tmp_path / "leases"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DeviceError, match=rf"anybody can replace files: chmod \+t {folder}"):
        take(folder)
    folder.chmod(0o1777)
    take(folder)


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_only_a_file_of_its_own_is_a_lease(tmp_path: Path, kind: str):
    precious = tmp_path / "precious"
    precious.write_text("do not truncate")
    lease = tmp_path / "leases" / "cpu-1"
    lease.parent.mkdir(mode=0o700)
    {
        "link": lambda: lease.symlink_to(precious),
        "hard link": lambda: lease.hardlink_to(precious),
        "pipe": lambda: os.mkfifo(lease),
        "folder": lease.mkdir,
    }[kind]()
    before = open_descriptors()
    for use in (take, lambda folder: free_indices("cpu", [1], directory=folder)):
        with pytest.raises(DeviceError, match=f"the lease {lease}.*: remove it, or name another folder"):
            use(lease.parent)
    assert precious.read_text() == "do not truncate"
    assert open_descriptors() == before


def test_each_user_has_a_folder_that_nobody_else_can_enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("ODIN_LEASE_DIR")
    monkeypatch.setattr(lease_folder, "SHARED", tmp_path / "shared")
    assert default_folder() == Path(f"/tmp/odin-devices-{os.getuid()}")
    with open_folder(tmp_path / f"odin-devices-{os.getuid()}") as descriptor:
        assert os.fstat(descriptor).st_mode & 0o7777 == 0o700


@as_root
def test_all_users_share_a_folder_that_root_has_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shared = tmp_path / "shared"
    monkeypatch.delenv("ODIN_LEASE_DIR")
    monkeypatch.setattr(lease_folder, "SHARED", shared)
    shared.mkdir()
    assert default_folder() == shared
    os.chown(shared, STRANGER, STRANGER)
    assert default_folder() == Path("/tmp/odin-devices-0")
    monkeypatch.setenv("ODIN_LEASE_DIR", str(tmp_path / "named"))
    assert default_folder() == tmp_path / "named"
