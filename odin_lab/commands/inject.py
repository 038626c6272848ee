"""``odin inject``: synthetic co-located load on chosen cores or GPUs, for as long as it is told.

Exit status: 0 if all loads ran to their end; 1 if one did not start, or ended by itself with an error; 2 for wrong
usage; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. However it ends, its loads end with it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from odin.models.model_names import check_model_name
from odin.monitor.events import LoadChanged
from odin.stages.device import Device, cpu_model, parse_devices, usable_cores
from odin_lab.inject.calibrate import calibrate
from odin_lab.inject.calibration import load_calibrations, store_calibration
from odin_lab.inject.handle import Handle
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import DEFAULT_PERIOD_S, KINDS, Load, LoadError, LoadFailedError
from odin_lab.inject.log import LoadLog
from odin_lab.inject.named import NAMED, check_name, named_load
from odin_lab.inject.named_table import named_table
from odin_lab.inject.play import play
from odin_lab.inject.scenario import Scenario, Step

__all__ = ["add_parser", "run"]

_KINDS = ("cpu", "membw", "cache", "gpu")
_MODES = ("kind", "program", "scenario", "list", "calibrate")
_OPTIONS = {
    "kind": ("on", "intensity", "threads", "load", "period", "seconds", "ramp", "log"),
    "program": ("on", "seconds", "log"),
    "a named scenario": ("on", "seconds", "ramp", "log"),
    "a scenario file": ("seconds", "seed", "log"),
    "list": ("model",),
    "calibrate": ("on", "model", "quick"),
}
"""Which options mean something for what is to be done."""


def add_parser(subparsers: Any) -> None:
    """Add ``odin inject`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inject",
        help="disturb cores or GPUs with synthetic load",
        description="Put load on cores or GPUs, as another program would, to see what it does to a pipeline: "
        "a synthetic load, any program, or a scenario over time. "
        "The load ends when this command ends, even if it is killed.",
        epilog="kinds: " + "; ".join(f"{kind}: {KINDS[kind]}" for kind in _KINDS),
    )
    parser.add_argument("kind", nargs="?", choices=_KINDS, metavar="KIND", help=", ".join(_KINDS))
    what = parser.add_argument_group("instead of a kind")
    what.add_argument(
        "--program", metavar="COMMAND", help="run this program as the load, bound to the device with all that it starts"
    )
    what.add_argument("--scenario", metavar="NAME|FILE", help="a named scenario (with --on), or a TOML file")
    what.add_argument("--list", action="store_true", help="show the named scenarios, and the slowdown measured here")
    what.add_argument("--calibrate", action="store_true", help="measure how much the named scenarios slow a model down")
    how = parser.add_argument_group("where, how and how long")
    how.add_argument(
        "--on", nargs="+", metavar="DEVICE", help="such as cpu:1, cpu:0-3, gpu:0; several get the load at once"
    )
    how.add_argument(
        "--intensity", type=float, metavar="0..1", help="part of the time that the load is busy (default 1)"
    )
    how.add_argument("--threads", type=int, metavar="N", help="processes on each device (default: one for each core)")
    how.add_argument("--load", choices=("matmul", "copy"), help="kind of work on a GPU (default matmul)")
    how.add_argument(
        "--period", type=float, metavar="S", help=f"seconds of one busy and idle cycle (default {DEFAULT_PERIOD_S})"
    )
    how.add_argument("--seconds", type=float, metavar="S", help="end after S seconds (default: at Ctrl-C)")
    how.add_argument("--ramp", type=float, metavar="S", help="rise during the first S seconds, fall during the last S")
    how.add_argument("--seed", type=int, metavar="N", help="seed of the random events of a scenario file")
    how.add_argument(
        "--log", type=Path, metavar="FILE", help="append the loads' events to a pipeline's event log, or a new file"
    )
    measure = parser.add_argument_group("with --list and --calibrate")
    measure.add_argument("--model", help="model that is slowed down (default resnet50; --list: all measured ones)")
    measure.add_argument("--quick", action="store_true", help="measure for about a minute, less precisely")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; returns the exit status."""
    mode = _check_usage(arguments)
    try:
        if mode == "list":
            return _list(arguments)
        if mode == "calibrate":
            return _calibrate(arguments)
        return _inject(_scenario(arguments, mode), arguments.log)
    except LoadFailedError as error:
        print(f"odin inject: {error}", file=sys.stderr)
        return 1


def _check_usage(arguments: argparse.Namespace) -> str:
    """Return what is to be done, after a look at whether the options fit it."""
    given = [mode for mode in _MODES if getattr(arguments, mode) not in (None, False)]
    if len(given) != 1:
        told = f"not by {' and '.join(given)} together" if given else "nothing does yet"
        raise LoadError(
            f"say what to do by a kind ({', '.join(_KINDS)}), --program, --scenario, --list or --calibrate: {told}"
        )
    mode = given[0]
    if mode == "scenario":
        name = arguments.scenario
        # What looks like no file is meant as a name, perhaps a misspelt one.
        is_file = name not in NAMED and (name.endswith(".toml") or "/" in name or Path(name).exists())
        mode = "a scenario file" if is_file else "a named scenario"
        if not is_file:
            check_name(name)
    for option in sorted({option for options in _OPTIONS.values() for option in options}):
        value = getattr(arguments, option)
        if value is not None and value is not False and option not in _OPTIONS[mode]:
            about = f"--{mode}" if mode in _MODES[1:] else "a kind" if mode == "kind" else mode
            raise LoadError(f"--{option} means nothing with {about}; leave it out")
    if "on" in _OPTIONS[mode] and mode != "calibrate" and not arguments.on:
        raise LoadError("say where: --on cpu:1, or several: --on cpu:0 cpu:1")
    if arguments.load is not None and arguments.kind != "gpu":
        raise LoadError(f"--load {arguments.load} is for a GPU: odin inject gpu --on gpu:0 --load {arguments.load}")
    if arguments.threads is not None and arguments.threads < 1:
        raise LoadError(f"--threads {arguments.threads} is not at least 1")
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise LoadError(f"--seconds {arguments.seconds:g} is not a positive number")
    return mode


def _devices(arguments: argparse.Namespace) -> tuple[Device, ...]:
    return tuple(dict.fromkeys(parse_devices([text for word in arguments.on for text in word.split(",")])))


def _scenario(arguments: argparse.Namespace, mode: str) -> Scenario:
    end_s = math.inf if arguments.seconds is None else arguments.seconds
    if mode == "a scenario file":
        return Scenario.load(arguments.scenario, seed=arguments.seed).until(end_s)
    name, loads = "", []
    for device in _devices(arguments):
        if mode == "a named scenario":
            name = arguments.scenario
            loads.append(named_load(name, device))
        elif mode == "program":
            loads.append(Load("program", device, program=arguments.program))
        else:
            kind = "gpu-copy" if arguments.load == "copy" else arguments.kind
            intensity = 1.0 if arguments.intensity is None else arguments.intensity
            period_s = DEFAULT_PERIOD_S if arguments.period is None else arguments.period
            if intensity == 0:
                raise LoadError("--intensity 0 is no load")
            loads.append(Load(kind, device, intensity, arguments.threads or 0, period_s))
    return Scenario(tuple(Step(load, 0.0, end_s, name, arguments.ramp or 0.0) for load in loads))


def _inject(scenario: Scenario, log_path: Path | None) -> int:
    begin_s = math.nan
    details: dict[int, str] = {}

    def on_event(event: LoadChanged) -> None:
        nonlocal begin_s
        if log is not None:
            log.write(event)
        if math.isnan(begin_s):  # this is the first step, which sets the time
            begin_s = event.at_s - scenario.steps[0].start_s
        detail = details.pop(event.pid, f"pid {event.pid}")
        print_line(f"{event.at_s - begin_s:8.2f} s  {event.on:<7} {event.name:<11} {event.intensity:4.0%}  {detail}")

    def on_begin(step: Step, handle: Handle) -> None:
        if handle.description:  # said once, with the first change
            details[handle.pids[0]] = f"pid {' '.join(map(str, handle.pids))}: {handle.description}"

    def on_end(handle: Handle) -> None:
        if handle.failed:
            print(f"odin inject: {handle.load}: {handle.ended}", file=sys.stderr)
        else:
            print_line(f"{handle.name} on {handle.load.on} ended by itself")

    with ExitStack() as stack:
        log = None if log_path is None else stack.enter_context(LoadLog(log_path))
        injector = stack.enter_context(Injector(on_event=on_event, on_end=on_end))
        return 0 if play(scenario, injector, on_begin=on_begin) else 1


def _list(arguments: argparse.Namespace) -> int:
    found = [item for item in load_calibrations(cpu_model()) if arguments.model in (None, item.model)]
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(named_table(found))
    for item in found:
        print(
            f"{item.model}: time of a pass / alone ({item.alone_s * 1e3:.0f} ms), median (and quartiles) of "
            f"{item.rounds * item.passes} passes; {item.cpu_model}, {item.created}"
        )
    if not found:
        print("not calibrated on this kind of processor: odin inject --calibrate --on cpu:1")
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    devices = _devices(arguments) if arguments.on else (Device("cpu", usable_cores()[-1:]),)
    if len(devices) != 1:
        raise LoadError(f"{len(devices)} devices to calibrate on: name one")
    model = arguments.model or "resnet50"
    check_model_name(model)
    messages = Console(stderr=True, highlight=False)
    with messages.status(f"starting {model} on {devices[0]}") as status:
        calibration = calibrate(
            model,
            devices[0],
            quick=arguments.quick,
            notify=lambda name, done, total: status.update(f"{name} ({done} of {total} done)"),
        )
    try:
        path = store_calibration(calibration)
    except OSError as error:
        print(f"odin inject: cannot keep the result: {error}", file=sys.stderr)
    else:
        print(f"kept in {path}", file=sys.stderr)
    arguments.model = model
    return _list(arguments)


def print_line(line: str) -> None:
    """Print at once, so that a pipe sees it; go on without if nobody reads any more."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
