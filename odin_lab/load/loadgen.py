"""MLPerf LoadGen decides when requests are sent; its trace says when each was due.

What comes of it is not an MLPerf result: those need a much longer run, an accuracy run, and a review. LoadGen says so
itself of a short one (``INVALID``).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from odin_lab.load.sender import Sender
from odin_lab.load.task import Scheduled, Task, Verdict

__all__ = ["LoadGenRun", "check_loadgen"]

_TRACE, _SUMMARY = "mlperf_log_trace.json", "mlperf_log_summary.txt"


def check_loadgen() -> ModuleType:
    """Import LoadGen.

    Raises
    ------
    ValueError
        If it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise ValueError(
            "single-stream, offline and server are scenarios of MLPerf LoadGen, which is not installed: "
            f"pip install 'odin-pipeline[load]' ({error})"
        ) from error
    found: ModuleType = mlperf_loadgen
    return found


class LoadGenRun:
    """One run of LoadGen, in the calling thread; what it has written can be read at any moment."""

    def __init__(self, task: Task, sender: Sender) -> None:
        self._loadgen, self._task, self._sender = check_loadgen(), task, sender
        self._folder = tempfile.TemporaryDirectory(prefix="odin-load-")
        self._path = Path(self._folder.name)

    def run(self) -> None:
        """Send all requests, and wait until the last is over."""
        loadgen, task, sender = self._loadgen, self._task, self._sender

        def issue(samples: list[Any]) -> None:
            for sample in samples:
                answer = loadgen.QuerySampleResponse(sample.id, 0, 0)
                sender.put(sample.index, partial(loadgen.QuerySamplesComplete, [answer]))

        def nothing(*_: Any) -> None:  # samples are in memory all the time
            pass

        system = loadgen.ConstructSUT(issue, nothing)
        library = loadgen.ConstructQSL(task.samples, task.samples, nothing, nothing)
        try:
            loadgen.StartTestWithLogSettings(system, library, self._settings(), self._log_settings(), "")
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)

    def scheduled(self) -> list[Scheduled]:
        """What LoadGen has written of the requests that are over; nothing but with ``server``, which has a schedule."""
        if self._task.scenario != "server":
            return []
        found = list(_read_trace(self._path / _TRACE))
        begin_s = min((one.due_s for one in found), default=0.0)
        return [one._replace(due_s=one.due_s - begin_s) for one in found]

    def verdict(self) -> Verdict | None:
        """LoadGen's judgement; None before its end."""
        return _read_summary(self._path / _SUMMARY)

    def close(self) -> None:
        """Remove what it has written."""
        self._folder.cleanup()

    def _settings(self) -> Any:
        loadgen, task = self._loadgen, self._task
        settings = loadgen.TestSettings()
        settings.mode = loadgen.TestMode.PerformanceOnly
        settings.scenario = {
            "single-stream": loadgen.TestScenario.SingleStream,
            "offline": loadgen.TestScenario.Offline,
            "server": loadgen.TestScenario.Server,
        }[task.scenario]
        settings.min_duration_ms = max(1, round(task.seconds * 1e3))
        settings.min_query_count = task.least
        settings.server_target_qps = task.rate_hz
        settings.server_target_latency_ns = round(task.bound_ms * 1e6)
        settings.offline_expected_qps = task.rate_hz
        # It makes so many requests beforehand, and must not run out of them.
        settings.single_stream_expected_latency_ns = max(1, round(0.25e9 / task.rate_hz))
        for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
            setattr(settings, seed, task.seed)
        return settings

    def _log_settings(self) -> Any:
        output = self._loadgen.LogOutputSettings()
        output.outdir = self._folder.name
        output.copy_summary_to_stdout = output.copy_detail_to_stdout = False
        settings = self._loadgen.LogSettings()
        settings.log_output = output
        settings.enable_trace = self._task.scenario == "server"
        return settings


def _read_trace(path: Path) -> Iterator[Scheduled]:
    """Each request that is over; lines that are not whole yet are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        if not line.startswith('{"name":"Sample"') or '"ph":"b"' not in line:
            continue
        try:
            entry = json.loads(line.rstrip(","))
            given = entry["args"]
            yield Scheduled(
                int(given["sample_seq"]),
                float(entry["ts"]) / 1e6,
                float(given["issue_start_ns"]) / 1e9,
                float(given["complete_ns"]) / 1e9,
            )
        except (ValueError, KeyError, TypeError):
            continue


def _read_summary(path: Path) -> Verdict | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    result, unmet = "", []
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "Result is":
            result = value
        elif value.upper() == "NO" and name.endswith("satisfied"):
            unmet.append(name)
    return Verdict(result, tuple(unmet)) if result else None
