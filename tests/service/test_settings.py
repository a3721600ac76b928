"""Settings: what no part of the service could use is refused when they are read."""

import pytest
from pydantic import ValidationError

from service.settings import Settings, explain

_TIMES = [name for name, field in Settings.model_fields.items() if name.endswith(("_s", "_ms")) and field.annotation is float]


@pytest.mark.parametrize("name", _TIMES)
@pytest.mark.parametrize("value", ["inf", "1e300", "-1", "nan"])
def test_times_that_no_timer_takes(name: str, value: str) -> None:
    """Infinity, or a number of seconds that the clock of the process cannot hold, would fail every request later on."""
    with pytest.raises(ValidationError) as error:
        Settings.model_validate({name: value})
    assert explain(error.value).startswith(f"{name}: Input should be ")
    assert f"(given: {value!r})" in explain(error.value)


def test_all_times_are_looked_at() -> None:
    """Else the test above would test nothing."""
    assert {"request_timeout_s", "drain_delay_s", "max_queue_delay_ms", "header_timeout_s"} <= set(_TIMES)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files write `${X:-}`; so the statistics stay in memory where an image names a folder for them."""
    for name in ("GRPC_PORT", "DATA_DIR", "DATABASE_URL", "ALERT_WEBHOOK", "API_KEYS", "THREADS"):
        monkeypatch.setenv(f"NORMSCOPE_{name}", "")
    assert Settings() == Settings.model_construct()


def test_threads_that_no_machine_has() -> None:
    """They would be started one by one until the system refuses."""
    with pytest.raises(ValidationError, match="threads"):
        Settings(threads=1_000_000)


@pytest.mark.parametrize("name", ["max_inputs", "max_batch_size", "max_body_bytes", "max_queue"])
def test_numbers_that_a_protocol_cannot_hold(name: str) -> None:
    """They would fail the requests that tell of them, or the start of gRPC."""
    with pytest.raises(ValidationError, match=name):
        Settings.model_validate({name: 2**31})
