"""A stage whose engine is not PyTorch serves without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PROMPT_S

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, threading, types
from types import SimpleNamespace
import numpy as np
from odin.partitioner.plan import Plan
from odin.partitioner.relay import Windows
from odin.stages import actor
from odin.stages.channel.opening import Listener, connect, open_ends
from odin.stages.channel.wire import GATEWAY, Header, Kind
from odin.stages.compute.executor import Result
from odin.stages.compute.weights import store_arrays
from odin.stages.device import usable_cores

assert "torch" not in sys.modules, "odin.stages.actor imports it"

class Pieces:
    overlaps, looks_between_layers, arrays = False, False, "numpy"
    def __init__(self, model, weights, *, threads):
        self.layers, self.weights = model.layers, weights
    def prepare(self, first, last): pass
    def retain(self, ranges): pass
    def adopt(self, memory): memory.address
    def calibrating(self):
        import contextlib
        return contextlib.nullcontext()
    def launch(self, first, last, values, *, keep_nan=False):
        for layer in self.layers[first:last]:
            values = tuple(value * self.weights[layer] for value in values)
        return Result(values, 0.0, 0.0, 0.0, (0.0,) * (last - first))
    def finish(self, ticket): return ticket

from odin.stages.compute import sessions
sys.modules["made_up"] = types.ModuleType("made_up")
sessions.SessionExecutor = Pieces
actor.ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "node")
actor._node_address = lambda: "127.0.0.1"

device = f"cpu:{usable_cores()[0]}"
stage = actor.StageActor(0, device, "a test", share=True, precision="float32", engine="made_up")
weights = {"a": np.full(4, 2.0, np.float32), "b": np.full(4, 5.0, np.float32)}
info = stage.open(SimpleNamespace(layers=["a", "b"]), store_arrays(weights), 1, "made_up")
assert info.device == device, info
stage.profile(list(store_arrays({"x": np.ones(4, np.float32)}).values()), 1, 2)
address = stage.listen(1, 0, "").here
answers = Listener()
windows = Windows.of_plan(Plan((2,)))
links = actor.Links(((GATEWAY, answers.address),), 1024, ((0.0, 0.0),), (0.0,) * 3, (16,) * 3, windows, (0,))
starting = threading.Thread(target=stage.start, args=(links,))
starting.start()
(sender,), (receiver,) = open_ends(
    [(answers, 1)], [lambda: connect(address, slots=2, slot_nbytes=1024)]
)
starting.join()
sender.send(Header(Kind.REQUEST, 7), (np.arange(4, dtype=np.float32),))
message = receiver.receive()
assert message.header.kind is Kind.REQUEST, message.header
print(message.read("numpy")[0].tolist())
stage.look(())
stage.stop()
print(sorted({"torch", "odin.partitioner.chain", "rich"} & set(sys.modules)))
"""


def test_a_stage_serves_without_pytorch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PROMPT_S)
    assert (done.stdout.splitlines(), done.returncode) == (["[0.0, 10.0, 20.0, 30.0]", "[]"], 0), done.stderr
