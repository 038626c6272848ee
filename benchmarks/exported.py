"""Write a model for the processes of a benchmark: as ONNX, as OpenVINO's own form, and what goes in and comes out.

The model is exported as the user has it, unprepared: each runtime prepares it in its own way. A process of its own does
it (``python -m benchmarks.exported MODEL FOLDER``): what it takes of memory is gone before any is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.runtimes import ArraySpec, Form, installed_runtimes

if TYPE_CHECKING:
    import torch

    from odin.models.sources import Source

__all__ = ["export", "export_apart", "read_form"]


def export_apart(model: str, folder: Path, runtimes: Sequence[str]) -> None:
    """Export in a process of its own; RuntimeError with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.exported", model, str(folder), *runtimes],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{model} could not be exported:\n{done.stdout[-4000:]}")


def read_form(folder: Path, runtime: str) -> Form:
    """Read what a runtime takes and gives, as :func:`export` has written it."""
    found = json.loads((folder / f"{runtime}.json").read_text(encoding="utf-8"))
    inputs, outputs = (tuple(ArraySpec.of(spec) for spec in specs) for specs in found)
    return Form(inputs, outputs)


def export(source: Source, folder: Path, runtimes: Sequence[str], *, args: tuple[torch.Tensor, ...] = ()) -> None:
    """Write what each of the runtimes opens, and its :class:`Form`.

    Parameters
    ----------
    source
        A module with its example.
    folder
        It gets ``model.onnx``, ``model.xml`` with ``model.bin``, and a JSON file for each runtime.
    runtimes
        Names; for ``torch`` there is nothing to write but what ODIN's prepared chain takes.
    args
        Example arguments; by default the source's own.
    """
    import torch

    assert isinstance(source.model, torch.nn.Module)
    args = args or source.example_args
    with torch.inference_mode():
        outputs = source.model(*args)
    if not isinstance(outputs, torch.Tensor):
        raise ValueError(
            f"{source.name} returns a {type(outputs).__name__}; these benchmarks take models with one tensor"
        )
    plain = Form(specs_of([tensor.contiguous() for tensor in args]), specs_of([outputs.contiguous()]))
    forms = dict.fromkeys(runtimes, plain)
    if "torch" in forms:
        forms["torch"] = form_of_chain(source, args)
    if set(runtimes) - {"torch"}:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each library that is not installed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what will change in its own insides
            torch.onnx.export(
                source.model, args, folder / "model.onnx", dynamo=True, external_data=False, verbose=False
            )
    if "openvino" in runtimes:
        import openvino

        model = openvino.Core().read_model(folder / "model.onnx")
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    for name, form in forms.items():
        (folder / f"{name}.json").write_text(json.dumps(form), encoding="utf-8")


def form_of_chain(source: Source, args: tuple[torch.Tensor, ...]) -> Form:
    """What ODIN's prepared model takes and gives, in its own memory layout."""
    from odin.partitioner.chain import build_chain

    chain = build_chain(source.torch_model, args, name=source.name)
    values = chain.layout(chain.pack(args))
    return Form(specs_of(values), specs_of(chain.run(values)))


def specs_of(tensors: Sequence[torch.Tensor]) -> tuple[ArraySpec, ...]:
    """Describe dense tensors."""
    arrays = [tensor.numpy() for tensor in tensors]
    return tuple(ArraySpec(array.shape, array.strides, array.dtype.name, array.nbytes) for array in arrays)


def main() -> int:
    """Export a model that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("runtimes", nargs="*", default=["torch", *installed_runtimes()])
    arguments = parser.parse_args()

    import torch

    from odin.models.sources import load_source

    torch.set_num_threads(1)
    export(load_source(arguments.model), arguments.folder, arguments.runtimes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
