"""Where the time of ``odin serve`` goes until its first answer, beside ``odin run``'s until its first result.

Each start is a fresh process, in turns: ``odin run`` of one image, ``odin serve`` with a Ray of its own, and
``odin serve --address`` beside a Ray that runs already; of this tree, and with ``--other`` of another checkout. Of
``odin serve`` the moments are those at which it says so: ports open, phases of loading, ready; then one request.
``python -m benchmarks.serving_startup``
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Environment, add_arguments, interleave, report, summarize, with_quartiles, write_result
from benchmarks.startup import Tree
from odin_lab.load.server_process import end_process

PORTS, READY, FIRST = "ports open", "ready", "first answer"
_PHASE = re.compile(r"^ *([\d.]+) s  (.+)$")

Moments = dict[str, float]
"""Seconds from the start of the process to each moment, and, as ``"  "`` and its name, how long each phase took."""


def run(tree: Tree, model: str, image: Path) -> Moments:
    """``odin run`` until its first line of output."""
    words = ["-m", "odin", "run", model, "--input", str(image)]
    begin_s, _, first_s, _ = tree.run(words, cache=_cache(image))
    assert first_s is not None
    return {FIRST: first_s - begin_s}


def serve(tree: Tree, model: str, image: Path, address: str | None) -> Moments:
    """``odin serve`` until it has answered for the image."""
    words = [model, "--name", "net", "--http-port", "0", "--grpc-port", "0"]
    words += [] if address is None else ["--address", address]
    environment = {**os.environ, "PYTHONPATH": str(tree.folder), "ODIN_CACHE_DIR": str(_cache(image))}
    begin_s, moments, url, said = time.monotonic(), Moments(), "", ""
    process = subprocess.Popen(
        [tree.python, "-m", "odin", "serve", *words],
        cwd=tree.folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said += line
            if found := _PHASE.match(line):
                moments[f"  {found[2].replace(model, 'model')}"] = float(found[1])
            elif line.startswith("REST"):
                moments[PORTS], url = time.monotonic() - begin_s, line.split()[1]
            elif line.startswith("ready"):
                moments[READY] = time.monotonic() - begin_s
                break
        else:
            raise RuntimeError(f"odin serve ended: {said}")
        request = urllib.request.Request(
            f"{url}/v2/models/net/infer", image.read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        return {**moments, FIRST: time.monotonic() - begin_s}
    finally:
        end_process(process)
        process.stderr.close()


def _cache(image: Path) -> Path:
    """Layers' times of this machine, measured in the round before those that count; beside the image."""
    return image.parent / "cache"


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray that runs already; its address."""
    words = [sys.executable, "-m", "odin", "cluster"]
    name = ["--state", "serving-startup"]
    told = subprocess.run(
        [*words, "up", "--port", "0", "--node-ip-address", "127.0.0.1", *name],
        check=True,
        capture_output=True,
        text=True,
    )
    try:
        found = re.search(r"127\.0\.0\.1:\d+", told.stdout + told.stderr)
        assert found is not None, told
        yield found[0]
    finally:
        subprocess.run([*words, "down", *name], check=True, capture_output=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--model", default="resnet50", help="default: %(default)s")
    parser.add_argument("--other", type=Path, metavar="FOLDER", help="another checkout, to compare this one with")
    arguments = parser.parse_args(argv)
    rounds = 1 if arguments.quick else arguments.rounds
    environment = Environment.collect(("torch", "ray"))
    trees = {"": Tree.at(Path(__file__).parents[1])}
    if arguments.other is not None:
        trees[", other tree"] = Tree.at(arguments.other)
    with tempfile.TemporaryDirectory() as scratch, cluster() as address:
        image = Path(scratch) / "image.png"
        pixels = np.random.default_rng(arguments.seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        candidates: dict[str, Callable[[], Moments]] = {}
        for name, tree in trees.items():
            candidates |= {
                f"odin run{name}": partial(run, tree, arguments.model, image),
                f"odin serve{name}": partial(serve, tree, arguments.model, image, None),
                f"odin serve --address{name}": partial(serve, tree, arguments.model, image, address),
            }
        measured = interleave(candidates, rounds=rounds, warmup=1, seed=arguments.seed)
    moments = dict.fromkeys(moment for starts in measured.values() for start in starts for moment in start)
    figures = {
        name: {moment: summarize([start[moment] for start in starts if moment in start]) for moment in starts[0]}
        for name, starts in measured.items()
    }
    seconds = "{:.2f}".format
    report(
        f"{arguments.model}: seconds from the start, phases: their own; median of {rounds} rounds (quartiles)",
        ["", *figures],
        [
            [moment, *(with_quartiles(one[moment], seconds) if moment in one else "" for one in figures.values())]
            for moment in sorted(moments, key=lambda moment: (moment in (READY, FIRST), moment == FIRST))
        ],
        environment,
    )
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
