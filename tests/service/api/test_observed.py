import logging
from collections.abc import Iterator

import httpx
import pytest

from service.app import create_app
from service.logs import FIELDS
from service.settings import Settings
from tests.conftest import SmallRepository, running_app

_SECRET = "the-inner-secret"


@pytest.fixture(scope="module")
def broken(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A server with two routes that fail, one of them within the open protocol."""

    def fail() -> None:
        raise RuntimeError(_SECRET)

    app = create_app(Settings(model_repository=small_repository.folder))
    app.add_api_route("/v1/fail", fail)
    app.add_api_route("/v2/fail", fail)
    with running_app(app) as client:
        yield client


_ROUTES = [("GET", "/livez", 200), ("GET", "/v1/models", 200), ("GET", "/nowhere", 404), ("GET", "/v1/models/none", 404)]
_ROUTES += [("POST", "/livez", 405), ("POST", "/v1/models/text/predict", 415), ("GET", "/v1/fail", 500), ("GET", "/v2/fail", 500)]


@pytest.mark.parametrize(("method", "path", "status"), _ROUTES)
def test_every_answer_has_the_id_that_was_sent(broken: httpx.Client, method: str, path: str, status: int) -> None:
    """Success or error of any kind: the answer carries the X-Request-ID of the request."""
    answer = broken.request(method, path, headers={"X-Request-ID": "order 66 / a"})
    assert answer.status_code == status
    assert answer.headers.get_list("x-request-id") == ["order 66 / a"]


@pytest.mark.parametrize("sent", [None, b"", b"a" * 129, b"caf\xe9", b"a\tb"])
def test_an_id_is_made_where_none_that_is_sane_was_sent(broken: httpx.Client, sent: bytes | None) -> None:
    """No id, or one that is empty, longer than 128 characters or not printable ASCII: a new one, other for each request."""
    headers = {} if sent is None else {b"X-Request-ID": sent}
    made = [broken.get("/livez", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(one.isalnum() and len(one) == 32 for one in made)


@pytest.mark.parametrize("path", ["/v1/fail", "/v2/fail"])
def test_an_error_shows_nothing_of_the_inside(broken: httpx.Client, caplog: pytest.LogCaptureFixture, path: str) -> None:
    """A fault of the service is 500 in the usual shape, without the text of the exception, its type, a traceback or a path of a
    file; the log has it all, once."""
    answer = broken.get(path)
    assert answer.status_code == 500
    for inside in (_SECRET, "RuntimeError", "Traceback", ".py"):
        assert inside not in answer.text
    error = answer.json()["error"]
    assert isinstance(error, str) if path.startswith("/v2") else error["code"] == "internal"
    faults = [record for record in caplog.records if record.exc_info]
    assert len(faults) == 1
    assert faults[0].exc_info is not None
    assert str(faults[0].exc_info[1]) == _SECRET


def test_the_access_log_tells_what_needs_attention(broken: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """One record a request, with its route and never its path: 5xx at error, 4xx at info, the rest at debug."""
    fence = "/readyz"  # an answer may arrive before its record is written, but not after the next request has been read
    with caplog.at_level(logging.DEBUG, logger="normscope.access"):
        for path in (fence, "/v1/models/text", "/v1/models/none", "/nowhere", "/v1/fail", "/livez", fence):
            broken.get(path)
    access = [record for record in caplog.records if record.name == "normscope.access"]
    first, *_ = (i for i, record in enumerate(access) if getattr(record, FIELDS)["route"] == fence)
    records = [record for record in access[first:] if getattr(record, FIELDS)["route"] != fence]
    told = [
        (record.levelname, *(getattr(record, FIELDS)[name] for name in ("method", "route", "model", "status")))
        for record in records
    ]
    assert told == [
        ("DEBUG", "GET", "/v1/models/{model}", "text", 200),
        ("INFO", "GET", "/v1/models/{model}", "", 404),
        ("INFO", "GET", "(none)", "", 404),
        ("ERROR", "GET", "/v1/fail", "", 500),
        ("DEBUG", "GET", "/livez", "", 200),
    ]
    assert all(getattr(record, FIELDS)["ms"] > 0 for record in records)
