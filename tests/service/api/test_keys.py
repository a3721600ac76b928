import logging
from collections.abc import Iterator

import httpx
import pytest

from service.api.keys import Keys
from service.app import create_app
from service.errors import ForbiddenError, ServiceError, UnauthorizedError
from service.settings import Settings
from tests.conftest import SmallRepository, running_server

PLAIN, OTHER, ADMIN = "plain-key-1", "plain-key-2", "admin-key-3"
_OPEN = ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
_CLOSED = ["/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/models/text", "/v1/nowhere", "/v2", "/v2/models/text"]
_LOAD = "/v2/repository/models/text/load"


def settings_of(plain: str = "", admin: str = "", **others: object) -> Settings:
    """Settings as the environment gives them: keys with commas between them."""
    return Settings.model_validate({"api_keys": plain, "admin_api_keys": admin, **others})


@pytest.fixture(scope="module")
def closed(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A server with two plain keys and an admin key."""
    with running_server(settings_of(f"{PLAIN}, {OTHER}", ADMIN, model_repository=small_repository.folder)) as client:
        yield client


@pytest.mark.parametrize(
    ("plain", "admin", "presented", "administers", "expected"),
    [
        (PLAIN, "", None, False, UnauthorizedError),
        (PLAIN, "", "wrong", False, UnauthorizedError),
        (PLAIN, "", PLAIN, False, None),
        (PLAIN, "", PLAIN, True, None),
        (PLAIN, ADMIN, PLAIN, True, ForbiddenError),
        (PLAIN, ADMIN, ADMIN, True, None),
        (PLAIN, ADMIN, ADMIN, False, None),
        (PLAIN, ADMIN, "wrong", True, UnauthorizedError),
        ("", ADMIN, None, False, None),
        ("", ADMIN, None, True, UnauthorizedError),
        ("", ADMIN, ADMIN, True, None),
    ],
)
def test_what_each_key_opens(
    plain: str, admin: str, presented: str | None, administers: bool, expected: type[ServiceError] | None
) -> None:
    """Plain keys open all but administration, admin keys everything; without admin keys plain ones administer; without plain
    ones only administration is closed."""
    keys = Keys.of(settings_of(plain, admin))
    assert keys is not None
    headers = [] if presented is None else [(b"x-api-key", presented.encode())]
    if expected is None:
        keys.check(headers, administers=administers)
    else:
        with pytest.raises(expected):
            keys.check(headers, administers=administers)


def test_without_keys_there_is_nothing_to_check() -> None:
    """No keys in the settings, no check."""
    assert Keys.of(settings_of()) is None


def test_settings_do_not_show_keys() -> None:
    """Neither the keys nor the settings print a key."""
    settings = settings_of(PLAIN, ADMIN)
    shown = f"{settings!r} {settings} {settings.model_dump_json()} {Keys.of(settings)!r}"
    assert PLAIN not in shown
    assert ADMIN not in shown


@pytest.mark.parametrize("path", _OPEN)
def test_health_needs_no_key(closed: httpx.Client, path: str) -> None:
    """Orchestrators ask for health without a key, load balancers often by HEAD."""
    assert closed.get(path).status_code == 200
    head = closed.head(path)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", _CLOSED)
@pytest.mark.parametrize("key", [None, "wrong", PLAIN[:-1], PLAIN + "x", ""])
def test_everything_else_needs_one(closed: httpx.Client, path: str, key: str | None) -> None:
    """Every other path, known or not, answers 401 without a known key, and says how to send one; never a byte of what it guards."""
    answer = closed.get(path, headers={} if key is None else {"X-API-Key": key})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    message = error if path.startswith("/v2") else error["message"]
    assert "X-API-Key" in message
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": PLAIN},
        {"X-API-Key": OTHER},
        {"Authorization": f"Bearer {PLAIN}"},
        {"Authorization": f"bearer   {OTHER}"},
        {"Authorization": f"Bearer {ADMIN}"},
        {"Authorization": "Basic dTpw", "X-API-Key": PLAIN},
        {"Authorization": "Bearer of-a-proxy", "X-API-Key": PLAIN},
        {"Authorization": f"Bearer {PLAIN}", "X-API-Key": "wrong"},
    ],
)
def test_a_known_key_opens_the_api(closed: httpx.Client, headers: dict[str, str]) -> None:
    """Any known key, in either header, whatever the other header holds."""
    assert closed.get("/v1/models", headers=headers).status_code == 200
    answer = closed.post("/v1/models/text/predict", json={"inputs": "hello"}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("name", [b"X-API-Key", b"Authorization"])
@pytest.mark.parametrize(
    "value", [b"\xff\xfe", "clé".encode(), b"Bearer", b"Bearer \xe9\x80", b"Bearer a b c", b"a" * 5000, b"x\ty", b","]
)
def test_odd_header_values_are_just_wrong(closed: httpx.Client, name: bytes, value: bytes) -> None:
    """Bytes that are no text, empty and long values: 401, never 500."""
    assert closed.get("/v1/models", headers={name: value}).status_code == 401


@pytest.mark.parametrize("open_metrics", [False, True])
@pytest.mark.parametrize(("plain", "admin"), [(PLAIN, ADMIN), (PLAIN, ""), ("", ADMIN), ("", "")])
def test_the_api_pages_tell_what_asks_for_a_key(
    plain: str, admin: str, open_metrics: bool, small_repository: SmallRepository
) -> None:
    """The OpenAPI document names both headers, and 401 where a key is asked for; 403 where some known key does not do. Without
    keys it has nothing of all that."""
    settings = settings_of(plain, admin, model_repository=small_repository.folder, open_metrics=open_metrics)
    document = create_app(settings).openapi()
    schemes = document["components"].get("securitySchemes", {})
    ways = {(each["type"], each.get("scheme") or each["name"]) for each in schemes.values()}
    assert ways == ({("http", "bearer"), ("apiKey", "X-API-Key")} if plain or admin else set())
    for path, operations in document["paths"].items():
        administers = path.endswith(("/load", "/unload"))
        asked = (administers and bool(admin)) or (bool(plain) and path not in [*_OPEN, *(["/metrics"] if open_metrics else [])])
        for operation in operations.values():
            assert operation.get("security", []) == ([{name: []} for name in schemes] if asked else [])
            assert ("401" in operation["responses"]) == asked
            assert ("403" in operation["responses"]) == (administers and bool(plain and admin))


def test_administration_needs_an_admin_key(closed: httpx.Client) -> None:
    """With admin keys set, a plain key is refused 403 where models are loaded and unloaded; an admin key is not."""
    assert closed.post(_LOAD).status_code == 401
    refused = closed.post(_LOAD, headers={"X-API-Key": PLAIN})
    assert refused.status_code == 403
    assert isinstance(refused.json()["error"], str)
    assert closed.post(_LOAD, headers={"X-API-Key": ADMIN}).status_code not in {401, 403}


def test_metrics_can_be_opened(small_repository: SmallRepository) -> None:
    """With `open_metrics` Prometheus needs no key; the rest still does."""
    with running_server(settings_of(PLAIN, model_repository=small_repository.folder, open_metrics=True)) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_no_key_is_logged(closed: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a right nor a wrong key appears in the log of the service, at no level."""
    with caplog.at_level(logging.DEBUG):
        for key in (PLAIN, "a-wrong-key"):
            closed.get("/v1/models", headers={"X-API-Key": key})
            closed.post(_LOAD, headers={"Authorization": f"Bearer {key}"})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith(("normscope", "uvicorn"))]
    assert lines
    assert not [line for line in lines if PLAIN in line or "a-wrong-key" in line]


def test_a_browser_may_ask_whether_it_may_ask(small_repository: SmallRepository) -> None:
    """With `cors_origins`, a preflight passes without a key, for the origins that are named alone, and even a 401 can be read."""
    settings = settings_of(PLAIN, model_repository=small_repository.folder, cors_origins="https://page.example")
    headers = "x-api-key, content-type, last-event-id"
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    with running_server(settings) as client:
        for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
            answer = client.options("/v1/models/text/predict", headers={"Origin": origin, **preflight})
            assert answer.status_code == status
            assert (answer.headers.get("access-control-allow-origin") == origin) == (status == 200)
        refused = client.get("/v1/models", headers={"Origin": "https://page.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        assert client.options("/v1/models").status_code == 401  # no preflight


def test_browsers_of_other_origins_get_nothing_by_default(client: httpx.Client) -> None:
    """Without `cors_origins` no answer allows any origin."""
    answer = client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/models/text/predict", headers=preflight).status_code == 405
