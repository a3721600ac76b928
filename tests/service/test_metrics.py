"""/metrics as Prometheus reads it: which series there are, and that they count what has happened."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.graph_import import ImportOptions, import_graph
from service.settings import Settings
from tests.conftest import running_server
from tests.graphs import WIDTH, block, save
from tests.held import held_runs

_INFER = "/v2/models/{model}/infer"
_OF_VERSION = {"model": "block", "version": "1"}
_TYPES = {
    "normscope_requests": "counter",
    "normscope_request_seconds": "histogram",
    "normscope_inference_seconds": "histogram",
    "normscope_queue_seconds": "histogram",
    "normscope_batch_size": "histogram",
    "normscope_queue_depth": "gauge",
    "normscope_model_ready": "gauge",
    "process_cpu_seconds": "counter",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_open_fds": "gauge",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the small model `block`."""
    import_graph(save(block(), tmp_path / "block.onnx"), tmp_path / "repository" / "block" / "1", ImportOptions())
    return tmp_path / "repository"


@pytest.fixture
def client(repository: Path) -> Iterator[httpx.Client]:
    """A client of a server of that model."""
    with running_server(Settings(model_repository=repository)) as opened:
        yield opened


def _infer(client: httpx.Client, rows: int, model: str = "block", datatype: str = "FP32") -> int:
    """The status of one request with so many rows."""
    tensor = {"name": "x", "datatype": datatype, "shape": [rows, 3, WIDTH], "data": [1] * (rows * 3 * WIDTH)}
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]}).status_code


def _types(client: httpx.Client) -> dict[str, str]:
    return {family.name: family.type for family in text_string_to_metric_families(client.get("/metrics").text)}


def _values(client: httpx.Client, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
    """All samples of a series that have these labels."""
    samples = [sample for family in text_string_to_metric_families(client.get("/metrics").text) for sample in family.samples]
    return [(each.labels, each.value) for each in samples if each.name == name and labels.items() <= each.labels.items()]


def _value(client: httpx.Client, name: str, **labels: Any) -> float:
    """The only sample with these labels."""
    ((found, value),) = _values(client, name, **labels)
    assert found == labels
    return value


def test_names_and_types(client: httpx.Client) -> None:
    """Dashboards and alarms are written for these names."""
    assert _infer(client, 1) == 200
    types = _types(client)
    assert {name: types.get(name) for name in _TYPES} == _TYPES


def test_requests_are_counted_by_route_model_and_status(client: httpx.Client) -> None:
    """Each once, also those that fail; a model that is not served gets no series of its own."""
    assert [_infer(client, 2) for _ in range(3)] == [200] * 3
    assert _infer(client, 1, datatype="INT64") == 400
    assert _infer(client, 1, model="nobody") == 404
    of_route = {"method": "POST", "route": _INFER}
    assert _value(client, "normscope_requests_total", **of_route, model="block", status="200") == 3
    assert _value(client, "normscope_requests_total", **of_route, model="block", status="400") == 1
    assert _value(client, "normscope_requests_total", **of_route, model="", status="404") == 1
    assert _value(client, "normscope_request_seconds_count", **of_route, model="block") == 4


def test_latency_is_made_of_queue_and_inference(client: httpx.Client) -> None:
    """Requests that ran count in all three histograms, and took as long at least as their queue and their runs."""
    assert [_infer(client, 2) for _ in range(5)] == [200] * 5
    for name in ("normscope_inference_seconds", "normscope_queue_seconds"):
        assert _value(client, f"{name}_count", model="block") == 5
    parts = [_value(client, f"normscope_{part}_seconds_sum", model="block") for part in ("inference", "queue")]
    assert min(parts) > 0
    whole = _value(client, "normscope_request_seconds_sum", method="POST", route=_INFER, model="block")
    assert whole >= sum(parts)


@pytest.mark.parametrize("name", ["normscope_request_seconds", "normscope_inference_seconds", "normscope_queue_seconds"])
def test_buckets_are_cumulative(client: httpx.Client, name: str) -> None:
    """From a millisecond to ten seconds; the last holds all."""
    assert [_infer(client, 1) for _ in range(4)] == [200] * 4
    buckets = _values(client, f"{name}_bucket", model="block")
    limits = [float(labels["le"]) for labels, _ in buckets]
    counts = [count for _, count in buckets]
    assert limits == sorted(limits)
    assert (limits[0], limits[-2], limits[-1]) == (0.001, 10, inf)
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_sizes_of_batches(client: httpx.Client) -> None:
    """The histogram counts runs, its sum is the number of inputs; warming up is not among them."""
    assert _value(client, "normscope_batch_size_sum", **_OF_VERSION) == 0
    assert [_infer(client, rows) for rows in (1, 2, 3)] == [200] * 3
    assert _value(client, "normscope_batch_size_sum", **_OF_VERSION) == 6
    runs = _value(client, "normscope_batch_size_count", **_OF_VERSION)
    assert 3 <= runs <= 6
    assert _value(client, "normscope_batch_size_bucket", **_OF_VERSION, le="+Inf") == runs


def test_the_depth_of_the_queue(repository: Path) -> None:
    """While one of three requests runs, alone, two inputs wait; when all are answered, none does."""
    with held_runs() as held:
        settings = Settings(model_repository=repository, threads=1, max_batch_size=1)
        with running_server(settings) as client, ThreadPoolExecutor(3) as clients:
            in_hand = [clients.submit(_infer, client, 1) for _ in range(3)]
            held.began.acquire()
            while _value(client, "normscope_queue_depth", **_OF_VERSION) != 2:
                pass
            held.release(3)
            assert [each.result() for each in in_hand] == [200] * 3
            assert _value(client, "normscope_queue_depth", **_OF_VERSION) == 0


def test_models_are_ready_or_not(client: httpx.Client) -> None:
    """1 for a version that answers; 0 for one that was unloaded, which has no queue any more."""
    assert _value(client, "normscope_model_ready", **_OF_VERSION) == 1
    assert client.post("/v2/repository/models/block/unload").status_code == 200
    assert _value(client, "normscope_model_ready", **_OF_VERSION) == 0
    assert _values(client, "normscope_queue_depth") == []


def test_figures_of_the_process(client: httpx.Client) -> None:
    """CPU time and memory are those of a process that has loaded a model."""
    assert _value(client, "process_cpu_seconds_total") > 0
    assert _value(client, "process_resident_memory_bytes") > 10e6
    assert _value(client, "process_open_fds") > 3
