"""The pipeline of benchmarks/serving.py that is asked in its own process; told what to measure by standard input."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

import torch

import odin
from benchmarks.common import percentile


def measure(pipe: odin.Pipeline, images: list[torch.Tensor], *, clients: int, seconds: float) -> dict[str, float]:
    """So many threads, each of which submits its next image when it has its result."""
    latencies: list[tuple[float, float]] = []
    begin_s = time.monotonic()

    def call(number: int) -> None:
        at = number
        while (sent_s := time.monotonic()) < begin_s + seconds:
            pipe(images[at % len(images)])
            latencies.append((sent_s, time.monotonic()))
            at += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken_s = [over_s - sent_s for sent_s, over_s in latencies]
    return {
        "throughput_hz": len(latencies) / (max(over_s for _, over_s in latencies) - begin_s),
        "p50_s": percentile(taken_s, 0.5),
        "p99_s": percentile(taken_s, 0.99),
        "failed": 0,
    }


def main() -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--cores", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stages = [f"cpu:{core}" for core in arguments.cores.split(",")]
    with odin.Pipeline(arguments.model, stages=stages, share_devices=True) as pipe:
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(pipe.chain.inputs[0].shape, generator=generator) for _ in range(4)]
        pipe(images[0])
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(pipe, images, **json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
