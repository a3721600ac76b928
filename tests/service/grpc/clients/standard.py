"""The server as tools that know nothing of inference see it: the standard health service, and reflection."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.service.grpc.clients.target import ADDRESS


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """A channel to the server, closed after the test."""
    with grpc.insecure_channel(ADDRESS) as opened:
        yield opened


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_health(channel: grpc.Channel, service: str) -> None:
    """Once all models are ready, the server and its service are SERVING, asked once or watched."""
    health = HealthStub(channel)
    assert health.Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
    watching = health.Watch(HealthCheckRequest(service=service))
    assert next(watching).status == HealthCheckResponse.SERVING
    watching.cancel()


def test_health_of_a_service_that_is_not_there(channel: grpc.Channel) -> None:
    """NOT_FOUND where it is asked for, SERVICE_UNKNOWN where it is watched."""
    health = HealthStub(channel)
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(HealthCheckRequest(service="nope"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watching = health.Watch(HealthCheckRequest(service="nope"))
    assert next(watching).status == HealthCheckResponse.SERVICE_UNKNOWN
    watching.cancel()


def test_reflection(channel: grpc.Channel) -> None:
    """All services are listed, and described well enough to call them without a proto file."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    assert service.FindMethodByName("ModelInfer").input_type.fields_by_name["raw_input_contents"]
