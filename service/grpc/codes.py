"""Errors -> gRPC status codes, by the table of the same protocol over HTTP; the one place that knows codes."""

import logging
from collections.abc import Mapping

from grpc import StatusCode

from service.errors import OIP_STATUSES

_log = logging.getLogger("normscope")
_MAX_TEXT = 500
_OF_STATUS: Mapping[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    431: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
CODES: Mapping[type[Exception], StatusCode] = {kind: _OF_STATUS[status] for kind, status in OIP_STATUSES.items()}
"""Exception -> code; what is not in it, nor derived from what is, is INTERNAL."""


def explain(method: str, error: Exception) -> tuple[StatusCode, str]:
    """The code and the text of any error; an unexpected one is logged, its text stays inside.

    The text travels in the trailing metadata, percent-encoded, of which clients take 8 KiB by default: a long one is cut.
    """
    for kind in type(error).__mro__:
        if kind in CODES:
            text = str(error)
            return CODES[kind], text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
    _log.error("gRPC %s failed", method, exc_info=error)
    return StatusCode.INTERNAL, "the service failed; this is a fault of ours; report it with the log of the service"
