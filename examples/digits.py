"""Is a pipeline still right while its cores are disturbed and its layers move?

Trains a small residual network on scikit-learn's digits, cuts it into two stages on two cores, and serves the test
images three times: undisturbed; while programs come and go on the stages' cores; and with layers moving at every tenth
request. Each time every image's logits must be, bit for bit, those of the model in one piece. ``python
examples/digits.py``
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import odin
from odin import Device
from odin.stages.device import usable_cores
from odin_lab.digits import DigitsNet
from odin_lab.inject import Injector, Scenario, play

NEEDED_ACCURACY = 0.97
MOVE_EVERY = 10
"""Requests from one forced migration to the next."""


# -- the data ---------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Images ``(count, 1, 8, 8)``, float32 from 0 to 1, and their labels ``(count,)``, 0 to 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_images() -> Digits:
    """The 1,797 handwritten digits that come with scikit-learn; always the same quarter is for testing."""
    digits = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    return Digits(_images(train_images), torch.tensor(train_labels), _images(test_images), torch.tensor(test_labels))


def _images(grey: object) -> Tensor:
    return torch.tensor(grey, dtype=torch.float32).unsqueeze(1) / 16


# -- the model --------------------------------------------------------------------------------------------------------


def train(digits: Digits, *, width: int, epochs: int, seed: int) -> DigitsNet:
    """Train a network of six blocks, in eval mode; the same seed gives the same weights on the same machine."""
    torch.manual_seed(seed)
    model, batch = DigitsNet(channels=width, depth=2), 64
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    batches = -(-len(digits.train_images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.train_images)).split(batch):
            optimizer.zero_grad()
            logits = model(digits.train_images[chosen])
            loss = F.cross_entropy(logits, digits.train_labels[chosen], label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


# -- serving ----------------------------------------------------------------------------------------------------------


def serve(pipe: odin.Pipeline, images: Sequence[Tensor], before: Callable[[int], None]) -> list[Tensor | None]:
    """Stream images through the pipeline, one per request; their logits in order, ``None`` for a failed request.

    ``before`` is called with each image's number before it is submitted.
    """
    futures = []
    for number, image in enumerate(images):
        before(number)
        futures.append(pipe.submit(image))  # waits while the pipeline is full, so that it always is
    logits: list[Tensor | None] = []
    for future in futures:
        try:
            logits.append(future.result(60.0))
        except (odin.OdinError, TimeoutError):
            logits.append(None)
    return logits


def nothing(number: int) -> None:
    """Leave the pipeline alone."""


def moves(pipe: odin.Pipeline, *, seed: int) -> Callable[[int], None]:
    """Move to a random plan before every tenth image; a stage may be left without layers."""
    generator, layers = random.Random(seed), pipe.plan.layer_count

    def move(number: int) -> None:
        if number % MOVE_EVERY == MOVE_EVERY - 1:
            first = generator.randint(0, layers)
            pipe.migrate(odin.Plan((first, layers - first)))

    return move


@contextmanager
def interference(stages: Sequence[str], *, seed: int) -> Iterator[list[str]]:
    """Have programs come and go on these devices at random times; yields what has come so far.

    Every half second on average one takes half, all that it can get, or twice that of a core, for 0.4 s on average.
    """
    scenario = Scenario.random(
        [Device.parse(stage) for stage in stages],
        ["cpu-50", "cpu-100", "cpu-100x2"],
        period_s=0.5,
        duration_s=0.4,
        length_s=300.0,
        seed=seed,
        spacing="random",
    )
    over, seen = threading.Event(), list[str]()
    with Injector() as injector, ThreadPoolExecutor(1) as player:
        playing = player.submit(
            play, scenario, injector, stop=over, on_begin=lambda step, _: seen.append(f"{step.name} on {step.load.on}")
        )
        try:
            yield seen
        finally:
            over.set()
            playing.result()


# -- judging ----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of one condition; ``different`` counts images whose logits are not the same bits, lost ones aside."""

    condition: str
    images: int
    right: int
    different: int
    plan_changes: int
    lost: int


def judge(
    condition: str,
    served: Sequence[Tensor | None],
    expected: Sequence[Tensor],
    labels: Tensor,
    *,
    plan_changes: int = 0,
) -> Outcome:
    """Compare served logits with those of the unsplit model and with the labels, image by image."""
    right = different = lost = 0
    for logits, wanted, label in zip(served, expected, labels.tolist(), strict=True):
        if logits is None:
            lost += 1
        else:
            # As integers, so that nothing counts as equal but the same bits.
            different += not torch.equal(logits.view(torch.int32), wanted.view(torch.int32))
            right += int(logits.argmax()) == label
    return Outcome(condition, len(expected), right, different, plan_changes, lost)


def render(outcomes: Sequence[Outcome]) -> Table:
    """One row per condition."""
    table = Table("condition", title="The same answers, whatever happens")
    for heading in ("images", "accuracy", "logits differ", "plan changes", "lost"):
        table.add_column(heading, justify="right")
    for condition, images, right, *counts in outcomes:
        table.add_row(condition, f"{images:,}", f"{right / images:.2%}", *map(str, counts))
    return table


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main() -> int:
    """Train, serve and compare; returns 0 if every image got the bits that it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=positive, default=16, help="channels of the first block (default %(default)s)")
    parser.add_argument(
        "--epochs", type=positive, default=8, help="passes over the training images (default %(default)s)"
    )
    parser.add_argument("--passes", type=positive, default=3, help="passes over the test images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default %(default)s)")
    arguments = parser.parse_args()
    console, stages = Console(), [f"cpu:{core}" for core in usable_cores()[:2]]
    if len(stages) < 2:
        console.print("Two stages need two cores; this machine lets us use one.")
        return 2
    # A stage computes with one thread. So must the model that it is compared with: how a sum is shared between
    # threads changes its last bits. Training gets repeatable by it, too.
    torch.set_num_threads(1)

    digits, begin_s = load_images(), time.perf_counter()
    model = train(digits, width=arguments.width, epochs=arguments.epochs, seed=arguments.seed)
    console.print(f"Trained on {len(digits.train_labels):,} images in {time.perf_counter() - begin_s:.1f} s.")

    chain = odin.build_chain(model, (digits.test_images[:1],), name="digits")
    images = list(digits.test_images.split(1)) * arguments.passes
    labels = digits.test_labels.repeat(arguments.passes)
    expected = [chain(image) for image in images]
    outcomes = [judge("in one piece", expected, expected, labels)]

    with odin.Pipeline(chain, stages=stages) as pipe:
        console.print(f"{len(chain.layers)} layers in two stages on {' and '.join(stages)}: {pipe.plan}.")

        def run(condition: str, before: Callable[[int], None]) -> None:
            epoch = pipe.view().epoch
            served = serve(pipe, images, before)
            changes = pipe.view().epoch - epoch
            outcomes.append(judge(condition, served, expected, labels, plan_changes=changes))

        run("undisturbed", nothing)
        with interference(stages, seed=arguments.seed) as programs:
            run("other programs", nothing)
        run("moves every 10th", moves(pipe, seed=arguments.seed))
    console.print(f"Meanwhile {len(programs)} other programs came and went.")
    console.print(render(outcomes))
    same = all(outcome.different == outcome.lost == 0 for outcome in outcomes)
    accurate = outcomes[0].right >= NEEDED_ACCURACY * len(labels)
    return 0 if same and accurate else 1


if __name__ == "__main__":
    sys.exit(main())
