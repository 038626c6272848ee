"""From the shell to the first result, phase by phase, and from there to the end: this tree beside another checkout.

Each start is ``odin run`` of one image in a fresh process, the trees taking turns, with the layers' times on disk
(warm) and without (cold). Phases overlap where a tree starts things beside each other.
``python -m benchmarks.startup --other ../before``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.common import (
    Environment,
    Figure,
    add_arguments,
    interleave,
    paired_ratio,
    report,
    summarize,
    with_quartiles,
    write_result,
)

HELP, WARM, COLD = "help", "warm", "cold"

CHILD = """
import functools, importlib, json, sys, time

spans, (file, *words) = [], sys.argv[1:]

def note(name, begin_s):
    spans.append((name, begin_s, time.monotonic()))

def follow(home, path, name):
    try:
        owner = importlib.import_module(home)
        *outer, attribute = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        call = getattr(owner, attribute)
    except (ImportError, AttributeError):
        return  # this tree has no such place

    @functools.wraps(call)
    def timed(*args, **kwargs):
        begin_s = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            note(name, begin_s)

    setattr(owner, attribute, timed)

begin_s = time.monotonic()
try:
    from odin.cli.main import main
    import odin.cli.run
except ImportError:  # a tree from before commands had a folder of their own
    from odin.cli import main
    import odin.commands.run
import odin.pipeline
note("imports", begin_s)
for home, path, name in json.loads(PLACES):
    follow(home, path, name)
status = main(words)
note("command returned", time.monotonic())
with open(file, "w") as output:
    json.dump(spans, output)
sys.exit(status)
"""

PLACES = (
    ("odin.cli.run", "load_source", "model"),
    ("odin.cli.run", "build_chain", "chain"),
    ("odin.commands.run", "load_source", "model"),
    ("odin.commands.run", "build_chain", "chain"),
    ("odin.deployment", "Deployment.connect", "channels"),
    ("odin.models.chains", "build_chain", "chain"),
    ("odin.pipeline", "RayRuntime", "Ray"),
    ("odin.cluster.startup", "RayRuntime", "Ray"),
    ("odin.pipeline", "place", "placement"),
    ("odin.cluster.startup", "place", "placement"),
    ("odin.cluster.startup", "Startup.join", "waiting for Ray"),
    ("odin.pipeline", "Deployment", "stages"),
    ("odin.cluster.deployment", "Deployment.open", "stages"),
    ("odin.pipeline", "measure_baselines", "profile"),
    ("odin.control.assembly", "measure_baselines", "profile"),
    ("odin.cluster.deployment", "Deployment.connect", "channels"),
)
"""Functions that a phase consists of, in whichever of the trees has them: module, path in it, phase."""

PHASES = (*dict.fromkeys(("imports", *(name for _, _, name in PLACES))),)
TOTALS = ("until the first result", "teardown", "whole command", "CPU seconds of the command")


class Start(NamedTuple):
    """One start: seconds of each phase, and what they came to."""

    phase_s: dict[str, float]
    total_s: dict[str, float]


class Row(NamedTuple):
    """A phase or a total: medians in both trees, and this tree's over the other's within each round."""

    case: str
    what: str
    this_s: Figure
    other_s: Figure | None
    ratio: Figure | None


class Tree(NamedTuple):
    """A checkout and how to run it."""

    folder: Path
    python: Path

    @classmethod
    def at(cls, folder: Path) -> Tree:
        """The checkout in ``folder``, run by its own environment if it has one, else by this one."""
        folder = folder.resolve()
        if not (folder / "odin" / "__init__.py").is_file():
            raise ValueError(f"{folder} is no checkout of ODIN: name the folder that holds odin/, stages/, ...")
        own = folder / ".venv" / "bin" / "python"
        return cls(folder, own if own.exists() else Path(sys.executable))

    def run(self, words: Sequence[str], *, cache: Path) -> tuple[float, float, float | None, float]:
        """Run Python on ``words``; when it began, ended, when its first line came, and CPU seconds.

        Raises
        ------
        RuntimeError
            If it fails, with what it said.
        """
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "ODIN_CACHE_DIR": str(cache)}
        with tempfile.TemporaryFile("w+") as said:
            begin_s = time.monotonic()
            process = subprocess.Popen(
                [self.python, *words], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=said
            )
            assert process.stdout is not None
            first_s = time.monotonic() if process.stdout.readline() else None
            process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            end_s = time.monotonic()
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise RuntimeError(f"{self.folder}: {' '.join(words[-8:])} failed: {said.read()}")
        return begin_s, end_s, first_s, usage.ru_utime + usage.ru_stime


def start(tree: Tree, model: str, stages: str, image: Path, scratch: Path, *, warm: bool) -> Start:
    """Start once, serve one image, and end."""
    kept = scratch / f"warm-{tree.folder.name}-{abs(hash(tree.folder))}"
    cache = kept if warm else Path(tempfile.mkdtemp(dir=scratch))
    file = scratch / "spans.json"
    words = [str(file), "run", model, "--input", str(image), "--stages", stages]
    code = CHILD.replace("PLACES", repr(json.dumps(PLACES)))
    begin_s, end_s, first_s, cpu_s = tree.run(["-c", code, *words], cache=cache)
    assert first_s is not None, "a command that succeeds has written its result"
    phase_s: dict[str, float] = {}
    for name, from_s, to_s in json.loads(file.read_text()):
        phase_s[name] = phase_s.get(name, 0.0) + to_s - from_s
    totals = (first_s - begin_s, end_s - first_s, end_s - begin_s, cpu_s)
    return Start(phase_s, dict(zip(TOTALS, totals, strict=True)))


def say_help(tree: Tree, scratch: Path) -> Start:
    """``odin --help``, until it has ended."""
    begin_s, end_s, _, cpu_s = tree.run(["-m", "odin.cli", "--help"], cache=scratch)
    return Start({}, {TOTALS[2]: end_s - begin_s, TOTALS[3]: cpu_s})


def compare(measured: dict[str, list[Start]], case: str) -> Iterable[Row]:
    """Rows of one case, from the starts of each tree under ``CASE this`` and ``CASE other``."""
    this, other = measured[f"{case} this"], measured.get(f"{case} other", [])
    for kind, names in (("phase_s", PHASES), ("total_s", TOTALS)):
        for name in names:
            of_this = [getattr(one, kind)[name] for one in this if name in getattr(one, kind)]
            of_other = [getattr(one, kind)[name] for one in other if name in getattr(one, kind)]
            if of_this:
                paired = len(of_this) == len(of_other)
                yield Row(
                    case,
                    name,
                    summarize(of_this),
                    summarize(of_other) if of_other else None,
                    paired_ratio(of_this, of_other) if paired else None,
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, rounds=7)
    parser.add_argument("--other", type=Path, metavar="FOLDER", help="another checkout, to compare this one with")
    parser.add_argument("--model", default="resnet50", help="default: %(default)s")
    parser.add_argument("--stages", default="auto", help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=(HELP, WARM, COLD), default=[HELP, WARM, COLD])
    arguments = parser.parse_args(argv)
    rounds = 1 if arguments.quick else arguments.rounds
    environment = Environment.collect(("torch", "ray"))
    trees = {"this": Tree.at(Path(__file__).parents[1])}
    if arguments.other is not None:
        trees["other"] = Tree.at(arguments.other)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        image = scratch / "image.png"
        pixels = np.random.default_rng(arguments.seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        candidates: dict[str, Callable[[], Start]] = {}
        for name, tree in trees.items():
            of_model = partial(start, tree, arguments.model, arguments.stages, image, scratch)
            calls = {
                HELP: partial(say_help, tree, scratch),
                WARM: partial(of_model, warm=True),
                COLD: partial(of_model, warm=False),
            }
            candidates |= {f"{case} {name}": calls[case] for case in arguments.cases}
        # The round before those that are kept fills the caches, the system's too.
        measured = interleave(candidates, rounds=rounds, warmup=1, seed=arguments.seed)
    rows = [row for case in arguments.cases for row in compare(measured, case)]
    seconds = "{:.2f}".format
    report(
        f"odin run {arguments.model}, {arguments.stages}: seconds, median of {rounds} interleaved rounds (quartiles)",
        ["case", "what", "this tree", "other tree", "this / other"],
        [
            (
                row.case,
                row.what,
                with_quartiles(row.this_s, seconds),
                "" if row.other_s is None else with_quartiles(row.other_s, seconds),
                "" if row.ratio is None else with_quartiles(row.ratio, seconds),
            )
            for row in rows
        ],
        environment,
    )
    parameters = {
        "rounds": rounds,
        "seed": arguments.seed,
        "model": arguments.model,
        "stages": arguments.stages,
        "trees": {name: str(tree.folder) for name, tree in trees.items()},
    }
    write_result(arguments.output, environment=environment, parameters=parameters, results=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
