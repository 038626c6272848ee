"""``odin demo``: see a load arrive beside a stage, with a fixed plan and with a policy that answers it.

Exit status: 0 done; 1 if the pipeline or the load broke; 2 for wrong usage; 130 after Ctrl-C, 143 after SIGTERM, 129
after SIGHUP. A signal ends it early, with what happened until then told; a second one drops what is under way.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from odin.models.image_files import find_images
from odin.models.model_names import check_model_name
from odin.monitor.events import Event
from odin.monitor.view.event_text import event_text
from odin.options import check_options
from odin.process.phases import tell_phases
from odin.process.signals import draining, importing
from odin_lab.inject.injector import check_local_device
from odin_lab.inject.load import Load

__all__ = ["add_parser", "run", "what_next"]


def add_parser(subparsers: Any) -> None:
    """Add ``odin demo`` and its options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="watch a load start, and the other stages take over its work",
        description="Stream images through a pipeline, disturb one of its stages, and watch the others take its work.",
    )
    parser.add_argument("model", nargs="?", default="resnet50", metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="image files, or folders to search")
    parser.add_argument("--stages", default="auto", metavar="DEVICES", help="such as cpu:0,cpu:1 (default: all free)")
    parser.add_argument("--policy", default="auto", help="as for odin run (default: %(default)s)")
    parser.add_argument(
        "--load", metavar="LOAD", help="load to start, such as membw@cpu:1x2 (default: cpu, on the last stage's core)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="factor on all durations (default: 1, for 80 s)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="record the events, for odin replay FILE")


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; returns the exit status."""
    paths = _check_usage(arguments)
    with importing():
        import torch

        from odin.models.images import load_image
        from odin.models.sources import load_source
        from odin.monitor.view.terminal import live_panel
        from odin.pipeline import Pipeline
        from odin_lab.demo import Phase, phases, render_demo, run_phases
        from odin_lab.feeding import KeptEvents
        from odin_lab.inject.injector import Injector

    torch.set_num_threads(1)  # this process feeds; the cores are the stages'
    console = Console()
    source = load_source(arguments.model)
    if source.preprocess is None:
        raise ValueError(f"{source.name}: how to turn image files into its input is not known; take another model")
    inputs = [load_image(path, source.preprocess) for path in paths]
    recording = KeptEvents()
    told: list[str] = []  # devices, once they are known

    def on_event(event: Event) -> None:
        recording(event)
        if not console.is_terminal and told and (text := event_text(event, told)):
            console.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)

    with ExitStack() as stack:
        console.print(f"starting {escape(source.name)}:", style="dim", highlight=False)
        with tell_phases(lambda text: console.print(escape(text), style="dim", highlight=False)):
            pipe = stack.enter_context(
                Pipeline(source, stages=arguments.stages, policy=arguments.policy, log=arguments.log, on_event=on_event)
            )
        devices = [str(device) for device in pipe.devices]
        told += devices
        load = Load.parse(arguments.load or f"cpu@{devices[-1]}")
        injector = stack.enter_context(Injector(on_event=pipe.note_load))
        handle = injector.start(load, idle=True)

        def announce(phase: Phase) -> None:
            console.print(f"[bold]== {phase.name}[/] ({phase.seconds:.0f} s, policy {phase.policy})", highlight=False)

        script = phases(pipe.policy, scale=arguments.scale)
        with live_panel(pipe.view, console), draining() as asked:
            report = run_phases(pipe, inputs, handle, recording, script, on_phase=announce, stop=asked.is_set)
    console.print(render_demo(report, devices))
    if arguments.log is not None:
        console.print(f"odin replay {arguments.log} plays it again", style="dim", highlight=False)
    console.print(f"next: {what_next(arguments, devices)}", markup=False, highlight=False, soft_wrap=True)
    return 0


def what_next(arguments: argparse.Namespace, devices: Sequence[str], program: str = sys.argv[0]) -> str:
    """A command to try after the demonstration, which can be copied, with the program as it was called."""
    if Path(program).name != "odin" or shutil.which("odin") == os.path.abspath(program):
        program = "odin"
    words = [program, "run", arguments.model, "--input", *arguments.input, "--stages", ",".join(devices)]
    return shlex.join([*words, "--repeat", "50", "--output", "results.jsonl", "--live"])


def _check_usage(arguments: argparse.Namespace) -> list[Path]:
    """Return the image files; ``ValueError`` if the demonstration cannot be given as asked."""
    if not 0 < arguments.scale < math.inf:
        raise ValueError(f"--scale {arguments.scale:g} leaves no time, or no end; give a number above 0")
    check_model_name(arguments.model)
    check_options(stages=arguments.stages, policy=arguments.policy, log=arguments.log)
    if arguments.load is not None:
        check_local_device(Load.parse(arguments.load).on)
    return find_images(arguments.input)
