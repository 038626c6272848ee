"""A process of a synthetic load: busy for a part of every period, until its standard input ends.

    python worker.py TEXT KIND INDEX PERIOD_S PHASE NBYTES PARENT

Started by its path and made of the standard library alone, so that it is there in an instant: importing the package
around it would bring torch and Ray along. INDEX is a core, or a GPU; PHASE, 0 to 1, the part of a period by which its
turns are late against those of other processes, so that they spread. It answers ``{"ready": WHAT}`` or ``{"error":
WHY}`` on its standard output and then reads intensities, one per line; it begins at 0. TEXT is for who lists the
processes.

It dies with its parent: the kernel kills it (PR_SET_PDEATHSIG), and it ends by itself when its input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
MIB = 2**20
CHUNK = MIB
LINE, PIECE = 64, 2**17
GPU_STEP_S = 1e-3

Body = tuple[Callable[[], object], str]
"""Does a step of the work, well below a period; and what that is, in words."""


class LoadFailed(Exception):  # noqa: N818 - a message to the parent
    """The load cannot run here."""


def main(arguments: list[str]) -> None:
    """Get ready, say so, work."""
    _, kind, index, period_s, phase, nbytes, parent = arguments
    die_with_parent(int(parent))
    set_name(f"odin-load-{kind.partition('-')[0]}")
    with contextlib.suppress(PermissionError):  # started with less: only an administrator gets it back
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    try:
        if not kind.startswith("gpu"):
            # Only now: until here it would already have been a load, though a short one.
            os.sched_setaffinity(0, [int(index)])
        step, what = make_body(kind, int(index), int(nbytes))
    except (LoadFailed, OSError, MemoryError, ImportError, RuntimeError) as error:
        say({"error": str(error) or type(error).__name__})
        return
    say({"ready": what})
    work(step, Inbox(), period_s=float(period_s), phase=float(phase))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; end now if that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def set_name(name: str) -> None:
    """Set what ``ps`` and ``top`` show, at most 15 letters."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def say(message: dict[str, str]) -> None:
    """Write a message to the parent."""
    os.write(1, json.dumps(message).encode() + b"\n")


class Inbox:
    """Intensities from standard input; its end ends the process."""

    def __init__(self) -> None:
        self._rest = b""

    def latest(self, timeout_s: float | None) -> float | None:
        """The latest intensity that came, waiting up to ``timeout_s`` (None: for ever) for one; None if none did."""
        if not select.select([0], [], [], timeout_s)[0]:
            return None
        data = os.read(0, 65536)
        if not data:
            os._exit(0)  # at once: putting the interpreter away is work too
        *lines, self._rest = (self._rest + data).split(b"\n")
        return float(lines[-1]) if lines else None


def work(step: Callable[[], object], inbox: Inbox, *, period_s: float, phase: float) -> None:
    """Do steps in the first part of every period, as long as the latest intensity says.

    The turns lie on a grid of the machine's clock, so that neither a late wake-up nor a change moves them.
    """
    intensity = 0.0
    while True:
        if intensity <= 0.0:
            changed = inbox.latest(None)
        else:
            now_s = time.perf_counter()
            start_s = now_s - (now_s - phase * period_s) % period_s
            changed = None
            while changed is None and time.perf_counter() < start_s + intensity * period_s:
                step()
                changed = inbox.latest(0.0)
            if changed is None:
                changed = inbox.latest(max(0.0, start_s + period_s - time.perf_counter()))
        if changed is not None:
            intensity = changed


# ---------------------------------------------------------------- what the kinds do
def make_body(kind: str, index: int, nbytes: int) -> Body:
    """Return the work of a kind."""
    if kind == "cpu":
        return arithmetic, "integer arithmetic"
    if kind == "membw":
        half = nbytes // 2 // CHUNK * CHUNK
        return stream(array(half), array(half)).__next__, f"copies between 2 arrays of {half // MIB} MiB"
    if kind == "cache":
        return walk(array(nbytes // PIECE * PIECE)).__next__, f"writes to every line of {nbytes // MIB} MiB"
    if kind in ("gpu", "gpu-copy"):
        return gpu(index, copies=kind == "gpu-copy")
    raise LoadFailed(f"unknown kind {kind!r}")


def arithmetic() -> None:
    """Multiply and add integers for about a tenth of a millisecond."""
    value = 1
    for _ in range(1500):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF


def stream(source: memoryview, target: memoryview) -> Iterator[None]:
    """Copy one array to another and back again, a chunk per step."""
    nbytes = len(source)
    filling = bytes(range(256)) * (CHUNK // 256)
    for first in range(0, nbytes, CHUNK):  # an array that was never written has no memory of its own
        source[first : first + CHUNK] = filling
        target[first : first + CHUNK] = filling
        yield
    while True:
        for first in range(0, nbytes, CHUNK):
            target[first : first + CHUNK] = source[first : first + CHUNK]
            yield
        source, target = target, source


def walk(lines: memoryview) -> Iterator[None]:
    """Write to every cache line of an array, piece after piece in an order that no prefetcher foresees."""
    ones = memoryview(b"\1" * (PIECE // LINE))
    count = len(lines) // PIECE
    stride = max(1, int(count * 0.618))
    while math.gcd(stride, count) != 1:  # so that the strides reach all pieces
        stride += 1
    piece = 0
    while True:
        first = piece * PIECE
        lines[first : first + PIECE : LINE] = ones
        piece = (piece + stride) % count
        yield


def array(nbytes: int) -> memoryview:
    """Bytes of anonymous memory, in huge pages where there are such."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def gpu(index: int, *, copies: bool) -> Body:
    """Matrix products, or copies within the GPU's memory, about a millisecond per step and one step ahead."""
    import torch

    if index >= torch.cuda.device_count():
        raise LoadFailed(f"there is no gpu:{index} that torch can use here; it sees {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(index)
    if copies:
        source = torch.zeros(256 * MIB, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        what = "copies of 256 MiB"

        def launch() -> None:
            target.copy_(source)
    else:
        left, right = (torch.rand(2048, 2048, device="cuda") for _ in range(2))
        product = torch.empty_like(left)
        what = "products of 2048 x 2048 matrices"

        def launch() -> None:
            torch.mm(left, right, out=product)

    for _ in range(3):
        launch()
    torch.cuda.synchronize()
    before_s = time.perf_counter()
    for _ in range(10):
        launch()
    torch.cuda.synchronize()
    repeats = max(1, round(GPU_STEP_S / ((time.perf_counter() - before_s) / 10)))

    def steps() -> Iterator[None]:
        # Waiting blocks rather than spins: a load on a GPU is to be none on a core.
        events = [torch.cuda.Event(blocking=True) for _ in range(2)]
        while True:
            for event in events:
                event.synchronize()  # the step before the last; nothing to wait for if never recorded
                for _ in range(repeats):
                    launch()
                event.record()
                yield

    return steps().__next__, what


if __name__ == "__main__":
    main(sys.argv[1:])
