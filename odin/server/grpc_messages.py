"""Messages of the gRPC services, built from the tables below in a descriptor pool of their own.

Several packages define ``inference.*``: clients that a program imports beside this server register theirs in protobuf's
common pool, which takes each name once. A pool of our own is in nobody's way. On the wire only a field's number, type
and label count; its name is how it is read here.

A table has a message per entry, and of each field its number, name and type: ``string*`` is any number of them,
``map:Value`` a map from strings, and ``bool|kind`` one of several fields of which at most one is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from odin.server.failures import FailureKind, RequestError

__all__ = ["HEALTH_SERVICE", "INFERENCE_SERVICE", "health", "inference", "parse"]

Table = Mapping[str, Mapping[int, str]]

INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

_NAME_AND_VERSION = {1: "name string", 2: "version string"}
_VALUE = {1: "bool_param bool|parameter_choice", 2: "int64_param int64|parameter_choice"}
_VALUE |= {3: "string_param string|parameter_choice"}

_PROTOCOL: Table = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {1: "live bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {1: "ready bool"},
    "ModelReadyRequest": _NAME_AND_VERSION,
    "ModelReadyResponse": {1: "ready bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAME_AND_VERSION, 3: "extensions string*"},
    "ModelMetadataRequest": _NAME_AND_VERSION,
    "TensorMetadata": {1: "name string", 2: "datatype string", 3: "shape int64*"},
    "ModelMetadataResponse": {
        1: "name string",
        2: "versions string*",
        3: "platform string",
        4: "inputs TensorMetadata*",
        5: "outputs TensorMetadata*",
    },
    "InferParameter": {**_VALUE, 4: "double_param double|parameter_choice", 5: "uint64_param uint64|parameter_choice"},
    "InferTensorContents": {
        1: "bool_contents bool*",
        2: "int_contents int32*",
        3: "int64_contents int64*",
        4: "uint_contents uint32*",
        5: "uint64_contents uint64*",
        6: "fp32_contents float*",
        7: "fp64_contents double*",
        8: "bytes_contents bytes*",
    },
    "InferTensor": {  # of a request or an answer: they look the same
        1: "name string",
        2: "datatype string",
        3: "shape int64*",
        4: "parameters map:InferParameter",
        5: "contents InferTensorContents",
    },
    "InferRequestedOutputTensor": {1: "name string", 2: "parameters map:InferParameter"},
    "ModelInferRequest": {
        1: "model_name string",
        2: "model_version string",
        3: "id string",
        4: "parameters map:InferParameter",
        5: "inputs InferTensor*",
        6: "outputs InferRequestedOutputTensor*",
        7: "raw_input_contents bytes*",
    },
    "ModelInferResponse": {
        1: "model_name string",
        2: "model_version string",
        3: "id string",
        4: "parameters map:InferParameter",
        5: "outputs InferTensor*",
        6: "raw_output_contents bytes*",
    },
}

_EXTENSIONS: Table = {
    "ModelStreamInferResponse": {1: "error_message string", 2: "infer_response ModelInferResponse"},
    "ModelStatisticsRequest": _NAME_AND_VERSION,
    "StatisticDuration": {1: "count uint64", 2: "ns uint64"},
    "InferStatistics": {
        1: "success StatisticDuration",
        2: "fail StatisticDuration",
        4: "compute_input StatisticDuration",
        5: "compute_infer StatisticDuration",
        6: "compute_output StatisticDuration",
    },
    "InferBatchStatistics": {
        1: "batch_size uint64",
        2: "compute_input StatisticDuration",
        3: "compute_infer StatisticDuration",
        4: "compute_output StatisticDuration",
    },
    "ModelStatistics": {
        **_NAME_AND_VERSION,
        3: "last_inference uint64",
        4: "inference_count uint64",
        5: "execution_count uint64",
        6: "inference_stats InferStatistics",
        7: "batch_stats InferBatchStatistics*",
    },
    "ModelStatisticsResponse": {1: "model_stats ModelStatistics*"},
    "ModelRepositoryParameter": {**_VALUE, 4: "bytes_param bytes|parameter_choice"},
    "RepositoryIndexRequest": {1: "repository_name string", 2: "ready bool"},
    "ModelIndex": {**_NAME_AND_VERSION, 3: "state string", 4: "reason string"},
    "RepositoryIndexResponse": {1: "models ModelIndex*"},
    "RepositoryModelLoadRequest": {
        1: "repository_name string",
        2: "model_name string",
        3: "parameters map:ModelRepositoryParameter",
    },
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {
        1: "repository_name string",
        2: "model_name string",
        3: "parameters map:ModelRepositoryParameter",
    },
    "RepositoryModelUnloadResponse": {},
    "ModelConfigRequest": _NAME_AND_VERSION,
    "ModelInput": {1: "name string", 2: "data_type DataType", 4: "dims int64*"},
    "ModelOutput": {1: "name string", 2: "data_type DataType", 3: "dims int64*"},
    "ModelConfig": {
        1: "name string",
        2: "platform string",
        4: "max_batch_size int32",
        5: "input ModelInput*",
        6: "output ModelOutput*",
    },
    "ModelConfigResponse": {1: "config ModelConfig"},
}

_DATATYPES = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"

_HEALTH: Table = {
    "HealthCheckRequest": {1: "service string"},
    "HealthCheckResponse": {1: "status ServingStatus"},
}

_FIELD = descriptor_pb2.FieldDescriptorProto


def _build(package: str, messages: Table, enums: Mapping[str, list[str]]) -> Any:
    """Make the message classes of a package; they are the attributes of what is returned, its enums dicts there."""
    file = descriptor_pb2.FileDescriptorProto(name=f"odin/{package}.proto", package=package, syntax="proto3")
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, text in fields.items():
            _add_field(message, number, *text.split(), package=package, enums=enums)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages
    }
    numbers = {name: {value: number for number, value in enumerate(values)} for name, values in enums.items()}
    return SimpleNamespace(**classes, **numbers)


def _add_field(message: Any, number: int, name: str, kind: str, *, package: str, enums: Mapping[str, Any]) -> None:
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if kind.endswith("*"):
        field.label, kind = _FIELD.LABEL_REPEATED, kind.removesuffix("*")
    if kind.startswith("map:"):  # protobuf's own form of a map: entries with key and value
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, 1, "key", "string", package=package, enums=enums)
        _add_field(entry, 2, "value", kind.removeprefix("map:"), package=package, enums=enums)
        field.label, kind = _FIELD.LABEL_REPEATED, f"{message.name}.{entry.name}"
    kind, _, choice = kind.partition("|")
    if choice:
        if not message.oneof_decl:
            message.oneof_decl.add(name=choice)
        field.oneof_index = 0
    if kind[0].islower():
        field.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
        return
    field.type = _FIELD.TYPE_ENUM if kind in enums else _FIELD.TYPE_MESSAGE
    field.type_name = f".{package}.{kind}"


inference: Any = _build(
    "inference", {**_PROTOCOL, **_EXTENSIONS}, {"DataType": [f"TYPE_{name}" for name in _DATATYPES.split()]}
)
"""The protocol's messages, and those of Triton's extensions."""

health: Any = _build(
    "grpc.health.v1", _HEALTH, {"ServingStatus": ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]}
)
"""Messages of the protocol by which probes ask whether a server serves."""


def parse(kind: Any, message: bytes) -> Any:
    """Read a message.

    Raises
    ------
    RequestError
        If the bytes are no such message.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise RequestError(
            FailureKind.INVALID, f"{len(message)} bytes that are no {kind.DESCRIPTOR.full_name}: {error}"
        ) from None
