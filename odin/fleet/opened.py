"""An open packed model: its weights mapped, its code bound to them; run without any of the user's code."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from odin.fleet.packed import SUFFIX, Head, Mapped, PackedFolder, PackedModelError
from odin.fleet.program_data import layer_from_data
from odin.fleet.structure import ModelCall
from odin.partitioner.code.program import LayerProgram, Program
from odin.stages.compute import opaque
from odin.stages.compute.opaque import compute_threads
from odin.stages.compute.torch_weights import load
from odin.stages.device import cpu_model

__all__ = ["OpenModel", "check_processor", "processor_form"]

Values = tuple[torch.Tensor, ...]
_FLAGS = ("sse4_1", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Of the processor, by which oneDNN chooses the form of packed weights."""


@functools.cache
def processor_form() -> str:
    """For what weights are packed here: a processor with its vector instructions, and a PyTorch."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_model()}, {_flags() or 'no vector instructions'}, PyTorch {torch.__version__}, {capability}"


def _flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(flag for flag in _FLAGS if flag in words)


def check_processor(head: Head, path: Path) -> None:
    """Raise :class:`PackedModelError` if a model is packed for another processor than this one."""
    if head.processor and head.processor != processor_form():
        raise PackedModelError(
            f"{path} is packed for {head.processor!r}; here are {processor_form()!r}: pack it again on this machine "
            "(odin pack), or for any processor (odin pack --portable)"
        )


class OpenModel:
    """A packed model that can be run until :meth:`close`.

    Parameters
    ----------
    folder
        Where it lies.
    name
        The model's.
    code
        Digest of the code that it must have; None: any.

    Attributes
    ----------
    head
        What its file says.
    call
        What it takes and returns.
    read_s
        Seconds that reading it into memory took.

    Raises
    ------
    PackedModelError
        If it is no packed model, or another one by now, was packed for another processor, or others can write it.
    OSError
        If it cannot be read.
    """

    def __init__(self, folder: PackedFolder, name: str, *, code: str | None = None) -> None:
        begin_s = time.perf_counter()
        self._mapped: Mapped | None = folder.map(name)
        self.read_s = time.perf_counter() - begin_s
        self._functions: list[Callable[[Values], Values]] = []
        self._layers: list[LayerProgram] = []
        self._state: Mapping[str, torch.Tensor] = {}
        self.head = head = self._mapped.head
        try:
            if code not in (None, head.code):
                raise PackedModelError(
                    f"{folder.path / name}{SUFFIX} was packed anew as another model: it is served after "
                    "fleet.refresh() (over the network: when it is loaded again)"
                )
            check_processor(head, folder.path / name)
            self.call = ModelCall(head)
            self._layers = [
                layer_from_data(data, limits=limits, output_bounds=bounds)
                for data, limits, bounds in zip(
                    self._mapped.code["layers"], head.limits, head.output_bounds, strict=True
                )
            ]
            self._state = load(self._mapped.stored)
            if not head.processor and opaque.supported():
                with compute_threads(1):
                    self._state = Program(tuple(self._layers)).pack(self._state, batch=self.call.example_samples)
            self._functions = [layer.bind(self._state) for layer in self._layers]
        except BaseException:
            self.close()
            raise

    def run(self, values: Values) -> tuple[Values, float]:
        """Run the whole model on inputs in its layout; the outputs, and seconds."""
        begin_s = time.perf_counter()
        with torch.inference_mode():
            for function in self._functions:
                values = function(values)
        return values, time.perf_counter() - begin_s

    def close(self) -> None:
        """Unmap the weights. Idempotent; results of :meth:`run` stay, unless they are views of weights."""
        mapped, self._mapped = self._mapped, None
        self._functions, self._layers, self._state = [], [], {}
        if mapped is None:
            return
        try:
            mapped.close()
        except BufferError:  # a cycle of references, such as a traceback's
            gc.collect()
            mapped.close()
