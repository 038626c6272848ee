"""An ONNX file as it is on disk: what its model takes and returns, and whether all its parts are there."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odin.partitioner.engines.onnx_nodes import subgraphs

__all__ = ["OnnxFile", "OnnxValue", "read_onnx"]

_LARGEST_NBYTES = 2**31 - 1  # of a protocol buffer
_CARRIED = frozenset(
    {"float32", "float64", "float16", "uint8", "int8", "int16", "int32", "int64", "bool"}
    | {"complex64", "complex128", "uint16", "uint32", "uint64"}
)  # what travels between stages as numpy arrays


class OnnxValue(NamedTuple):
    """An input or output.

    Attributes
    ----------
    name
        In the file.
    dtype
        Element type as numpy names it.
    sizes
        For each dimension its size, or the name of one that is free (empty if it has none); None: not even the number
        of dimensions is said.
    """

    name: str
    dtype: str
    sizes: tuple[int | str, ...] | None

    def __str__(self) -> str:
        if self.sizes is None:
            return f"{self.name} {self.dtype}(...)"
        return f"{self.name} {self.dtype}({', '.join(str(size) or '?' for size in self.sizes)})"


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model on disk that was looked at; made by :func:`read_onnx`.

    Attributes
    ----------
    path
        The file.
    inputs, outputs
        In the file's order; constants are no inputs, even if the file lists them there.
    data_paths
        Files beside it that hold weights.
    weight_nbytes
        Bytes of its weights.
    has_functions
        Whether it has operators of its own, made of others.
    """

    path: Path
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    data_paths: tuple[Path, ...]
    weight_nbytes: int
    has_functions: bool = False

    def load(self, *, all_data: bool = False) -> Any:
        """Read it as an ``onnx.ModelProto``, its functions put where they are called.

        Parameters
        ----------
        all_data
            With the weights that are in other files.
        """
        import onnx.inliner

        model = onnx.load(self.path, load_external_data=all_data)
        if self.has_functions:
            own = {function.domain for function in model.functions}
            model = onnx.inliner.inline_local_functions(model)
            opsets = [opset for opset in model.opset_import if opset.domain not in own]
            del model.opset_import[:]
            model.opset_import.extend(opsets)
        return model

    def digest(self) -> str:
        """SHA-256 of its bytes and of those of its files of weights, as hex digits."""
        digest = hashlib.sha256()
        for path in (self.path, *self.data_paths):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def read_onnx(path: Path) -> OnnxFile:
    """Look at an ONNX file.

    Raises
    ------
    ValueError
        If it is missing or no ONNX model, a file of weights is missing or too short, the package ``onnx`` is not
        installed, or an input or output is of a kind that stages cannot exchange.
    """
    if not path.is_file():
        raise ValueError(f"model {path}: " + ("is a folder, name one file" if path.is_dir() else "no such file"))
    if importlib.util.find_spec("onnx") is None:
        raise ValueError(
            f"model {path}: to read it the package onnx is needed, which is not installed here: "
            "pip install 'odin-pipeline[onnxruntime]' or 'odin-pipeline[openvino]'"
        )
    import onnx

    nbytes = path.stat().st_size
    if nbytes > _LARGEST_NBYTES:
        raise ValueError(
            f"model {path}: {nbytes / 2**30:.1f} GiB, more than a protocol buffer can have; save its weights beside "
            "it: onnx.save(model, path, save_as_external_data=True)"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of protobuf's, whose package decides the kind
        raise ValueError(f"model {path}: no ONNX model, or not all of it ({error})") from error
    graph = model.graph
    if not model.ir_version or not model.opset_import or not graph.output:
        raise ValueError(f"model {path}: no ONNX model, or not all of it (no graph with outputs, or no version)")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = tuple(_value(path, "input", entry) for entry in graph.input if entry.name not in constants)
    if not inputs:
        raise ValueError(f"model {path} takes no input: there is nothing to serve")
    outputs = tuple(_value(path, "output", entry) for entry in graph.output)
    data_paths: dict[Path, None] = {}
    weight_nbytes = 0
    for tensor in _tensors(graph):
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError as error:
            raise ValueError(
                f"model {path}: constant {tensor.name!r} is of a type that the installed onnx {onnx.__version__} does "
                "not know"
            ) from error
        weight_nbytes += math.prod(tensor.dims) * dtype.itemsize
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            data_paths[_data_path(path, tensor)] = None
    return OnnxFile(path, inputs, outputs, tuple(data_paths), weight_nbytes, bool(model.functions))


def _tensors(graph: Any) -> Iterator[Any]:
    """All constants, those in nodes and in subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _value(path: Path, kind: str, entry: Any) -> OnnxValue:
    from onnx import TensorProto, helper

    what = f"model {path}: {kind} {entry.name!r}"
    if entry.type.WhichOneof("value") != "tensor_type":
        raise ValueError(f"{what} is no tensor but a {entry.type.WhichOneof('value')}: stages exchange tensors")
    tensor = entry.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except KeyError:
        dtype = "?"
    if dtype not in _CARRIED or tensor.elem_type == TensorProto.STRING:
        raise ValueError(
            f"{what} has elements of type {TensorProto.DataType.Name(tensor.elem_type)}; stages exchange "
            f"{', '.join(sorted(_CARRIED))}"
        )
    if not tensor.HasField("shape"):
        return OnnxValue(entry.name, dtype, None)
    sizes = tuple(
        size.dim_value if size.WhichOneof("value") == "dim_value" and size.dim_value >= 0 else size.dim_param
        for size in tensor.shape.dim
    )
    return OnnxValue(entry.name, dtype, sizes)


def _data_path(path: Path, tensor: Any) -> Path:
    """The file that holds a tensor's data; ``ValueError`` if it is not there or too short."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = Path(where.get("location", ""))
    what = f"model {path}: the weights of {tensor.name!r}"
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise ValueError(
            f"{what} are in {str(location)!r}; the format allows only files in or below the model's folder"
        )
    found = path.parent / location
    if not found.is_file():
        raise ValueError(f"{what} are in {found}, which is not there: keep the file beside the model")
    end = int(where.get("offset", 0)) + int(where.get("length", 0))
    if found.stat().st_size < end:
        raise ValueError(f"{what} end at byte {end} of {found}, which has {found.stat().st_size}: copy it again")
    return found
