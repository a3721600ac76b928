"""What the OpenAPI document says of API keys: how to send one, and where it is asked for. Nothing, where no keys are set."""

from typing import Any

from service.api.admission import administers, keyless
from service.api.answers import speaks_oip
from service.api.keys import Keys
from service.api.oip.schemas import OipError
from service.api.schemas import ErrorAnswer

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "`X-API-Key: KEY`"},
}


def document_keys(document: dict[str, Any], keys: Keys, *, open_metrics: bool) -> None:
    """Adds to an OpenAPI document the two ways to send a key, and to each operation that asks for one, 401 and perhaps 403.

    Args:
        document: is changed.
        keys: that are known.
        open_metrics: whether /metrics needs no key.
    """
    document["components"]["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        if path in keyless(open_metrics=open_metrics) or not keys.asks(administers=administers(path)):
            continue
        error = OipError if speaks_oip(path) else ErrorAnswer
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error.__name__}"}}}
        challenge = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
        for operation in operations.values():
            operation["security"] = [{name: []} for name in _SCHEMES]
            responses = operation["responses"]
            responses["401"] = {"description": "No API key, or one that is not known", "content": content, "headers": challenge}
            if keys.admin and keys.plain and administers(path):
                responses["403"] = {"description": "An API key that may not load or unload models", "content": content}
            operation["responses"] = dict(sorted(responses.items()))
