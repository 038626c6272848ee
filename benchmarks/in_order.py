"""Remedies against interference, each alone and all in order: layers, then a cheaper variant, then less computation.

Three networks of different size are trained on scikit-learn's digits (minutes; ``--models FOLDER`` keeps them), and the
largest gets early exits. A third of the requests asks for the accuracy of each, the largest one's less the budget. The
same traces, undisturbed, with a busy program on one core and on all, are answered by

- the large network with fixed layers: no remedy;
- the relay alone: the large network, whose layers move;
- variants alone: all three networks with fixed layers;
- reduced computation alone: the large network and its reduced forms, with fixed layers;
- all in order: all networks and forms, whose layers move.

A request is kept that is answered in time by something as accurate as asked for, so all contenders are held to the same
accuracies. The simulator replays traces with times of one core; live, all take turns in short blocks::

    python -m benchmarks.in_order --models digits/ --output in_order.json --plot in_order.png
    python -m benchmarks.in_order --models digits/ --no-live
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    write_result,
)
from benchmarks.in_order_plot import plot_in_order
from benchmarks.in_time import (
    Block,
    Kept,
    busy,
    facts_of,
    in_turns,
    kept_of_blocks,
    kept_of_runs,
    report_kept,
    serve,
)
from odin.family.choice import OdinPolicy
from odin.family.facts import Choice, Facts, Predict, Refusal, Want
from odin.models.labelled import Labelled
from odin.reduction.manifest import FILE
from odin.reduction.programs import save_forms
from odin.reduction.reduced import reduce_model
from odin.reduction.slimmable import train_slimmable
from odin.stages.device import parse_devices
from odin_lab.digits import DigitsNet, digits, shifted
from odin_lab.inject import Injector
from odin_lab.simulator.tenants import Outsider
from odin_lab.simulator.variants import Asked, WantClass, mixed_trace, run_family

NETWORKS = {"large": (4, 2, 2), "middle": (2, 1, 0), "small": (1, 1, 0)}
"""Channels over those of the small one, depth, exits."""
_TIMED = 300
"""Runs of each form, of which the fastest counts: enough for a busy machine."""
_SIMULATED_REQUESTS, _SIMULATED_SEEDS = 3000, 3


class Contender(NamedTuple):
    """What may be done about requests that would be late."""

    name: str
    networks: Collection[str]
    reduced: bool
    fixed_layers: bool


CONTENDERS = (
    Contender("no remedy", {"large"}, reduced=False, fixed_layers=True),
    Contender("relay alone", {"large"}, reduced=False, fixed_layers=False),
    Contender("variants alone", NETWORKS, reduced=False, fixed_layers=True),
    Contender("reduced computation alone", {"large"}, reduced=True, fixed_layers=True),
    Contender("all in order", NETWORKS, reduced=True, fixed_layers=False),
)


class Only(OdinPolicy):
    """ODIN's choice, the most accurate first, among the variants of a contender."""

    def __init__(self) -> None:
        super().__init__(prefer="accuracy")
        self.networks: Collection[str] = ()

    def choose(
        self, facts: Sequence[Facts], loaded: Collection[int], want: Want, predict: Predict, tried: Collection[int] = ()
    ) -> Choice | Refusal:
        """As of :class:`OdinPolicy`."""
        others = {number for number, one in enumerate(facts) if _network(one.name) not in self.networks}
        return super().choose(facts, loaded, want, predict, others | set(tried))


def _network(variant: str) -> str:
    return variant.partition("-")[0]


def make_networks(folder: Path, arguments: argparse.Namespace) -> Labelled:
    """Train those that the folder does not have; returns the held-out images."""
    training, held_out = digits(size=arguments.size, seed=arguments.seed)
    with Console(stderr=True, highlight=False).status("training") as status:
        for name, (times, depth, exits) in NETWORKS.items():
            if (folder / name / FILE).exists():
                continue
            status.update(f"training the {name} network")
            channels = times * arguments.channels
            network = train_slimmable(
                lambda width, channels=channels, depth=depth: DigitsNet(width, channels=channels, depth=depth),  # type: ignore[misc]  # mypy and defaults of lambdas
                training,
                widths=(1.0,),
                epochs=arguments.epochs,
                seed=arguments.seed,
                augment=shifted,
            )[1.0]
            made = reduce_model(network, training, held_out, exits=exits, name="digits", seed=arguments.seed)
            example = held_out.inputs[:1]
            save_forms(made, folder / name, name="digits", budget=arguments.budget, example=example, rounds=_TIMED)
    return held_out


def classes_of(facts: Sequence[Facts], arguments: argparse.Namespace, *, alone_s: float) -> list[WantClass]:
    """A class of requests for each network's accuracy, all with one deadline."""
    own = [one for one in facts if not one.reduced]
    best = max(one.accuracy for one in own)
    floors = [one.accuracy - (arguments.budget if one.accuracy == best else 0.0) for one in own]
    return [WantClass(floor, arguments.deadline * alone_s, 1.0, arguments.budget) for floor in floors]


def simulated(folder: Path, arguments: argparse.Namespace, *, devices: int) -> list[Kept]:
    """In simulated time, by what each form takes on one core."""
    facts = [one for name in NETWORKS for one in facts_of(name, folder / name)]
    full = facts[0]
    classes = classes_of(facts, arguments, alone_s=full.latency_s())
    kept = []
    for beside in range(devices + 1):
        for contender in CONTENDERS:
            own = [
                one
                for one in facts
                if _network(one.name) in contender.networks and (contender.reduced or not one.reduced)
            ]
            runs = []
            for seed in range(arguments.seed, arguments.seed + _SIMULATED_SEEDS):
                rate_hz = arguments.rate * devices / full.cost_s
                trace = mixed_trace(classes, rate_hz=rate_hz, seconds=_SIMULATED_REQUESTS / rate_hz, seed=seed)
                runs.append(
                    run_family(
                        own,
                        OdinPolicy(prefer="accuracy"),
                        trace,
                        devices=devices,
                        outsiders=[Outsider(devices - 1 - number) for number in range(beside)],
                        seed=seed,
                        fixed_layers=contender.fixed_layers,
                    )
                )
            kept.append(kept_of_runs(contender.name, beside, runs))
    return kept


class Live:
    """All networks and forms, once with layers that move and once with fixed ones, on the same devices."""

    def __init__(
        self, stack: ExitStack, folder: Path, images: Labelled, arguments: argparse.Namespace, injector: Injector
    ) -> None:
        self.images, self.arguments, self.injector = images, arguments, injector
        self.devices = parse_devices(arguments.stages)
        self.policies = {False: Only(), True: Only()}
        self.families = {
            fixed: stack.enter_context(
                odin.Family(
                    [
                        odin.Variant(name, forms=folder / name, layers="static" if fixed else "relay")
                        for name in NETWORKS
                    ],
                    stages=[str(device) for device in self.devices],
                    policy=policy,
                )
            )
            for fixed, policy in self.policies.items()
        }
        self.facts = self.families[False].facts
        full = self.facts[0]
        self.classes = classes_of(self.facts, arguments, alone_s=full.latency_s())
        self.rate_hz = arguments.rate * len(self.devices) / full.latency_s()

    def block(self, contender: Contender, beside: int, seed: int) -> Block:
        """Serve a short trace."""
        warm, count = self.arguments.requests // 4, self.arguments.requests
        trace = mixed_trace(self.classes, rate_hz=self.rate_hz, seconds=3 * (warm + count) / self.rate_hz, seed=seed)[
            : warm + count
        ]
        if not contender.reduced:
            trace = [Asked(one.at_s, one.want._replace(budget=0.0)) for one in trace]
        self.policies[contender.fixed_layers].networks = contender.networks
        with busy(self.injector, self.devices[len(self.devices) - beside :]):
            return serve(self.families[contender.fixed_layers], self.images, trace, warm=warm, seed=seed)


def live(serving: Live, *, blocks: int, seed: int) -> list[Kept]:
    """All contenders and loads, in turns."""
    cells = {
        f"{contender.name}, {beside}": (contender, beside)
        for beside in range(len(serving.devices) + 1)
        for contender in CONTENDERS
    }
    serve_each = {name: partial(serving.block, *cell) for name, cell in cells.items()}
    found = in_turns(serve_each, blocks=blocks, seed=seed)
    return [kept_of_blocks(contender.name, beside, found[name]) for name, (contender, beside) in cells.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=7)
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="trained networks are kept there")
    parser.add_argument("--stages", default="cpu:0,cpu:1", help="devices of the pipelines (default %(default)s)")
    parser.add_argument("--size", type=int, default=16, help="height and width of the images (default %(default)s)")
    parser.add_argument("--channels", type=int, default=4, help="of the small network (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default %(default)s)")
    parser.add_argument("--budget", type=float, default=0.003, help="accuracy that may be lost (default %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.7, help="arrivals / what the large network can do (default %(default)s)"
    )
    parser.add_argument("--deadline", type=float, default=5.0, help="in times of the large one (default %(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="that count in each block (default %(default)s)")
    parser.add_argument("--no-live", action="store_true", help="only simulated")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, if matplotlib is installed")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.epochs, arguments.rounds, arguments.requests = 2, 1, 40
    torch.set_num_threads(1)
    environment = Environment.collect()
    images = make_networks(arguments.models, arguments)
    kept = simulated(arguments.models, arguments, devices=len(parse_devices(arguments.stages)))
    facts: Sequence[Facts] = ()
    if not arguments.no_live:
        with ExitStack() as stack:
            serving = Live(stack, arguments.models, images, arguments, stack.enter_context(Injector()))
            facts = serving.facts
            kept += live(serving, blocks=arguments.rounds, seed=arguments.seed)
    report_kept(_title(arguments), kept, environment)
    if arguments.plot is not None:
        print(plot_in_order(arguments.plot, kept))
    write_result(
        arguments.output,
        environment=environment,
        parameters={name: value for name, value in vars(arguments).items() if name not in ("output", "plot")},
        results={"facts": facts, "kept": kept},
    )
    return 0


def _title(arguments: argparse.Namespace) -> str:
    told = [one for name in NETWORKS for one in facts_of(name, arguments.models / name)]
    return (
        ", ".join(f"{one.name} {one.accuracy:.2%} {one.cost_s * 1e3:.2g} ms" for one in told)
        + f"; rate {arguments.rate:g} of the large one's capacity, deadline {arguments.deadline:g} x alone"
    )


if __name__ == "__main__":
    sys.exit(main())
