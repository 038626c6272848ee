"""A server as a process of its own: started, waited for, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

import odin
from odin_lab.live.machine import process_tree

__all__ = ["Started", "end_process", "server_environment", "started_server"]

_END_S, _LOOK_S = 20.0, 0.05
_LAST_WORDS = 2000


class Started(NamedTuple):
    """A server that has written its ports.

    Attributes
    ----------
    process
        Its first process.
    ports
        By name: ``"http"``, ``"grpc"``.
    begin_s
        When it was started, on the monotonic clock.
    """

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    begin_s: float


@contextmanager
def started_server(
    command: Sequence[str], *, name: str, look: Callable[[], bool] = lambda: True, start_s: float = 180.0
) -> Iterator[Started]:
    """Start a server that writes its ports into ``--ready-file``, as ``odin serve`` does; ended with the block.

    Parameters
    ----------
    name
        Whose last words are told if it fails.
    look
        Asked while it starts; False: the user wants no more.
    start_s
        Seconds after which it is too late.

    Raises
    ------
    RuntimeError
        If it does not get ready, or an error of this kind leaves the block; with its last words.
    KeyboardInterrupt
        If ``look`` says so.
    """
    with tempfile.TemporaryDirectory(prefix="odin-server-") as folder, tempfile.TemporaryFile() as output:
        ready = Path(folder) / "ready.json"
        begin_s = time.monotonic()
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=server_environment(),
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            yield Started(process, _wait_until_ready(process, ready, begin_s, look, start_s), begin_s)
        except (RuntimeError, OSError) as error:
            output.seek(0)
            words = output.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise RuntimeError(f"{name}: {error}; its last words:\n{words or '(none)'}") from error
        finally:
            end_process(process)


def server_environment() -> dict[str, str]:
    """Ours, with where this program lies, and one thread in libraries that would take all cores."""
    paths = [str(Path(odin.__file__).parent.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def end_process(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ask it to end, and after a while see to it, that it and all that it has started is gone."""
    tree = []
    for pid in process_tree(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            tree.append(psutil.Process(pid))
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    _, left = psutil.wait_procs(tree, timeout=2.0)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=_END_S)
    process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready: Path, begin_s: float, look: Callable[[], bool], start_s: float
) -> dict[str, int]:
    while time.monotonic() - begin_s < start_s:
        if not look():
            raise KeyboardInterrupt
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode}")
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(ready.read_text()))
        time.sleep(_LOOK_S)
    raise RuntimeError(f"it was not ready within {start_s:g} s")
