"""Computing less: accuracy against speed-up on real images, and deadlines kept at 2x interference within a budget.

Trains a slimmable residual network on scikit-learn's digits (minutes), puts early exits into it, narrows it, and
measures each form on images that nothing was trained by. Then requests with a deadline arrive at random at a share of
the full model's capacity, undisturbed and with a busy program on every core. They are answered by the full model alone
(the relay, which can move layers but has nowhere to move them), by it with those refused that would be late, and by a
family of it and its reduced forms, with an accuracy budget. All take turns, in short blocks; and the simulator replays
such traces with the profiles that were measured here::

    python -m benchmarks.reduction --stages cpu:0,cpu:1 --output reduction.json
    python -m benchmarks.reduction --quick

Nothing else should run on the cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

import odin
from benchmarks.common import (
    Environment,
    add_arguments,
    closed_loop,
    report,
    write_result,
)
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
from odin.family.facts import Facts
from odin.family.policies import make_variant_policy
from odin.models.labelled import Labelled
from odin.reduction.manifest import FILE, Form, Manifest, read_manifest
from odin.reduction.programs import save_forms
from odin.reduction.reduced import reduce_model
from odin.reduction.slimmable import train_slimmable
from odin.stages.device import parse_devices
from odin_lab.digits import DigitsNet, digits, shifted
from odin_lab.inject import Injector
from odin_lab.simulator.tenants import Outsider
from odin_lab.simulator.variants import WantClass, mixed_trace, run_family

NARROWED = (0.75, 0.5)
ALL, REFUSING, REDUCING = "full model, all taken", "full model, late ones refused", "full model, then reduced forms"
CONTENDERS = (ALL, REFUSING, REDUCING)
_MOST_FORMS = 2
"""So many of the reduced forms within the budget are served, the fastest."""
_SIMULATED_REQUESTS = 3000


class Live:
    """The full model alone, and with its forms, on the same devices."""

    def __init__(self, forms: Path, images: Labelled, arguments: argparse.Namespace, injector: Injector) -> None:
        self.images, self.injector, self.arguments = images, injector, arguments
        self.devices = parse_devices(arguments.stages)
        stages = [str(device) for device in self.devices]
        whole, *reduced = odin.Variant("digits", forms=forms, layers="relay").with_forms()
        self.family = odin.Family([whole, *reduced[-_MOST_FORMS:]], stages=stages)
        try:
            self.taking = odin.Family([whole], stages=stages, policy="best")
        except BaseException:
            self.family.close(drain=False)
            raise
        pipeline, inputs = self.family.pipeline("digits"), images.inputs[:1]
        assert pipeline is not None
        loops = [
            closed_loop(lambda index: pipeline.submit(inputs), count=200, in_flight=4, warmup=40) for _ in range(3)
        ]
        self.capacity_hz = max(loop.throughput_hz for loop in loops)
        self.alone_s = self.family.facts[0].latency_s()

    def close(self) -> None:
        """End both."""
        self.family.close()
        self.taking.close()

    def block(self, contender: str, loaded: bool, seed: int) -> Block:
        """Serve a short trace."""
        arguments, warm = self.arguments, self.arguments.requests // 4
        budget = arguments.budget if contender == REDUCING else 0.0
        rate_hz = arguments.rate * self.capacity_hz
        want = WantClass(0.0, arguments.deadline * self.alone_s, 1.0, budget)
        seconds = 2 * (warm + arguments.requests) / rate_hz
        trace = mixed_trace([want], rate_hz=rate_hz, seconds=seconds, seed=seed)[: warm + arguments.requests]
        family = self.taking if contender == ALL else self.family
        with busy(self.injector, self.devices if loaded else ()):
            return serve(family, self.images, trace, warm=warm, seed=seed)


def live(serving: Live, *, blocks: int, seed: int) -> list[Kept]:
    """All contenders, in turns."""
    cells = {f"{contender} {loaded}": partial(serving.block, contender, loaded) for contender, loaded in _CELLS}
    found = in_turns(cells, blocks=blocks, seed=seed)
    busy_cores = {False: 0, True: len(serving.devices)}
    return [
        kept_of_blocks(contender, busy_cores[loaded], found[f"{contender} {loaded}"]) for contender, loaded in _CELLS
    ]


_CELLS = [(contender, loaded) for loaded, contender in product((False, True), CONTENDERS)]


def simulated(facts: Sequence[Facts], arguments: argparse.Namespace, *, devices: int) -> list[Kept]:
    """The same in simulated time, by what forms take on one core: five seeds."""
    full, *reduced = facts
    facts = [full, *reduced[-_MOST_FORMS:]]
    rate_hz = arguments.rate * devices / full.cost_s
    seconds = _SIMULATED_REQUESTS / rate_hz
    kept = []
    for contender, loaded in _CELLS:
        budget = arguments.budget if contender == REDUCING else 0.0
        want = WantClass(0.0, arguments.deadline * full.latency_s(), 1.0, budget)
        runs = [
            run_family(
                facts,
                make_variant_policy("best" if contender == ALL else "odin"),
                mixed_trace([want], rate_hz=rate_hz, seconds=seconds, seed=seed),
                devices=devices,
                outsiders=[Outsider(device) for device in range(devices)] if loaded else (),
                seed=seed,
            )
            for seed in range(arguments.seed, arguments.seed + 5)
        ]
        busy_cores = devices if loaded else 0
        kept.append(kept_of_runs(contender, busy_cores, runs))
    return kept


def make_forms(folder: Path, arguments: argparse.Namespace) -> Labelled:
    """Train and reduce, unless the folder has forms; returns the held-out images."""
    training, held_out = digits(size=arguments.size, seed=arguments.seed)
    if (folder / FILE).exists():
        return held_out
    with Console(stderr=True, highlight=False).status("training") as status:
        networks = train_slimmable(
            lambda width: DigitsNet(width, channels=arguments.channels, depth=arguments.depth),
            training,
            widths=arguments.widths,
            epochs=arguments.epochs,
            seed=arguments.seed,
            augment=shifted,
            tell=lambda epoch, loss: status.update(f"training: epoch {epoch} of {arguments.epochs}, loss {loss:.3f}"),
        )
        reduced = reduce_model(
            networks[1.0],
            training,
            held_out,
            exits=5,
            widths=NARROWED,
            trained_widths=networks,
            name="digits",
            seed=arguments.seed,
            tell=status.update,
        )
        example = held_out.inputs[:1]
        save_forms(
            reduced,
            folder,
            name="digits",
            budget=arguments.budget,
            example=example,
            rounds=arguments.rounds,
            tell=status.update,
        )
    for note in reduced.notes:
        print(note, file=sys.stderr)
    return held_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=50)
    parser.add_argument("--stages", default="cpu:0,cpu:1", help="devices of the pipelines (default %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images (default %(default)s)")
    parser.add_argument("--channels", type=int, default=16, help="of the first blocks (default %(default)s)")
    parser.add_argument("--depth", type=int, default=2, help="blocks of each resolution (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=25, help="of training (default %(default)s)")
    parser.add_argument(
        "--widths", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25], help="trained at once (default %(default)s)"
    )
    parser.add_argument("--budget", type=float, default=0.003, help="accuracy that may be lost (default %(default)s)")
    parser.add_argument("--rate", type=float, default=0.7, help="arrivals / capacity (default %(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=10.0, help="in times of a request alone (default %(default)s)"
    )
    parser.add_argument("--blocks", type=int, default=9, help="of each contender and load (default %(default)s)")
    parser.add_argument("--requests", type=int, default=400, help="that count in each block (default %(default)s)")
    parser.add_argument("--forms", type=Path, metavar="FOLDER", help="keep the forms there, and take those that are")
    parser.add_argument("--no-live", action="store_true", help="only accuracy, speed-up and simulated deadlines")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.size, arguments.channels, arguments.depth, arguments.epochs = 8, 16, 1, 8
        arguments.rounds, arguments.blocks, arguments.requests = 5, 2, 100
    torch.set_num_threads(1)
    environment = Environment.collect()
    with TemporaryDirectory(prefix="odin-forms-") as temporary:
        folder = arguments.forms or Path(temporary)
        held_out = make_forms(folder, arguments)
        manifest = read_manifest(folder)
        _report_forms(manifest, environment)
        kept: list[Kept] = []
        facts: tuple[Facts, ...] = ()
        if not arguments.no_live:
            with Injector() as injector:
                serving = Live(folder, held_out, arguments, injector)
                try:
                    facts = serving.family.facts
                    kept = live(serving, blocks=arguments.blocks, seed=arguments.seed)
                finally:
                    serving.close()
        kept += simulated(facts_of("digits", folder), arguments, devices=len(parse_devices(arguments.stages)))
        title = (
            f"answered in time at {arguments.rate:g} of the full model's capacity, deadline {arguments.deadline:g} x "
            f"alone, budget {arguments.budget:.2%}"
        )
        report_kept(title, kept, environment)
    write_result(
        arguments.output,
        environment=environment,
        parameters={name: value for name, value in vars(arguments).items() if name != "output"},
        results={"forms": manifest.forms, "facts": facts, "kept": kept},
    )
    return 0


def _report_forms(manifest: Manifest, environment: Environment) -> None:
    full = manifest.forms[0]

    def cells(form: Form) -> tuple[str, ...]:
        one = form.judgement
        return (
            form.name,
            str(form.layers),
            f"{form.flops_share:.0%}",
            f"{form.seconds * 1e3:.3g}",
            f"{full.seconds / form.seconds:.2f}",
            f"{one.accuracy.value * 100:.2f} ({one.accuracy.low * 100:.1f}..{one.accuracy.high * 100:.1f})",
            f"{one.lost.value * 100:.2f} ({one.lost.low * 100:.1f}..{one.lost.high * 100:.1f})",
            f"{one.agreement * 100:.1f}",
            f"{one.calibration_error * 100:.1f}",
        )

    report(
        f"forms of a network trained on digits, {full.judgement.images} held-out images, one core",
        ("form", "layers", "operations", "ms", "speed-up", "accuracy %", "lost %", "agrees %", "confidence off by %"),
        [cells(form) for form in manifest.forms],
        environment,
    )


if __name__ == "__main__":
    sys.exit(main())
