"""Statistics over traffic as the API shows them: a period in, JSON objects or the columns of one long table out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.artifact import Layer, Manifest
from models.statistics.moments import Floats
from models.statistics.request_values import ADD_VALUES
from service.api.layers import choose_layers
from service.api.timerange import iso
from service.errors import InvalidRequestError, TooManyValuesError
from service.statistics.columns import side_columns, value_columns
from service.statistics.history import Period
from service.statistics.series import Series
from service.statistics.window import WindowMoments

_PER_SIDE = {"request_mean": "mean", "request_std": "std", "l2": "l2"}
_COUNTS = ("count", "nonfinite", "nonfinite_samples")
_NUMBERS_PER_SIDE = 9 + 4 * 3
Columns = dict[str, list[str] | NDArray[Any]]


@dataclass(frozen=True)
class Choice:
    """What of a model is shown.

    Attributes:
        layers: in the order of execution.
        side: this one alone; None for all.
        ranks: of the quantiles, 0..1.
    """

    layers: Sequence[Layer]
    side: str | None
    ranks: Sequence[float]

    @classmethod
    def of(cls, manifest: Manifest, layers: str, side: str | None, ranks: Sequence[float] = ()) -> Self:
        """What a request names.

        Raises:
            UnknownLayerError: no layer matches.
            InvalidRequestError: no layer that matches has the side.
        """
        choice = cls(choose_layers(manifest.layers, layers, manifest.name), side, ranks)
        if side is not None and not choice.rows:
            raise InvalidRequestError(
                f"side: no layer that matches {layers!r} has the side {side}",
                value=side,
                limit=sorted({each for layer in choice.layers for each in layer.tensors}),
                remedy="choose one of these sides, or other layers",
            )
        return choice

    def sides(self, layer: Layer) -> list[str]:
        return [side for side in layer.tensors if self.side in (None, side)]

    @property
    def rows(self) -> list[tuple[Layer, str]]:
        return [(layer, side) for layer in self.layers for side in self.sides(layer)]

    def quantities(self, series: Series) -> list[int]:
        """The columns of all per-request values that are shown, in the order of `names`."""
        row_of, add_of = series.layout.row_of, series.layout.add_of
        found = []
        for layer in self.layers:
            for side in self.sides(layer):
                found += [series.value_of(name, row_of[layer.layer, side]) for name in _PER_SIDE.values()]
            if layer.layer in add_of:
                found += [series.value_of(name, add_of[layer.layer]) for name in ADD_VALUES]
        return found

    def names(self) -> list[tuple[str, str | None, str]]:
        """Layer, side and statistic of each of these."""
        found: list[tuple[str, str | None, str]] = []
        for layer in self.layers:
            found += [(layer.layer, side, name) for side in self.sides(layer) for name in _PER_SIDE]
            if layer.kind == "residual_add":
                found += [(layer.layer, None, name) for name in ADD_VALUES]
        return found

    def check_size(self, steps: int, limit: int) -> None:
        """
        Raises:
            TooManyValuesError: the answer would hold more numbers than `limit`.
        """
        numbers = (steps + 1) * len(self.rows) * (_NUMBERS_PER_SIDE + len(_PER_SIDE) * len(self.ranks))
        TooManyValuesError.check(numbers, limit, "choose fewer layers or a longer step")


def totals(period: Period, choice: Choice) -> list[dict[str, Any]]:
    """One object for each layer."""
    quantiles = None
    if choice.ranks:
        quantiles = period.quantiles(choice.quantities(period.series), choice.ranks)[None]
    window = period.total()
    one = WindowMoments.from_bytes([window.to_bytes()], period.series.sides, period.series.adds)
    return _layers(one, quantiles, period.series, choice, lambda column: column.tolist()[0])


def series(period: Period, choice: Choice, step_s: int) -> dict[str, Any]:
    """The same with a list in place of each number, one item for each step that has windows."""
    steps = period.steps(step_s)
    shown: dict[str, Any] = {
        "start": [iso(step.start) for step in steps],
        "end": [iso(step.end) for step in steps],
        "requests": [step.requests for step in steps],
        "sampled": [step.sampled for step in steps],
        "layers": [],
    }
    if steps:
        quantiles = None
        if choice.ranks:
            quantiles = period.quantiles_by(steps, choice.quantities(period.series), choice.ranks)
        shown["layers"] = _layers(period.pooled_by(steps), quantiles, period.series, choice, lambda column: column.tolist())
    return shown


def _layers(
    window: WindowMoments, quantiles: Floats | None, series: Series, choice: Choice, show: Callable[[Floats], Any]
) -> list[dict[str, Any]]:
    """window: fields (T, ...); quantiles (T, chosen quantities, ranks); `show` turns a column (T,) or (T, ranks) into JSON."""
    elements, values = side_columns(window), value_columns(window.values)
    elements |= {name: elements[name].astype(np.int64) for name in _COUNTS}
    of_quantity = {q: i for i, q in enumerate(choice.quantities(series))}

    def value(quantity: int) -> dict[str, Any]:
        shown = {name: show(column[:, quantity]) for name, column in values.items()}
        if quantiles is not None:
            shown["quantiles"] = show(quantiles[:, of_quantity[quantity]])
        return shown

    described = []
    for layer in choice.layers:
        entry: dict[str, Any] = {"layer": layer.layer, "kind": layer.kind}
        for side in choice.sides(layer):
            row = series.layout.row_of[layer.layer, side]
            entry[side] = {name: show(column[:, row]) for name, column in elements.items()}
            entry[side] |= {name: value(series.value_of(of, row)) for name, of in _PER_SIDE.items()}
        if (add := series.layout.add_of.get(layer.layer)) is not None:
            entry |= {name: value(series.value_of(name, add)) for name in ADD_VALUES}
        described.append(entry)
    return described


def table(period: Period, choice: Choice, step_s: int | None) -> Columns:
    """One row for each step, layer and side; without a step one for each layer and side.

    residual_ratio and cosine stand in the row of the side `residual`. Numbers are arrays, NaN where they are undefined.
    """
    source, rows = period.series, choice.rows
    quantiles = None
    quantities = choice.quantities(source)
    if step_s is None:
        window = WindowMoments.from_bytes([period.total().to_bytes()], source.sides, source.adds)
        starts, ends, requests, sampled = [period.since], [period.until], [period.requests], [period.sampled]
        if choice.ranks:
            quantiles = period.quantiles(quantities, choice.ranks)[None]
    else:
        steps = period.steps(step_s)
        starts, ends = [step.start for step in steps], [step.end for step in steps]
        requests, sampled = [step.requests for step in steps], [step.sampled for step in steps]
        window = period.pooled_by(steps) if steps else WindowMoments.from_bytes([], source.sides, source.adds)
        if choice.ranks and steps:
            quantiles = period.quantiles_by(steps, quantities, choice.ranks)
    chosen = [source.layout.row_of[layer.layer, side] for layer, side in rows]
    columns: Columns = {
        "start": [iso(each) for each in starts for _ in rows],
        "end": [iso(each) for each in ends for _ in rows],
        "layer": [layer.layer for layer, _ in rows] * len(starts),
        "kind": [str(layer.kind) for layer, _ in rows] * len(starts),
        "side": [side for _, side in rows] * len(starts),
        "requests": np.repeat(np.array(requests, np.int64), len(rows)),
        "sampled": np.repeat(np.array(sampled, np.int64), len(rows)),
    }
    for name, column in side_columns(window).items():
        flat = column[:, chosen].reshape(-1)
        columns[name] = flat.astype(np.int64) if name in _COUNTS else flat
    of_quantity = {q: i for i, q in enumerate(quantities)}
    indices = {name: [source.value_of(of, row) for row in chosen] for name, of in _PER_SIDE.items()}
    indices |= {
        name: [source.value_of(name, source.layout.add_of[layer.layer]) if side == "residual" else -1 for layer, side in rows]
        for name in ADD_VALUES
    }
    values = value_columns(window.values)
    for name, index in indices.items():
        for measure, column in values.items():
            columns[f"{name}_{measure}"] = _pick(column, index)
        for i, rank in enumerate(choice.ranks):
            found = np.full((len(starts), source.values), np.nan)
            if quantiles is not None:
                found[:, list(of_quantity)] = quantiles[:, :, i]
            columns[f"{name}_q{rank:g}"] = _pick(found, index)
    return columns


def _pick(column: Floats, index: list[int]) -> Floats:
    """The columns of (T, V), one after the other by row; NaN for index -1."""
    if not column.shape[1]:
        return np.full(len(column) * len(index), np.nan)
    picked = column[:, index]
    picked[:, [i for i, each in enumerate(index) if each < 0]] = np.nan
    return picked.reshape(-1)
