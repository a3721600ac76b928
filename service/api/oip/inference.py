"""POST /v2/models/{model}[/versions/{version}]/infer: the hot route; bound by neither pydantic nor dependencies."""

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from service.api.oip import body
from service.api.oip.documentation import ModelName, VersionName, documented_inference
from service.api.oip.inputs import read_items
from service.api.oip.interface import ModelInterface
from service.api.oip.outputs import WantedOutput, choose_outputs, make_outputs, takes_long
from service.api.oip.raw_request import raw_request
from service.api.oip.request import InferRequest, parse_request
from service.api.oip.response import answer, encode_answer
from service.engine.inputs import Item
from service.engine.outcomes import Outcome
from service.settings import Settings
from service.state import State

_WORTH_COMPRESSING_BYTES = 1024
_ASIDE_BYTES = 1 << 16  # of a body, from here on reading it could hold up the event loop

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.post("/models/{model}/infer", **documented_inference("model"))
async def infer(request: Request, model: ModelName) -> Response:
    """Runs the newest version on the inputs of the request, and gives the outputs that it asks for, layer statistics among them."""
    return await _infer(request, model, None)


@router.post("/models/{model}/versions/{version}/infer", **documented_inference("model", "version"))
async def infer_version(request: Request, model: ModelName, version: VersionName) -> Response:
    """Runs this version, see that of the model."""
    return await _infer(request, model, version)


async def _infer(request: Request, model: str, version: str | None) -> Response:
    state = State.of(request)
    with state.repository.reserve(model, version) as served:
        interface = ModelInterface.of(served)
        received = await body.read(request, state.settings.max_body_bytes)
        wanted, chosen, items = (
            _understand(received, interface, state.settings)
            if len(received.content or b"") + len(received.binary) < _ASIDE_BYTES
            else await run_sync(_understand, received, interface, state.settings, limiter=state.reading)
        )
        outcomes, timing = await served.predict(
            items,
            statistics=any(output.statistic is not None for output in chosen),
            channels=any(output.by_channel for output in chosen),
            timeout_s=wanted.timeout_s,
        )
    state.observe_inference(model, timing)

    def encode() -> tuple[bytes, int | None]:
        head = _head(interface, wanted.id, outcomes)
        return encode_answer(head, chosen, make_outputs(chosen, outcomes, interface))

    content, json_length = await state.encode(encode) if takes_long(chosen, outcomes, interface) else encode()
    if len(content) < _WORTH_COMPRESSING_BYTES:
        return answer(content, json_length, None)
    encoding = body.choose_encoding(request.headers.get("accept-encoding", ""))
    return answer(await body.compress(content, encoding) if encoding else content, json_length, encoding)


def _understand(
    received: body.Body, interface: ModelInterface, settings: Settings
) -> tuple[InferRequest, list[WantedOutput], list[Item]]:
    """What a body asks for: the request, its outputs and its inputs."""
    wanted = (
        raw_request(interface, received.binary)
        if received.content is None
        else parse_request(body.parse_json(received.content), received.binary, interface, settings)
    )
    return wanted, choose_outputs(wanted, interface, settings.max_statistics_values), read_items(wanted.tensors, interface)


def _head(interface: ModelInterface, identity: str | None, outcomes: list[Outcome]) -> dict[str, Any]:
    head: dict[str, Any] = {"model_name": interface.manifest.name, "model_version": interface.manifest.version}
    if identity is not None:
        head["id"] = identity
    if cut := sum(outcome.truncated for outcome in outcomes):
        head["parameters"] = {"truncated_texts": cut}
    return head
