"""ModelInfer: a request in, the reply with the outputs that it asks for out; the steps are those of the route under /v2."""

from anyio.to_thread import run_sync
from google.protobuf.message import Message

from service.api.oip.inputs import read_items
from service.api.oip.interface import ModelInterface
from service.api.oip.outputs import WantedOutput, choose_outputs, make_outputs, takes_long
from service.api.oip.request import InferRequest, parse_request
from service.engine.inputs import Item
from service.grpc.messages import InferenceRequest, make_inference, read_inference
from service.settings import Settings
from service.state import State

_ASIDE_BYTES = 1 << 16  # of a message, from here on reading its tensors could hold up the event loop


async def infer(state: State, request: InferenceRequest, size: int, time_left_s: float | None) -> Message:
    """Runs the model on the inputs of a request.

    Args:
        state: of the app.
        request: of the generated class.
        size: bytes of its message.
        time_left_s: until the client gives up, None if it does not; the work is dropped then.

    Raises:
        ServiceError: as the route under /v2.
    """
    with state.repository.reserve(request.model_name, request.model_version or None) as served:
        interface = ModelInterface.of(served)
        wanted, chosen, items = (
            await run_sync(_understand, request, interface, state.settings, limiter=state.reading)
            if size >= _ASIDE_BYTES
            else _understand(request, interface, state.settings)
        )
        outcomes, timing = await served.predict(
            items,
            statistics=any(output.statistic is not None for output in chosen),
            channels=any(output.by_channel for output in chosen),
            timeout_s=min((limit for limit in (wanted.timeout_s, time_left_s) if limit is not None), default=None),
        )
    state.observe_inference(request.model_name, timing)

    def encode() -> Message:
        cut = sum(outcome.truncated for outcome in outcomes)
        manifest = interface.manifest
        parameters = {"truncated_texts": cut} if cut else {}
        return make_inference(manifest.name, manifest.version, request.id, parameters, make_outputs(chosen, outcomes, interface))

    return await state.encode(encode) if takes_long(chosen, outcomes, interface) else encode()


def _understand(
    request: InferenceRequest, interface: ModelInterface, settings: Settings
) -> tuple[InferRequest, list[WantedOutput], list[Item]]:
    wanted = parse_request(*read_inference(request), interface, settings)
    return wanted, choose_outputs(wanted, interface, settings.max_statistics_values), read_items(wanted.tensors, interface)
