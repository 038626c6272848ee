"""Messages of the gRPC services: the same on the wire as those of the clients that speak to them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2

from odin.server.failures import FailureKind, RequestError
from odin.server.grpc_messages import health, inference, parse

MESSAGES = sorted(
    name for name, kind in vars(inference).items() if hasattr(kind, "DESCRIPTOR") and not name.startswith("_")
)
OPEN_INFERENCE = (
    "import sys; from open_inference.grpc import protocol; sys.stdout.buffer.write(protocol.DESCRIPTOR.serialized_pb)"
)
PARTS = {"TensorMetadata", "InferTensor", "InferRequestedOutputTensor", "ModelIndex"}
"""Which lie within others in the clients' packages, and are compared with these."""


@pytest.fixture(scope="module")
def open_inference() -> Any:
    """The specification's own messages; from another process, since they and tritonclient's cannot be in one."""
    told = subprocess.run([sys.executable, "-c", OPEN_INFERENCE], capture_output=True, check=True, timeout=120)
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto.FromString(told.stdout)
    pool.Add(file)
    return pool.FindFileByName(file.name)


def _is_one_of_several(field: Any) -> bool:
    """What is only ``optional`` is in a choice by itself, which does not show on the wire."""
    return field.containing_oneof is not None and len(field.containing_oneof.fields) > 1


def difference(ours: Any, theirs: Any, *, may_lack: bool) -> list[str]:
    """Fields of a message, and of those within it, that are other ones on the wire."""
    found = []
    for field in ours.fields:
        other = theirs.fields_by_number.get(field.number)
        where = f"{ours.name}.{field.name}"
        if other is None:
            if not may_lack:
                found.append(f"{where} is not there")
            continue
        if (field.name, field.type, field.is_repeated) != (other.name, other.type, other.is_repeated):
            found.append(f"{where} is {other.name} of type {other.type}")
        if _is_one_of_several(field) != _is_one_of_several(other):
            found.append(f"{where} is one of several")
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry != other.message_type.GetOptions().map_entry:
                found.append(f"{where} is a map")
            found += difference(field.message_type, other.message_type, may_lack=may_lack)
        if field.enum_type is not None:
            ours_by_name = {value.name: value.number for value in field.enum_type.values}
            found += [
                f"{where}: {value.name} is {value.number}"
                for value in other.enum_type.values
                if ours_by_name.get(value.name) != value.number
            ]
    return found


@pytest.mark.parametrize("name", [name for name in MESSAGES if name not in PARTS])
def test_messages_are_those_of_tritonclient_on_the_wire(name: str) -> None:
    file = model_config_pb2 if name in ("ModelConfig", "ModelInput", "ModelOutput") else service_pb2
    theirs = file.DESCRIPTOR.message_types_by_name[name]
    assert difference(getattr(inference, name).DESCRIPTOR, theirs, may_lack=False) == []


def test_messages_are_those_of_the_specification_on_the_wire(open_inference: Any) -> None:
    not_ours = []
    for name, theirs in open_inference.message_types_by_name.items():
        # It knows no unsigned or double parameters, which are Triton's; all else has to be there.
        lacks = difference(getattr(inference, name).DESCRIPTOR, theirs, may_lack=True)
        assert lacks == []
        ours = getattr(inference, name).DESCRIPTOR.fields_by_number
        not_ours += [f"{name}.{field.name}" for field in theirs.fields if field.number not in ours]
    assert not_ours == ["ModelMetadataResponse.properties"]  # free texts; we have none to tell
    assert {"ModelInferRequest", "ModelInferResponse", "InferTensorContents"} <= set(
        open_inference.message_types_by_name
    )


def test_a_changed_field_would_be_found() -> None:
    ours, theirs = inference.ModelReadyRequest.DESCRIPTOR, inference.ServerMetadataResponse.DESCRIPTOR
    assert difference(ours, theirs, may_lack=False) == []
    assert difference(theirs, ours, may_lack=False) == ["ServerMetadataResponse.extensions is not there"]
    other = inference.RepositoryIndexRequest.DESCRIPTOR
    assert len(difference(ours, other, may_lack=False)) == 2


def test_nothing_is_registered_where_other_packages_register() -> None:
    pool = descriptor_pool.Default()
    assert inference.ModelInferRequest.DESCRIPTOR.file.pool is not pool
    assert health.HealthCheckRequest.DESCRIPTOR.file.pool is not pool


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(RequestError, match=r"no inference\.ModelReadyRequest") as caught:
        parse(inference.ModelReadyRequest, b"\x0a\xff")
    assert caught.value.kind is FailureKind.INVALID
