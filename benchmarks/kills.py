"""Stages are killed, or stopped for some seconds, under full load: is any answer lost, given twice, or changed?

A constant number of requests is under way, each with an input of its own, and every answer is compared bit by bit with
that of the unsplit chain. One turn::

    full strength | kill -9 of a random stage | first answer to a request sent after it | throughput of what remains
                  |<------------------------- window ------------------------------------------------------ ... -->|
                  ... | the replacement takes part: full strength | the rest of the window |

Every so many turns there is a window without a kill, which the throughput of the others is divided by. ``--signal
stop`` stops a stage (SIGSTOP) and lets it go on ``--for`` seconds later. ``--early`` does not wait for full strength:
stages are killed at random times, also while a replacement starts, but never the last one at work. (A stage whose
replacements die within two seconds, eight times, is given up; so choose a ``--window`` of some seconds.) At the end
nothing may be left behind: the same counts are made after a pipeline that is only opened and closed.
``python -m benchmarks.kills``
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psutil
import torch

import odin
from benchmarks.checked_load import CheckedLoad, Counts, SeenEvents, expected_outputs, small_model
from benchmarks.common import (
    Environment,
    Figure,
    add_arguments,
    mib,
    percentile,
    process_tree,
    release_memory,
    report,
    summarize,
    write_result,
)
from benchmarks.resources import Sample, fd_kinds, left_behind, sample, shared_entries
from benchmarks.stage_losses import Loss, StageTaker
from odin.stages.device import usable_cores

COLUMNS = ("stages", "signal", "losses", "requests", "lost / twice / changed / refused", "sent again",
           "first answer s, p50 / p99 / max", "throughput back s, p50 / p99 / max", "full strength s, p50 / p99 / max",
           "window / undisturbed")  # fmt: skip
BACK_SHARE = 0.8
"""Throughput counts as back at this part of what the remaining stages then keep up."""
RAYS_FDS = 4
"""Descriptors that one more start and end of Ray may leave; a loss that left one would show in hundreds."""
_SETTLE_S = 1.0


class Turn(NamedTuple):
    """One loss.

    Attributes
    ----------
    stage
        Which was lost.
    first_answer_s
        From the loss to the first answer to a request submitted after it; None if none came in time.
    back_s
        From the loss until the throughput of the remaining stages was reached, see :data:`BACK_SHARE`; None likewise.
    remaining_hz
        What they kept up until full strength.
    full_s
        From the loss to full strength; None likewise.
    window_hz, undisturbed_hz
        Throughput in the window that the loss begins, and in the last window without one.
    """

    stage: int
    first_answer_s: float | None
    back_s: float | None
    remaining_hz: float
    full_s: float | None
    window_hz: float
    undisturbed_hz: float


class Held(NamedTuple):
    """What the driver holds, and how many processes there are below it."""

    fds: int
    threads: int
    rss_nbytes: int
    processes: int
    fd_kinds: dict[str, int]


class KillsResult(NamedTuple):
    """One number of stages.

    Attributes
    ----------
    ended
        Why the load ended before its time; empty if it did not.
    begin, end
        While serving: after the first undisturbed window, and at the end.
    closed_before, closed_after
        With the pipeline closed: after one that nothing happened to, and after this one.
    processes_left, shared_left
        Left behind.
    """

    stages: tuple[str, ...]
    counts: Counts
    sent_again: int | None
    turns: tuple[Turn, ...]
    undisturbed_hz: tuple[float, ...]
    ended: str
    errors: dict[str, int]
    events: dict[str, int]
    begin: Sample
    end: Sample
    closed_before: Held
    closed_after: Held
    processes_left: tuple[str, ...]
    shared_left: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whether nothing was lost, and nothing left behind."""
        more = self.closed_after.fds - self.closed_before.fds
        gone = not self.processes_left and not self.shared_left and more <= RAYS_FDS
        return self.counts.well and not self.ended and gone


def held() -> Held:
    """Of this process, now."""
    release_memory()
    own = psutil.Process()
    return Held(own.num_fds(), own.num_threads(), own.memory_info().rss, len(process_tree()) - 1, fd_kinds())


def grown(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Kinds of descriptors of which there are more than before.

    Examples
    --------
    >>> grown({"socket": 3, "pipe": 2}, {"socket": 4, "pipe": 1, "memfd:odin": 1})
    ['memfd:odin +1', 'socket +1']
    """
    return [f"{kind} +{more}" for kind in sorted(after) if (more := after[kind] - before.get(kind, 0)) > 0]


def one_turn(
    load: CheckedLoad, taker: StageTaker, arguments: argparse.Namespace, undisturbed_hz: float
) -> tuple[Turn | None, Loss | None]:
    """One loss, with all that is measured of it."""
    stop = arguments.signal == "stop"
    loss = taker.take(signal.SIGSTOP if stop else signal.SIGKILL)
    if loss is None:
        return None, None
    load.arm(loss.at_s)
    end_s = loss.at_s + arguments.window
    if stop:
        wait_until(loss.at_s + arguments.stop_s, load)
        taker.go_on(loss)
    full_s = taker.wait_full(loss, timeout_s=arguments.timeout_s, alive=lambda: load.alive)
    wait_until(end_s, load)
    while load.alive and load.first_s is None and time.perf_counter() < loss.at_s + arguments.timeout_s:
        time.sleep(0.01)
    remaining_until_s = loss.at_s + (full_s if full_s is not None else arguments.window)
    remaining_hz = load.completions.rate_hz(min(loss.at_s + _SETTLE_S, remaining_until_s - 0.5), remaining_until_s)
    back_s = None
    if remaining_hz > 0:
        back_s = load.completions.back_s(loss.at_s, time.perf_counter(), BACK_SHARE * remaining_hz)
    first_s = load.first_s
    turn = Turn(
        stage=loss.stage,
        first_answer_s=None if first_s is None else first_s - loss.at_s,
        back_s=back_s,
        remaining_hz=remaining_hz,
        full_s=full_s,
        window_hz=load.completions.rate_hz(loss.at_s, end_s),
        undisturbed_hz=undisturbed_hz,
    )
    return turn, loss


def wait_until(at_s: float, load: CheckedLoad) -> None:
    """Wait while the load lives."""
    while load.alive and (left_s := at_s - time.perf_counter()) > 0:
        time.sleep(min(left_s, 0.1))


def undisturbed(load: CheckedLoad, arguments: argparse.Namespace) -> float:
    """Throughput of a window without a loss."""
    begin_s = time.perf_counter()
    wait_until(begin_s + arguments.window, load)
    return load.completions.rate_hz(begin_s, begin_s + arguments.window)


def early(load: CheckedLoad, taker: StageTaker, arguments: argparse.Namespace, draw: random.Random) -> list[Turn]:
    """Losses at random times, whatever the pipeline is at; of each only the first answer is measured."""
    turns: list[Turn] = []
    last_s = time.perf_counter()
    while load.alive and len(turns) < arguments.kills:
        wait_until(time.perf_counter() + draw.uniform(0.0, arguments.window), load)
        loss = taker.take(signal.SIGSTOP if arguments.signal == "stop" else signal.SIGKILL)
        if loss is None:
            if time.perf_counter() > last_s + arguments.timeout_s:
                print(f"after {len(turns)} losses fewer than two stages are at work for good", file=sys.stderr)
                break
            continue
        last_s = loss.at_s
        load.arm(loss.at_s)
        if arguments.signal == "stop":
            wait_until(loss.at_s + arguments.stop_s, load)
            taker.go_on(loss)
        while load.alive and load.first_s is None and time.perf_counter() < loss.at_s + arguments.timeout_s:
            time.sleep(0.01)
        first_s = load.first_s
        answered_s = None if first_s is None else first_s - loss.at_s
        turns.append(Turn(loss.stage, answered_s, None, 0.0, None, 0.0, 0.0))
        if len(turns) % 50 == 0:
            print(f"{len(turns)} losses, {load.counts()}", file=sys.stderr)
    return turns


def in_turns(
    load: CheckedLoad, taker: StageTaker, arguments: argparse.Namespace, first_hz: float
) -> tuple[list[Turn], list[float]]:
    """Losses one after the other, each at full strength; and the undisturbed windows between them."""
    rates_hz = [first_hz]
    turns: list[Turn] = []
    while load.alive and len(turns) < arguments.kills:
        if turns and len(turns) % arguments.undisturbed_every == 0:
            rates_hz.append(undisturbed(load, arguments))
        turn, loss = one_turn(load, taker, arguments, rates_hz[-1])
        if turn is None or loss is None:
            print("no stage could be taken: fewer than two are at work", file=sys.stderr)
            break
        turns.append(turn)
        if len(turns) % 10 == 0:
            print(f"{len(turns)} losses, {load.counts()}", file=sys.stderr)
        if turn.full_s is None:
            why = load.ended or f"not at full strength within {arguments.timeout_s:g} s"
            print(f"stage {turn.stage} did not come back: {why}", file=sys.stderr)
            break
    return turns, rates_hz


class Served(NamedTuple):
    """What one pipeline's life under losses told."""

    counts: Counts
    turns: list[Turn]
    undisturbed_hz: list[float]
    ended: str
    errors: dict[str, int]
    begin: Sample
    end: Sample
    pids: set[int]


def serve(chain: odin.Chain, options: dict[str, Any], seen: SeenEvents, arguments: argparse.Namespace) -> Served:
    """Open a pipeline, take its stages away, close it."""
    draw = random.Random(arguments.seed)
    inputs, expected = expected_outputs(chain, arguments.inputs, seed=arguments.seed)
    with odin.Pipeline(chain, on_event=seen, **options) as pipe:
        taker = StageTaker(pipe, seen, draw)
        in_flight = arguments.in_flight or 2 * len(options["stages"])
        with CheckedLoad(pipe.submit, inputs, expected, in_flight=in_flight, seen=seen) as load:
            wait_until(time.perf_counter() + arguments.window / 2, load)
            first_hz = undisturbed(load, arguments)
            begin = sample(taker.pids)
            if arguments.early:
                turns, rates_hz = early(load, taker, arguments, draw), [first_hz]
            else:
                turns, rates_hz = in_turns(load, taker, arguments, first_hz)
            end = sample([stage.pid for stage in taker.at_work()])
            pids = {*taker.pids, *process_tree()[1:]}
        return Served(load.counts(), turns, rates_hz, load.ended, dict(load.errors), begin, end, pids)


def open_and_close(chain: odin.Chain, options: dict[str, Any]) -> set[int]:
    """A pipeline that nothing happens to; returns its processes."""
    with odin.Pipeline(chain, **options) as pipe:
        pipe(torch.zeros(1, 3, 64, 64))
        return set(process_tree()[1:])


def measure(stages: Sequence[str], arguments: argparse.Namespace) -> KillsResult:
    """All losses for one number of stages."""
    chain = odin.build_chain(small_model(), (torch.zeros(1, 3, 64, 64),), name="small")
    options: dict[str, Any] = {"stages": list(stages), "share_devices": True}
    left_behind(open_and_close(chain, options), since=shared_entries())
    closed_before, shared_before = held(), shared_entries()
    seen = SeenEvents()
    served = serve(chain, options, seen, arguments)
    processes_left, shared_left = left_behind(served.pids, since=shared_before)
    return KillsResult(
        stages=tuple(stages),
        counts=served.counts,
        sent_again=seen.sent_again,
        turns=tuple(served.turns),
        undisturbed_hz=tuple(served.undisturbed_hz),
        ended=served.ended,
        errors=served.errors,
        events=dict(seen.counts),
        begin=served.begin,
        end=served.end,
        closed_before=closed_before,
        closed_after=held(),
        processes_left=tuple(processes_left),
        shared_left=tuple(shared_left),
    )


def spread(values: Sequence[float | None]) -> str:
    """Median, p99 and maximum in seconds, and how many never came."""
    came = [value for value in values if value is not None]
    never = f"; {len(values) - len(came)} never" if len(came) < len(values) else ""
    if not came:
        return f"-{never}"
    return " / ".join(f"{percentile(came, share):.3f}" for share in (0.5, 0.99, 1.0)) + never


def window_ratio(turns: Sequence[Turn]) -> Figure | None:
    """Throughput in a loss's window over the last undisturbed one; None if there was none."""
    ratios = [turn.window_hz / turn.undisturbed_hz for turn in turns if turn.undisturbed_hz > 0]
    return summarize(ratios) if ratios else None


def row(result: KillsResult, what: str) -> list[str]:
    """One line of the table."""
    counts, ratio = result.counts, window_ratio(result.turns)
    middle: Callable[[str], str] = lambda name: spread([getattr(turn, name) for turn in result.turns])  # noqa: E731
    return [
        str(len(result.stages)),
        what,
        str(len(result.turns)),
        f"{counts.submitted:,}",
        f"{counts.lost} / {counts.duplicated} / {counts.changed} / {counts.refused}",
        "-" if result.sent_again is None else f"{result.sent_again:,}",
        middle("first_answer_s"),
        middle("back_s"),
        middle("full_s"),
        "-" if ratio is None else f"{ratio.median:.3f} ({ratio.low:.3f}..{ratio.high:.3f})",
    ]


def remarks(result: KillsResult) -> list[str]:
    """What else there is to say, one line each."""
    said = [
        f"{len(result.stages)} stages: driver while serving {mib(result.begin.driver_rss_nbytes)} to "
        f"{mib(result.end.driver_rss_nbytes)} MiB, {result.begin.driver_fds} to {result.end.driver_fds} descriptors, "
        f"{result.begin.driver_threads} to {result.end.driver_threads} threads; closed "
        f"{result.closed_before.fds} and {result.closed_after.fds} descriptors, "
        f"{result.closed_before.threads} and {result.closed_after.threads} threads"
    ]
    if result.ended:
        said.append(f"THE PIPELINE WAS LOST: {result.ended}")
    said += [f"{count} x {text}" for text, count in result.errors.items()]
    more = grown(result.closed_before.fd_kinds, result.closed_after.fd_kinds)
    if more:
        said.append(f"descriptors of which there are more once closed: {', '.join(more)}")
    said += [f"LEFT BEHIND: {what}" for what in (*result.processes_left, *result.shared_left)]
    return said


def stages_of(count: int) -> list[str]:
    """That many stages on the first two cores in turn."""
    cores = usable_cores()[:2]
    return [f"cpu:{cores[number % len(cores)]}" for number in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status is 1 if anything was lost, changed or left behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=1)
    parser.add_argument("--stages", nargs="+", type=int, default=[2, 4], help="how many (default %(default)s)")
    parser.add_argument("--kills", type=int, default=500, help="losses for each of these (default %(default)s)")
    parser.add_argument("--signal", choices=("kill", "stop"), default="kill", help="SIGKILL, or SIGSTOP and SIGCONT")
    parser.add_argument("--for", dest="stop_s", type=float, default=3.0, metavar="S", help="stopped (%(default)s s)")
    parser.add_argument("--early", action="store_true", help="at random times, not only at full strength")
    parser.add_argument("--window", type=float, default=10.0, metavar="S", help="of each loss (default %(default)s s)")
    parser.add_argument(
        "--undisturbed-every", type=int, default=10, metavar="N", help="losses per window without (default %(default)s)"
    )
    parser.add_argument("--in-flight", type=int, default=0, help="requests under way (default: two per stage)")
    parser.add_argument("--inputs", type=int, default=64, help="different inputs, in turn (default %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="for a stage to come back (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.kills, arguments.window = min(arguments.kills, 3), min(arguments.window, 4.0)
        arguments.timeout_s = min(arguments.timeout_s, 30.0)
    environment = Environment.collect()
    torch.set_num_threads(1)
    results = [measure(stages_of(count), arguments) for count in arguments.stages]
    what = "kill -9" if arguments.signal == "kill" else f"stopped {arguments.stop_s:g} s"
    report(
        f"Losses under full load{', at random times' if arguments.early else ''}; windows of {arguments.window:g} s; "
        "target: 0 / 0 / 0 / 0, throughput back within 1 s",
        COLUMNS,
        [row(result, what) for result in results],
        environment,
    )
    for result in results:
        for line in remarks(result):
            print(line)
    write_result(arguments.output, environment=environment, parameters=vars(arguments), results=results)
    return 0 if all(result.well for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
