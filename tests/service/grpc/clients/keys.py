"""A server with API keys: what is open, what a key opens."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.service.grpc.clients.target import ADDRESS, KEYS, texts


@pytest.fixture
def triton() -> Iterator[InferenceServerClient]:
    """A client of the server, closed after the test."""
    with InferenceServerClient(ADDRESS) as opened:
        yield opened


def _code(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


def test_health_is_open(triton: InferenceServerClient) -> None:
    """Liveness, readiness and the standard health service need no key; reflection does."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    with grpc.insecure_channel(ADDRESS) as channel:
        assert HealthStub(channel).Check(HealthCheckRequest()).status == 1
        with pytest.raises(grpc.RpcError) as raised:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"authorization": f"Basic {KEYS['plain']}"}])
def test_a_key_is_needed(triton: InferenceServerClient, headers: dict[str, str]) -> None:
    """Without a known key calls and streams are UNAUTHENTICATED, before their messages are read."""
    with pytest.raises(InferenceServerException, match="API key") as raised:
        triton.infer("text", [texts("hello")], headers=headers)
    assert _code(raised) == "UNAUTHENTICATED"
    with pytest.raises(InferenceServerException) as raised:
        triton.get_server_metadata(headers=headers)
    assert _code(raised) == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", ["x-api-key", "authorization"])
def test_a_key_opens(triton: InferenceServerClient, name: str) -> None:
    """A plain key infers and may not load; an admin key may."""
    prefix = "Bearer " if name == "authorization" else ""
    plain, admin = ({name: prefix + KEYS[kind]} for kind in ("plain", "admin"))
    assert triton.infer("text", [texts("hello")], headers=plain).as_numpy("logits").shape == (1, 3)
    with pytest.raises(InferenceServerException, match="may not load") as raised:
        triton.load_model("text", headers=plain)
    assert _code(raised) == "PERMISSION_DENIED"
    triton.load_model("text", headers=admin)
