"""A model that runs alone on a core, to see what loads do to it.

    python -m odin_lab.inject.reference MODEL DEVICE [fine]

It answers a line of JSON with the chain's description, then for every line with a number so many passes through the
chain, as lists of the layers' seconds, and ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from odin.control.local_profile import pinned
from odin.models.sources import load_source
from odin.partitioner.chain import Chain, build_chain
from odin.partitioner.intensity import arithmetic_intensity
from odin.stages.compute.opaque import compute_threads
from odin.stages.device import Device, thread_count
from odin.stages.host import keep_freed_memory

_FINE_SHARE = 0.01


def main(model: str, device_text: str, *, fine: bool = False) -> None:
    """Serve passes until the input ends; a fine chain is cut within blocks, wherever that leaves layers above 1%."""
    device = Device.parse(device_text)
    source = load_source(model)
    cuts: dict[str, Any] = {"coarse_share": _FINE_SHARE} if fine else {}
    chain = build_chain(source.torch_model, source.example_args, name=source.name, **cuts)
    with compute_threads(thread_count(device)):
        packed = chain.program.pack(chain.state)
    functions = [layer.bind(packed) for layer in chain.program.layers]
    inputs = chain.layout(chain.pack(source.example_args))
    keep_freed_memory()
    with pinned(device), torch.inference_mode():
        say(describe(chain))
        for line in sys.stdin:
            passes = []
            for _ in range(int(line)):
                values, seconds, before_s = inputs, [], time.perf_counter()
                for function in functions:
                    values = function(values)
                    after_s = time.perf_counter()
                    seconds.append(after_s - before_s)
                    before_s = after_s
                passes.append(seconds)
            say({"passes": passes})


def describe(chain: Chain) -> dict[str, object]:
    """What who asks is told of the chain."""
    return {
        "ready": [layer.name for layer in chain.layers],
        "torch": str(torch.__version__),
        "fingerprint": chain.fingerprint,
        "intensity": arithmetic_intensity(chain).tolist(),
        "cut_nbytes": [sum(spec.nbytes for spec in chain.inputs), *(layer.output_nbytes for layer in chain.layers)],
    }


def say(message: dict[str, object]) -> None:
    """Write a message to who asks."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3], fine=sys.argv[3:] == ["fine"])
    except ValueError as error:  # no such model, no such core
        say({"error": str(error)})
    except BrokenPipeError:
        pass  # who asked is gone
