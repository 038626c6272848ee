"""A cable with a delay, for kernels without ``netem``: passes frames between two network interfaces on, each later.

Run in a network namespace of its own by :func:`netns.two_networks`::

    python delayed_cable.py DELAY_S LIMIT_S

It forwards between the interfaces ``left`` and ``right`` until its standard input ends, or for ``LIMIT_S`` at most.
Frames keep the checksums and segments that the kernel has left to the hardware, as virtio headers describe them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING, _SO_RCVBUFFORCE = 263, 15, 23, 33
_MAX_FRAME_NBYTES = 10 + 14 + 65_535
_BUFFER_NBYTES = 64 * 2**20


def _open(interface: str) -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    tap.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    tap.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_NBYTES)
    tap.setblocking(False)
    tap.bind((interface, _ETH_P_ALL))
    return tap


def forward(delay_s: float, limit_s: float) -> None:
    """Pass frames on until standard input ends."""
    left, right = _open("left"), _open("right")
    other = {left: right, right: left}
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()  # in order, as the delay is the same for all
    end_s = time.monotonic() + limit_s
    while (now_s := time.monotonic()) < end_s:
        while waiting and waiting[0][0] <= now_s:
            _, tap, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # the interface is full or down: a frame is lost, as on any cable
                tap.send(frame)
        until_s = waiting[0][0] if waiting else end_s
        ready, _, _ = select.select([left, right, sys.stdin], [], [], max(0.0, until_s - time.monotonic()))
        if sys.stdin in ready:
            return
        for tap in ready:
            try:
                frame = tap.recv(_MAX_FRAME_NBYTES)
            except OSError:
                continue
            waiting.append((time.monotonic() + delay_s, other[tap], frame))


if __name__ == "__main__":
    print("ready", flush=True)
    forward(float(sys.argv[1]), float(sys.argv[2]))
