"""Checks of devices that must be on this machine, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence

from odin.options import check_on_this_machine
from odin.stages.device import Device, DeviceError

__all__ = ["check_named"]


def check_named(devices: Sequence[Device]) -> None:
    """Check that devices to profile are on this machine and named once, cores that they exist, GPUs that they may.

    Raises
    ------
    DeviceError
        If not; the message says which.
    """
    seen: set[tuple[str, int]] = set()
    for device in devices:
        if device.node:
            raise DeviceError(
                f"{device} is on another node: 'odin partition' profiles this machine only; 'odin run' profiles remote "
                f"devices on their own nodes. Name a device here, such as {device._replace(node='')}"
            )
        check_on_this_machine(device)
        for index in device.indices:
            if (device.kind, index) in seen:
                raise DeviceError(f"two stages are on {device.kind}:{index}; give each stage a device of its own")
            seen.add((device.kind, index))
