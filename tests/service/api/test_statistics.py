"""The statistics over traffic, asked from a real server."""

import csv
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pyarrow.ipc
import pyarrow.parquet
import pytest

from service.api import statistics
from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.held import held_calls
from tests.networks import SENTENCES

URL = "/v1/models/text/statistics"
PREDICT = "/v1/models/text/predict?statistics=summary"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
SIDES = {"layer_norm": ["before", "after"], "residual_add": ["identity", "residual", "sum"]}


def settings_of(repository: SmallRepository, **changed: object) -> Settings:
    """Everything is sampled."""
    return Settings.model_validate({"model_repository": repository.folder, "statistics_sample": 1, **changed})


@pytest.fixture(scope="module")
def busy(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A client of a server that has answered one request for each of the sentences."""
    with running_server(settings_of(small_repository)) as client:
        for text in SENTENCES:
            client.post(PREDICT, json={"inputs": text}).raise_for_status()
        yield client


def test_long_queries_leave_threads_to_predictions(small_repository: SmallRepository) -> None:
    """While more of them are in hand than the framework has threads, a prediction with statistics is made and described."""
    with running_server(settings_of(small_repository)) as client, held_calls(statistics, "totals") as held:
        with ThreadPoolExecutor(50) as pool:
            queries = [pool.submit(client.get, URL) for _ in range(50)]
            while held.began.acquire(timeout=1):
                pass  # until no more of them begin
            assert client.post(PREDICT, json={"inputs": "hello"}).status_code == 200
            held.release(50)
        assert {query.result().status_code for query in queries} == {200}


def test_totals_are_pooled_over_the_requests(busy: httpx.Client) -> None:
    """Each side over traffic is what its own definition makes of the statistics that the single answers carried."""
    single = [busy.post(PREDICT, json={"inputs": text}).json()["predictions"][0]["layers"] for text in SENTENCES]
    answer = busy.get(URL).json()
    assert answer["requests"] == answer["sampled"] >= len(SENTENCES)
    assert answer["complete"]
    assert answer["series"] is None
    for i, layer in enumerate(answer["layers"]):
        assert (layer["layer"], layer["kind"]) == (single[0][i]["layer"], single[0][i]["kind"])
        for side in SIDES[layer["kind"]]:
            found, each = layer[side], [sample[i][side] for sample in single]  # every sentence equally often
            counts = np.array([one["count"] for one in each])
            mean = np.average([one["mean"] for one in each], weights=counts)
            var = np.average([one["var"] + (one["mean"] - mean) ** 2 for one in each], weights=counts)
            assert found["count"] * len(SENTENCES) == counts.sum() * answer["sampled"]
            assert found["mean"] == pytest.approx(mean, abs=1e-5 * found["std"])
            assert found["var"] == pytest.approx(var, rel=1e-4)
            assert (found["min"], found["max"]) == (min(one["min"] for one in each), max(one["max"] for one in each))
            assert found["zeros"] == pytest.approx(np.average([one["zeros"] for one in each], weights=counts), abs=1e-6)
            assert (found["nonfinite"], found["nonfinite_samples"]) == (0, 0)
            for name, of in {"l2": "l2", "request_mean": "mean", "request_std": "std"}.items():
                values = np.array([one[of] for one in each])
                expected = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
                assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        if layer["kind"] == "residual_add":
            for name in ("residual_ratio", "cosine"):
                assert layer[name]["mean"] == pytest.approx(np.mean([sample[i][name] for sample in single]), abs=1e-5)


def test_a_series_adds_up_to_the_totals(busy: httpx.Client) -> None:
    """With a step there is a list in place of each number; its counts add up, its moments lie in the same order."""
    answer = busy.get(URL, params={"step": "1m", "since": "-1h"}).json()
    series = answer["series"]
    assert series["step_s"] == 60
    assert sum(series["requests"]) == answer["requests"] == sum(series["sampled"])
    assert series["start"] == sorted(series["start"])
    for total, steps in zip(answer["layers"], series["layers"], strict=True):
        side = SIDES[total["kind"]][0]
        assert sum(steps[side]["count"]) == total[side]["count"]
        assert np.average(steps[side]["mean"], weights=steps[side]["count"]) == pytest.approx(total[side]["mean"])


def test_layers_sides_and_quantiles_are_chosen(busy: httpx.Client) -> None:
    """Only the layers and the side that were asked for are there, in the order of execution, with quantiles at the ranks."""
    names = [layer["layer"] for layer in busy.get("/v1/models/text/layers").json()["layers"]]
    answer = busy.get(URL, params={"layers": f"{names[2]},{names[0]}", "quantiles": "1,0,0.5"}).json()
    assert [layer["layer"] for layer in answer["layers"]] == [names[0], names[2]]
    assert answer["quantiles"] == [0, 0.5, 1]
    l2 = answer["layers"][0]["before"]["l2"]
    assert (l2["quantiles"][0], l2["quantiles"][2]) == pytest.approx((l2["min"], l2["max"]), rel=1e-6)
    assert l2["min"] <= l2["quantiles"][1] <= l2["max"]
    after = busy.get(URL, params={"side": "after"}).json()["layers"]
    assert all(set(layer) <= {"layer", "kind", "after", "residual_ratio", "cosine"} for layer in after)


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        ("-1h", "now", True),
        ("2020-01-01", "now", True),
        ("2020-01-01T10:00:00Z", "2020-01-02T10:00:00+02:00", False),
        ("-2d", "-1d", False),
        ("-1w", "-90s", False),
    ],
)
def test_times_are_iso_or_relative(busy: httpx.Client, since: str, until: str, found: bool) -> None:
    """Both forms name the stretch of time that is answered for."""
    answer = busy.get(URL, params={"since": since, "until": until, "step": "1h"}).json()
    assert (answer["requests"] > 0) is found
    if not found:
        assert answer["layers"][0]["before"]["mean"] is None
        assert answer["series"]["start"] == []


def test_the_answer_names_the_time_that_it_covers(busy: httpx.Client) -> None:
    """Both ends are widened to whole windows, in JSON and in a table."""
    params = {"since": "2026-05-04T10:00:59Z", "until": "2026-05-04T12:30:01Z", "layers": "embedding_norm"}
    covered = ("2026-05-04T10:00:00Z", "2026-05-04T12:31:00Z")
    answer = busy.get(URL, params=params).json()
    assert (answer["since"], answer["until"]) == covered
    rows = list(csv.DictReader(io.StringIO(busy.get(URL, params=params, headers={"Accept": "text/csv"}).text)))
    assert {(row["start"], row["end"]) for row in rows} == {covered}
    compared = busy.get(f"{URL}/compare", params={"a": f"{params['since']}..{params['until']}", "b": "-1h..now"}).json()
    assert (compared["a"]["since"], compared["a"]["until"]) == covered


@pytest.mark.parametrize(
    ("params", "status", "says"),
    [
        ({"since": "yesterday"}, 422, "since: 'yesterday' is no time"),
        ({"since": "-1x"}, 422, "since: '-1x' is no time"),
        ({"since": "-999999999w"}, 422, "is no time"),
        ({"since": "now", "until": "-1h"}, 422, "now is not before -1h"),
        ({"until": "+1h"}, 422, "until: '+1h' is no time"),
        ({"step": "90s"}, 422, "no multiple of a window of 60 s"),
        ({"step": "0m"}, 422, "is no duration"),
        ({"step": "1 year"}, 422, "is no duration"),
        ({"step": "999999999w"}, 422, "longer than a year"),
        ({"since": "0001-01-01"}, 422, "is no time"),
        ({"until": "9999-12-31T23:59:59-12:00"}, 422, "is no time"),
        ({"side": "middle"}, 422, "side"),
        ({"side": "identity", "layers": "embedding_norm"}, 422, "has the side identity"),
        ({"quantiles": "0.5,x"}, 422, "are no ranks"),
        ({"quantiles": "nan"}, 422, "are no ranks"),
        ({"quantiles": "1.5"}, 422, "are no ranks"),
        ({"layers": "nothing"}, 404, "no layer of text matches 'nothing'"),
        ({"version": "9"}, 404, "no model is named 'text/9'"),
        ({"stepp": "1m"}, 422, "stepp"),
    ],
)
def test_what_cannot_be_answered_is_refused(busy: httpx.Client, params: dict[str, str], status: int, says: str) -> None:
    """Each parameter that makes no sense gets a 4xx that names it and the way out."""
    answer = busy.get(URL, params=params)
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_an_answer_may_not_be_larger_than_the_limit(small_repository: SmallRepository) -> None:
    """What would hold more statistics than the setting is refused, with the setting's name."""
    with running_server(settings_of(small_repository, max_statistics_values=100)) as client:
        client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
        answers = [client.get(URL), client.get(f"{URL}/channels", params={"layers": "*"})]
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["error"]["limit"] == 100
        assert "NORMSCOPE_MAX_STATISTICS_VALUES" in answer.text


def test_csv_holds_the_same_numbers(busy: httpx.Client) -> None:
    """One row for each step, layer and side; the numbers are those of the JSON, empty where it says null."""
    params = {"step": "1h", "quantiles": "0.5"}
    answer = busy.get(URL, params=params, headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    series = busy.get(URL, params=params).json()["series"]
    expected = [
        (start, layer, side, i)
        for i, start in enumerate(series["start"])
        for layer in series["layers"]
        for side in SIDES[layer["kind"]]
    ]
    assert len(rows) == len(expected)
    for row, (start, layer, side, i) in zip(rows, expected, strict=True):
        assert (row["start"], row["layer"], row["side"]) == (start, layer["layer"], side)
        assert float(row["mean"]) == layer[side]["mean"][i]
        assert float(row["l2_q0.5"]) == layer[side]["l2"]["quantiles"][i][0]
        cosine = layer["cosine"]["mean"][i] if side == "residual" else None
        assert row["cosine_mean"] == ("" if cosine is None else str(cosine))


def test_arrow_and_parquet_hold_the_same_table(busy: httpx.Client) -> None:
    """Both are read by pyarrow with times as times and undefined numbers as null; weights in Accept decide."""
    stream = busy.get(URL, headers={"Accept": f"text/csv;q=0.5, {ARROW}"})
    parquet = busy.get(URL, headers={"Accept": PARQUET})
    assert (stream.headers["Content-Type"], parquet.headers["Content-Type"]) == (ARROW, PARQUET)
    tables = [
        pyarrow.ipc.open_stream(stream.content).read_all(),
        pyarrow.parquet.read_table(io.BytesIO(parquet.content)),
    ]
    rows = list(csv.DictReader(io.StringIO(busy.get(URL, headers={"Accept": "text/csv"}).text)))
    for table in tables:
        assert table.num_rows == len(rows)
        assert table.column_names == list(rows[0])
        assert table["mean"].to_pylist() == [float(row["mean"]) for row in rows]
        assert str(table.schema.field("start").type) == "timestamp[us, tz=UTC]"
        assert table["cosine_mean"].null_count == sum(row["cosine_mean"] == "" for row in rows) > 0


def test_channels_are_pooled_over_the_requests(small_repository: SmallRepository) -> None:
    """Each channel over traffic is what the answer to the request that was sampled with its channels said of it; nothing is said
    of another time.
    """
    with running_server(settings_of(small_repository)) as client:
        answer = client.post("/v1/models/text/predict?statistics=channels", json={"inputs": SENTENCES[0]}).json()
        params = {"layers": "embedding_norm,*.add*", "since": "-1m"}
        found = client.get(f"{URL}/channels", params=params).json()
        earlier = client.get(f"{URL}/channels", params={**params, "since": "-3d", "until": "-2d", "side": "residual"}).json()
        before = client.get(f"{URL}/channels", params={"layers": "embedding_norm", "side": "before"}).json()
    assert (found["sampled"], found["complete"]) == (1, True)
    assert all(found[end].endswith(":00:00Z") for end in ("since", "until"))
    single = {layer["layer"]: layer for layer in answer["predictions"][0]["layers"]}
    assert {layer["kind"] for layer in found["layers"]} == {"layer_norm", "residual_add"}
    for layer in found["layers"]:
        for side in SIDES[layer["kind"]]:
            expected = single[layer["layer"]][side]
            assert sum(layer[side]["count"]) == expected["count"]
            for name, by_channel in expected["channels"].items():
                if name != "l2":
                    assert layer[side][name] == pytest.approx(by_channel, rel=1e-5, abs=1e-6), (layer["layer"], side, name)
    assert set(before["layers"][0]) == {"layer", "kind", "before"}
    assert earlier["sampled"] == 0
    assert {tuple(layer["residual"]["mean"]) for layer in earlier["layers"] if "residual" in layer} == {()}


@pytest.mark.parametrize(
    ("params", "status", "says"),
    [
        ({}, 422, "layers"),
        ({"layers": "nothing"}, 404, "no layer of text matches 'nothing'"),
        ({"layers": "*", "since": "yesterday"}, 422, "since: 'yesterday' is no time"),
        ({"layers": "embedding_norm", "side": "sum"}, 422, "has the side sum"),
    ],
)
def test_channels_that_cannot_be_answered_are_refused(busy: httpx.Client, params: dict[str, str], status: int, says: str) -> None:
    """A 4xx that names the parameter and the way out."""
    answer = busy.get(f"{URL}/channels", params=params)
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_tables_without_rows_are_tables(busy: httpx.Client) -> None:
    """A series of a time without traffic has its columns and no rows, in every form."""
    params = {"since": "-3d", "until": "-2d", "step": "1h", "quantiles": "0.5"}
    text = busy.get(URL, params=params, headers={"Accept": "text/csv"}).text
    table = pyarrow.ipc.open_stream(busy.get(URL, params=params, headers={"Accept": ARROW}).content).read_all()
    assert len(text.splitlines()) == 1
    assert (table.num_rows, table.column_names) == (0, text.strip().split(","))


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0"])
def test_a_form_that_is_not_offered_is_406(busy: httpx.Client, accept: str) -> None:
    """The answer lists what is offered."""
    answer = busy.get(URL, headers={"Accept": accept})
    assert answer.status_code == 406
    assert "text/csv" in answer.text


def test_without_the_extra_arrow_is_406(busy: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyarrow is not installed the answer names the extra; JSON and CSV go on."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for accept in (ARROW, PARQUET):
        answer = busy.get(URL, headers={"Accept": accept})
        assert answer.status_code == 406
        assert "normscope[arrow]" in answer.text
    assert busy.get(URL, headers={"Accept": "text/csv"}).status_code == 200


def test_statistics_survive_a_restart(small_repository: SmallRepository, tmp_path: Path) -> None:
    """What was counted before the service stopped is there after it has started again, each request once."""
    settings = settings_of(small_repository, data_dir=tmp_path)
    answers = []
    for served in (1, 2):
        with running_server(settings) as client:
            client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
            answers.append(client.get(URL).json())
        assert (answers[-1]["requests"], answers[-1]["sampled"], answers[-1]["complete"]) == (served, served, True)
    first, second = (answer["layers"][0]["before"] for answer in answers)
    assert second["count"] == 2 * first["count"]
    assert second["mean"] == pytest.approx(first["mean"])


def test_no_sampling_leaves_only_the_count(small_repository: SmallRepository) -> None:
    """With a share of 0 requests are counted and no statistics taken."""
    with running_server(settings_of(small_repository, statistics_sample=0)) as client:
        client.post("/v1/models/text/predict", json={"inputs": SENTENCES[:3]}).raise_for_status()
        answer = client.get(URL).json()
    assert (answer["requests"], answer["sampled"]) == (3, 0)
    assert answer["layers"][0]["before"]["mean"] is None
