"""What the network costs: a pipeline asked in its own process, by REST and by gRPC; and other servers beside it.

Two parts, each in interleaved rounds on the same two cores, which the clients share:

- *the network*: an ``odin serve`` and a pipeline of the same model are open all the time; who has no turn is idle.
- *rivals*: each is started for its turn and ended after it, so that nobody's idle processes are in another's way.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from msgspec import Struct

from benchmarks.common import (
    Environment,
    StealMeter,
    add_arguments,
    interleave,
    mib,
    milliseconds,
    paired_ratio,
    pinned,
    report,
    summarize,
    with_quartiles,
    write_result,
)
from benchmarks.serving_servers import RIVALS, Measured, PipeProcess, Served, odin_server, rival_server
from benchmarks.spells import default_load
from odin.stages.device import usable_cores
from odin_lab.inject.injector import Injector
from odin_lab.inject.load import Load
from odin_lab.load.client import Input

__all__ = ["main"]

_MODULES = {"ray-serve": "ray.serve", "mlserver": "mlserver", "litserve": "litserve"}
_WARM_S = 1.0


class Turn(Struct, frozen=True):
    """One turn.

    Attributes
    ----------
    by_clients
        What came of so many clients.
    memory_nbytes
        Proportional set size of all that serves, after it.
    first_answer_s
        Seconds from its start to its first answer.
    steal
        Part of the cores' time that the host of a virtual machine took.
    """

    by_clients: dict[int, Measured]
    memory_nbytes: int
    first_answer_s: float
    steal: float


Measure = Callable[[int, float], Measured]


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=5)
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16], metavar="N", help="default: 1 16")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each number of clients (default %(default)g)")
    parser.add_argument("--size", type=int, default=224, help="of images (default %(default)s)")
    parser.add_argument("--part", choices=("both", "network", "rivals"), default="both")
    parser.add_argument(
        "--rivals", nargs="*", default=list(RIVALS), metavar="NAME", help=f"default: those installed of {RIVALS}"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="Python that has a rival, such as litserve=/opt/litserve/bin/python; default: this one",
    )
    parser.add_argument("--busy", action="store_true", help="also with a load on the second core (stress-ng)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.models = 1, 1.0, arguments.models[-1:]
    environment = Environment.collect(("torch", "ray", "numpy", "uvicorn", "grpcio", "mlserver", "litserve"))
    cores = usable_cores()[:2]
    pythons = dict(text.partition("=")[::2] for text in arguments.python)
    rivals = [name for name in arguments.rivals if _is_installed(name, pythons.get(name))]
    loads: dict[str, Load | None] = {"alone": None}
    if arguments.busy:
        loads["second core busy"] = Load.parse(default_load(cores[-1]))
    results: dict[str, dict[str, dict[str, list[Turn]]]] = {}
    with pinned(cores):
        for model in arguments.models:
            for when, load in loads.items():
                found: dict[str, dict[str, list[Turn]]] = {}
                if arguments.part != "rivals":
                    found["network"] = measure_network(model, cores, load, arguments)
                    show_network(model, when, found["network"], environment)
                if arguments.part != "network":
                    found["rivals"] = measure_rivals(model, cores, load, rivals, pythons, arguments)
                    show_rivals(model, when, found["rivals"], environment)
                results[f"{model}, {when}"] = found
                parameters = {**vars(arguments), "measured_rivals": rivals}
                write_result(arguments.output, environment=environment, parameters=parameters, results=results)
    return 0


def measure_network(
    model: str, cores: Sequence[int], load: Load | None, arguments: argparse.Namespace
) -> dict[str, list[Turn]]:
    """In-process, REST and gRPC in turns."""
    inputs = _inputs(arguments)
    with ExitStack() as stack:
        pipe = stack.enter_context(PipeProcess(model, cores))
        served = stack.enter_context(odin_server(model, cores, inputs))

        def inside(clients: int, seconds: float) -> Measured:
            return pipe.measure(clients=clients, seconds=seconds)

        candidates = {
            "in-process": partial(_turn, inside, pipe.memory_nbytes, pipe.first_answer_s, load, arguments),
            **{name: partial(_ask, served, name, inputs, load, arguments) for name in served.ways},
        }
        return interleave(candidates, rounds=arguments.rounds, warmup=0 if arguments.quick else 1, seed=arguments.seed)


def measure_rivals(
    model: str,
    cores: Sequence[int],
    load: Load | None,
    rivals: Sequence[str],
    pythons: Mapping[str, str],
    arguments: argparse.Namespace,
) -> dict[str, list[Turn]]:
    """Each started for its turn."""
    inputs = _inputs(arguments)

    def ours(way: str) -> Turn:
        with odin_server(model, cores, inputs) as served:
            return _ask(served, way, inputs, load, arguments)

    def theirs(name: str, way: str) -> Turn:
        python = pythons.get(name, sys.executable)
        with rival_server(name, model, cores, inputs, python=python) as served:
            return _ask(served, way, inputs, load, arguments)

    rivals = [name for name in rivals if _starts(name, model, cores, inputs, pythons)]
    candidates: dict[str, Callable[[], Turn]] = {f"odin {way}": partial(ours, way) for way in ("rest", "grpc")}
    for name in rivals:
        for way in ("rest", "grpc") if name == "mlserver" else ("rest",):
            candidates[f"{name} {way}"] = partial(theirs, name, way)
    return interleave(candidates, rounds=arguments.rounds, warmup=0, seed=arguments.seed)


def _ask(served: Served, way: str, inputs: Sequence[Input], load: Load | None, arguments: argparse.Namespace) -> Turn:
    def outside(clients: int, seconds: float) -> Measured:
        return served.ways[way].measure(inputs, clients=clients, seconds=seconds)

    return _turn(outside, served.memory_nbytes, served.first_answer_s, load, arguments)


def _turn(
    measure: Measure,
    memory_nbytes: Callable[[], int],
    first_answer_s: float,
    load: Load | None,
    arguments: argparse.Namespace,
) -> Turn:
    measure(max(arguments.clients), min(_WARM_S, arguments.seconds))
    steal = StealMeter()
    with _under(load):
        found = {clients: measure(clients, arguments.seconds) for clients in arguments.clients}
    return Turn(found, memory_nbytes(), first_answer_s, steal.share())


@contextmanager
def _under(load: Load | None) -> Iterator[None]:
    if load is None:
        yield
        return
    with Injector() as injector:
        handle = injector.start(load)
        try:
            yield
        finally:
            handle.stop()


def _inputs(arguments: argparse.Namespace) -> tuple[Input, ...]:
    return (Input("input", "FP32", (1, 3, arguments.size, arguments.size)),)


def _is_installed(name: str, python: str | None) -> bool:
    """Whether a rival can be imported; told if not."""
    if name not in _MODULES:
        raise SystemExit(f"--rivals {name}: there is {', '.join(_MODULES)}")
    module = _MODULES[name]
    if python is None:
        parent = importlib.util.find_spec(module.partition(".")[0])
        found = parent is not None and _imports(sys.executable, module)
    else:
        found = _imports(python, module)
    if not found:
        print(f"without {name}: {module} cannot be imported; say --python {name}=FILE", file=sys.stderr)
    return found


def _starts(name: str, model: str, cores: Sequence[int], inputs: Sequence[Input], pythons: Mapping[str, str]) -> bool:
    """Whether a rival answers; told if not, as one that does not must not cost the others' figures."""
    try:
        with rival_server(name, model, cores, inputs, python=pythons.get(name, sys.executable)):
            return True
    except RuntimeError as error:
        print(f"without {error}", file=sys.stderr)
        return False


def _imports(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def show_network(model: str, when: str, turns: Mapping[str, Sequence[Turn]], environment: Environment) -> None:
    """Each way beside in-process."""
    rows = []
    for clients in next(iter(turns.values()))[0].by_clients:
        base = [turn.by_clients[clients] for turn in turns["in-process"]]
        for name, own in turns.items():
            found = [turn.by_clients[clients] for turn in own]
            rate = paired_ratio([one.throughput_hz for one in found], [one.throughput_hz for one in base])
            p50 = paired_ratio([one.p50_s for one in found], [one.p50_s for one in base])
            rows.append(
                [
                    f"{name}, {clients} client{'' if clients == 1 else 's'}",
                    with_quartiles(summarize([one.throughput_hz for one in found]), lambda value: f"{value:.2f}"),
                    with_quartiles(rate, lambda value: f"{value:.3f}"),
                    with_quartiles(summarize([one.p50_s for one in found]), milliseconds),
                    with_quartiles(p50, lambda value: f"{value:.3f}"),
                    milliseconds(summarize([one.p99_s for one in found]).median),
                    str(sum(one.failed for one in found)),
                ]
            )
    report(
        f"{model}, {when}: the network",
        ["", "images/s", "of in-process", "p50 ms", "of in-process", "p99 ms", "failed"],
        rows,
        environment,
    )


def show_rivals(model: str, when: str, turns: Mapping[str, Sequence[Turn]], environment: Environment) -> None:
    """Each server by itself."""
    rows = []
    for name, own in turns.items():
        for clients in own[0].by_clients:
            found = [turn.by_clients[clients] for turn in own]
            rows.append(
                [
                    f"{name}, {clients} client{'' if clients == 1 else 's'}",
                    with_quartiles(summarize([one.throughput_hz for one in found]), lambda value: f"{value:.2f}"),
                    with_quartiles(summarize([one.p50_s for one in found]), milliseconds),
                    milliseconds(summarize([one.p99_s for one in found]).median),
                    str(sum(one.failed for one in found)),
                    mib(summarize([float(turn.memory_nbytes) for turn in own]).median),
                    f"{summarize([turn.first_answer_s for turn in own]).median:.1f}",
                    f"{max(turn.steal for turn in own):.0%}",
                ]
            )
    columns = ["", "images/s", "p50 ms", "p99 ms", "failed", "MiB", "s to first answer", "most steal"]
    report(f"{model}, {when}: servers", columns, rows, environment)


if __name__ == "__main__":
    sys.exit(main())
