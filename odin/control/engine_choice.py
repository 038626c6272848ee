"""Which engine computes a chain's layers, and the chain in that engine's form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ray

from odin.control.local_profile import profile_local
from odin.models.chains import example_inputs
from odin.partitioner.chain import Chain
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.export import ExportError
from odin.partitioner.engines.form import Form, TorchForm
from odin.partitioner.engines.names import AUTO, TORCH, available_engines
from odin.partitioner.engines.onnx_chain import OnnxChain, onnx_engines
from odin.partitioner.profile import ProfileCache
from odin.stages.device import Device

__all__ = ["choose_form", "fastest_form", "make_form"]


def make_form(chain: Chain, engine: str, *, batch: int) -> Form:
    """Bring a chain into the form of one engine.

    Raises
    ------
    ValueError
        If the engine is not installed, or cannot take the chain.
    """
    if engine == TORCH and isinstance(chain, OnnxChain):
        raise ValueError(
            f"{chain.name} is an ONNX file, which PyTorch does not run, and so no GPU either: name cores, such as "
            "cpu:0,cpu:1, and leave the engine to 'auto'"
        )
    if engine == TORCH:
        return TorchForm(chain)
    try:
        return build_form(chain, engine=engine, batch=batch)
    except Exception as error:
        if isinstance(error, (ValueError, ImportError)) or not isinstance(chain, OnnxChain):
            raise
        # runtimes have kinds of errors of their own
        raise ExportError(
            f"{chain.name}: {engine} does not take its layers ({' '.join(str(error).split())}): choose another engine"
        ) from error


def choose_form(chain: Chain, engine: str, placed: Sequence[tuple[Device, str]], *, batch: int, precision: str) -> Form:
    """Bring a chain into the form of an engine, for ``"auto"`` of the fastest one on the stages' devices.

    ``"auto"`` is PyTorch where stages are on GPUs or on other nodes: the engine is the same for all stages, and what is
    fastest can be measured only here. For an ONNX file it is the first that is installed then.

    Parameters
    ----------
    placed
        Device and node id of each stage.
    batch
        Leading size of the requests to come.
    """
    if engine != AUTO:
        return make_form(chain, engine, batch=batch)
    here = str(ray.get_runtime_context().get_node_id())
    on_gpu = any(device.kind == "gpu" for device, _ in placed)
    if on_gpu or any(node != here for _, node in placed):
        elsewhere = onnx_engines()[0] if isinstance(chain, OnnxChain) and not on_gpu else TORCH
        return make_form(chain, elsewhere, batch=batch)
    return fastest_form(chain, placed[0][0]._replace(node=""), batch=batch, precision=precision)


def fastest_form(chain: Chain, device: Device, *, batch: int, precision: str = "float32") -> Form:
    """Bring a chain into the form of the engine that is fastest on a local device.

    Each engine that is installed is measured once for a chain and a type of device; the times are the profile's, and
    kept with it. One that cannot take the chain is passed over.
    """
    cache, total_s = ProfileCache(), {}
    refused: ExportError | None = None
    forms: dict[str, Form] = {}

    def make(engine: str) -> Form:
        if engine not in forms:
            forms[engine] = make_form(chain, engine, batch=batch)
        return forms[engine]

    for engine in onnx_engines() if isinstance(chain, OnnxChain) else available_engines():
        try:
            profile = profile_local(
                chain,
                device,
                example_inputs(chain, TorchForm(chain), batch),
                precision=precision,
                engine=engine,
                form=partial(make, engine),
                cache=cache,
            )
            total_s[engine] = profile.total_s
        except ExportError as error:
            refused = error
    if refused is not None and not total_s:
        raise refused
    best = min(total_s, key=total_s.__getitem__, default=TORCH)
    return make(best)
