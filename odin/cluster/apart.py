"""Functions run in a process of their own: what they import and allocate is gone when they have returned.

Arguments and results cross in anonymous memory, arrays in place: written once, mapped by the other process, gone with
the last of the two. Ray's object store would keep the pages. ::

    caller                                          python -m odin.cluster.apart IN OUT PARENT
      | writes function and arguments -- IN (memfd) -->  maps and unpickles them, calls
      | maps the result               <-- OUT (memfd) -  writes the result, or what was raised
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import pickle
import queue
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import Any

__all__ = ["run_apart"]

_PR_SET_PDEATHSIG = 1
_ALIGNMENT = 64
_TOLD_CHARS = 2000


def run_apart(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function in a new process, wait, and return what it returns.

    For work that is done once and leaves much behind in a process that lives long: exporting a ResNet50 to ONNX leaves
    300 MiB of modules and caches. What ``odin``'s loggers are told there is logged here when it has ended.

    Parameters
    ----------
    function
        Picklable, as are its arguments and its result; those of ``__main__`` go by value. Numpy arrays among arguments
        and results are not copied when they are read, and cannot be written there.

    Raises
    ------
    Exception
        What the function raises, of its own type.
    RuntimeError
        If the process dies, with what it said last.
    """
    given, returned = os.memfd_create("odin-apart", os.MFD_CLOEXEC), os.memfd_create("odin-apart", os.MFD_CLOEXEC)
    # its temporary files are in here: it may be killed, and they may be as large as the weights
    folder = tempfile.mkdtemp(prefix="odin-apart-")
    try:
        _write(given, (function, args, options))
        process = subprocess.Popen(
            # -P: -m would put the current folder first, in which a random.py may lie; it is where it is in sys.path
            [sys.executable, "-P", "-m", "odin.cluster.apart", str(given), str(returned), str(os.getpid())],
            pass_fds=(given, returned),
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
                "TMPDIR": folder,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, said = process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
        if os.fstat(returned).st_size == 0:
            told = said.decode(errors="replace").strip()[-_TOLD_CHARS:]
            raise RuntimeError(f"a process of {function.__qualname__} ended with status {process.returncode}: {told}")
        worked, outcome, records = _read(returned)
    finally:
        os.close(given)
        os.close(returned)
        shutil.rmtree(folder, ignore_errors=True)
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    if not worked:
        raise outcome
    return outcome


def _write(descriptor: int, value: Any) -> None:
    from ray import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    with open(descriptor, "wb", closefd=False) as file:
        file.write(struct.pack(f"<{len(raw) + 1}Q", len(raw), *(part.nbytes for part in raw)))
        for part in raw:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            file.write(part)


def _read(descriptor: int) -> Any:
    memory = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    (count,) = struct.unpack_from("<Q", memory)
    sizes, offset, parts = struct.unpack_from(f"<{count}Q", memory, 8), 8 * (count + 1), []
    for size in sizes:
        offset += -offset % _ALIGNMENT
        parts.append(memory[offset : offset + size])
        offset += size
    return pickle.loads(parts[0], buffers=parts[1:])


def _end(*_: object) -> None:
    """End as the caller has, which can remove nothing any more."""
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os._exit(1)


def _main(given: int, returned: int, parent: int) -> None:
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that
        _end()
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.getLogger("odin")
    logger.addHandler(QueueHandler(records))  # it makes texts of what is logged
    logger.setLevel(logging.INFO)
    function, args, options = _read(given)
    try:
        outcome = True, function(*args, **options)
    except Exception as error:
        outcome = False, error.with_traceback(None)
    told = [records.get() for _ in range(records.qsize())]
    try:
        _write(returned, (*outcome, told))
    except Exception as error:  # what cannot be pickled
        os.ftruncate(returned, 0)
        os.lseek(returned, 0, os.SEEK_SET)
        _write(returned, (False, RuntimeError(f"{type(error).__name__}: {error}"), told))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
