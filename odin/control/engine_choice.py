"""Which engine computes a chain's layers, and the chain in that engine's form."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from odin.cluster.apart import run_apart
from odin.control.local_profile import profile_local
from odin.errors import OdinError
from odin.models.calibration import calibration_batches
from odin.models.chains import example_inputs
from odin.partitioner.chain import Chain
from odin.partitioner.engines.build import build_form
from odin.partitioner.engines.export import ExportError
from odin.partitioner.engines.form import EngineForm, Form, TorchForm
from odin.partitioner.engines.names import AUTO, TORCH, available_engines
from odin.partitioner.engines.onnx_chain import OnnxChain, onnx_engines
from odin.partitioner.profile import ProfileCache
from odin.stages.compute.precision import FLOAT32, why_not_on_cpu
from odin.stages.compute.torch_weights import load, store
from odin.stages.compute.weights import load_arrays, store_arrays
from odin.stages.device import Device

__all__ = ["choose_form", "fastest_form", "make_form"]


def make_form(chain: Chain, engine: str, *, precision: str = FLOAT32, calibration: Any = None) -> Form:
    """Bring a chain into the form of one engine.

    Parameters
    ----------
    precision
        In which CPU cores compute.
    calibration
        Examples, as for :func:`odin.models.calibration.calibration_batches`.

    Raises
    ------
    ValueError
        If the engine is not installed, or cannot take the chain or an example.
    """
    if engine == TORCH and isinstance(chain, OnnxChain):
        raise ValueError(
            f"{chain.name} is an ONNX file, which PyTorch does not run, and so no GPU either: name cores, such as "
            "cpu:0,cpu:1, and leave the engine to 'auto'"
        )
    if engine == TORCH:
        return TorchForm(chain)
    try:
        examples = calibration_batches(chain, calibration)
        return build_form(chain, engine=engine, precision=precision, examples=examples)
    except (OdinError, ValueError, ImportError):
        raise
    except Exception as error:  # runtimes have kinds of errors of their own
        what, remedy = ("file", "another engine") if isinstance(chain, OnnxChain) else ("model", "engine 'torch'")
        why = " ".join(str(error).split())
        raise ExportError(
            f"{chain.name}: {engine} does not take the {what}'s layers ({why}): choose {remedy}"
        ) from error


def choose_form(
    chain: Chain,
    engine: str,
    placed: Sequence[tuple[Device, str]],
    *,
    batch: int,
    precision: str,
    calibration: Any = None,
) -> Form:
    """Bring a chain into the form of an engine, for ``"auto"`` of the fastest one on the stages' devices.

    ``"auto"`` is PyTorch where stages are on GPUs or on other nodes: the engine is the same for all stages, and what is
    fastest can be measured only here. For an ONNX file it is the first that is installed then.

    Parameters
    ----------
    placed
        Device and node id of each stage.
    batch
        Leading size of the requests to come.
    precision, calibration
        Number format of the stages, and examples for it. CPU stages beside GPU stages compute in float32.
    """
    on_gpu = any(device.kind == "gpu" for device, _ in placed)
    if engine != AUTO:
        cpu_precision = FLOAT32 if on_gpu else precision
        return _apart(make_form, chain, engine, precision=cpu_precision, calibration=calibration)
    here = str(ray.get_runtime_context().get_node_id())
    if on_gpu or (precision == FLOAT32 and any(node != here for _, node in placed)):
        elsewhere = onnx_engines()[0] if isinstance(chain, OnnxChain) and not on_gpu else TORCH
        return _apart(make_form, chain, elsewhere)
    device = placed[0][0]._replace(node="")
    return _apart(fastest_form, chain, device, batch=batch, precision=precision, calibration=calibration)


def _apart(make: Callable[..., Form], chain: Chain, what: Any, **options: Any) -> Form:
    """Make a form in a process of its own: exporters and runtimes leave hundreds of MiB in the one that they are in."""
    if what == TORCH or available_engines() == (TORCH,) or isinstance(chain, OnnxChain):
        return make(chain, what, **options)
    light = copy.copy(chain)
    light.state, light._functions = {}, ()
    try:
        model, weights, agreement = run_apart(_make, make, light, store(chain.state), what, options)
    except (TypeError, AttributeError, RuntimeError, pickle.PickleError) as error:
        if isinstance(error, OdinError):
            raise
        return make(chain, what, **options)  # it cannot be sent to another process
    return TorchForm(chain) if model is None else EngineForm(model, load_arrays(weights), agreement)


def _make(make: Callable[..., Form], chain: Chain, state: Any, what: Any, options: dict[str, Any]) -> Any:
    """Make a form and describe it in what can be sent on."""
    chain.state = load(state)
    form = make(chain, what, **options)
    if not isinstance(form, EngineForm):
        return None, {}, None
    return form.model, store_arrays(form.weights), form.agreement


def fastest_form(
    chain: Chain, device: Device, *, batch: int, precision: str = FLOAT32, calibration: Any = None
) -> Form:
    """Bring a chain into the form of the engine that is fastest on a local device, of those that have the precision.

    Each engine that is installed is measured once for a chain and a type of device; the times are the profile's, and
    kept with it. One that cannot take the chain is passed over.
    """
    cache, total_s = ProfileCache(), {}
    refused: ExportError | None = None
    forms: dict[str, Form] = {}

    def make(engine: str) -> Form:
        if engine not in forms:
            forms[engine] = make_form(chain, engine, precision=precision, calibration=examples)
        return forms[engine]

    examples = calibration if calibration is None else calibration_batches(chain, calibration)
    problems: list[str] = []
    for engine in onnx_engines() if isinstance(chain, OnnxChain) else available_engines():
        if problem := why_not_on_cpu(precision, engine):
            problems.append(problem)
            continue
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
            problems.append(str(error))
    if refused is not None and not total_s and len(problems) == 1:
        raise refused
    if not total_s:
        raise ValueError(f"no engine computes {chain.name} in {precision} here: {'; '.join(problems)}")
    return make(min(total_s, key=total_s.__getitem__))
