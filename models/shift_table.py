"""The report on shifts for people: `ShiftReport` in, text in columns out."""

from collections.abc import Iterable, Sequence

import numpy as np

from models.shift_evaluation import STRANGE_P, ShiftReport, ShiftRow
from models.statistics.drift import LEAST_REQUESTS
from models.window_trials import REQUESTS, SHIFTED, Detection

_GROUPS = {1: "on which choices were made", 2: "on which none was"}
_NAME, _SCORE, _RATE, _MOVED = 16, 14, 7, 17  # widths of columns


def shift_table(report: ShiftReport) -> str:
    """Both groups, each with the scores of single requests and the rates of windows."""
    lines = [
        f"{report.model}: shifted inputs against {report.evaluation_inputs} of the evaluation data",
        "by score: AUROC, and the fraction that passes where 95 % of the evaluation data do",
        f"Mahalanobis and kNN are fitted on {report.fitted_on} samples of the training data",
        f"strange: p-value of the layers' score <= {STRANGE_P}; of the evaluation data {report.strange:.3f}",
        f"windows: fraction called drift, at {report.false_alarms_per_month:g} false alarm a month of one-minute windows",
        f"windows of fewer than {LEAST_REQUESTS} requests are added up to as many",
        "moved: part of the layers that stand out in a window of 100, of the first, middle and last third of the network",
        *(f"note: {note}" for note in report.notes),
    ]
    for group, why in _GROUPS.items():
        rows = [row for row in report.rows if row.group == group]
        if rows:
            lines += ["", f"group {group}, {why}", *_scores(rows), "", *_windows(report.false_alarms, rows)]
    return "\n".join(lines)


def _scores(rows: Sequence[ShiftRow]) -> Iterable[str]:
    names = list(rows[0].auroc)
    yield _line("shift", [("inputs", _RATE), *((name, _SCORE) for name in names), ("strange", _RATE + 2)])
    for row in rows:
        cells = [(f"{row.auroc[name]:.3f} {row.fpr95[name]:.3f}", _SCORE) for name in names]
        yield _line(row.name, [(str(row.inputs), _RATE), *cells, (f"{row.strange:.3f}", _RATE + 2)])
    means = [(np.mean([row.auroc[name] for row in rows]), np.mean([row.fpr95[name] for row in rows])) for name in names]
    strange = np.mean([row.strange for row in rows])
    yield _line("mean", [("", _RATE), *((f"{a:.3f} {f:.3f}", _SCORE) for a, f in means), (f"{strange:.3f}", _RATE + 2)])


def _windows(false_alarms: Sequence[Detection], rows: Sequence[ShiftRow]) -> Iterable[str]:
    kinds = [(requests, shifted) for requests in REQUESTS for shifted in (0.0, *SHIFTED)]
    yield _line("requests", [(f"{requests}" if not shifted else "", _RATE) for requests, shifted in kinds])
    yield _line("shifted part", [*((f"{shifted:.0%}", _RATE) for _, shifted in kinds), ("moved", _MOVED)])
    for row in rows:
        found = {(each.requests, each.shifted): each.drift for each in (*false_alarms, *row.windows)}
        rates = [(f"{found[kind]:.3f}" if kind in found else "-", _RATE) for kind in kinds]
        yield _line(row.name, [*rates, (" ".join(f"{third:.2f}" for third in row.moved), _MOVED)])


def _line(name: str, cells: Iterable[tuple[str, int]]) -> str:
    return (f"{name:{_NAME}}" + "".join(f"{text:>{width}}" for text, width in cells)).rstrip()
