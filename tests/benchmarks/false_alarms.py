"""How often windows without any change are called drift: a month of windows of one minute, against what is stated.

    python -m tests.benchmarks.false_alarms

Of each shipped model the samples of the reference are split anew for every window, at random, into a reference and the requests of
the window: both are then from the same source, and every alarm is a false one. The test is that of the service.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from models.artifact import load_artifact
from models.statistics.drift import LEAST_REQUESTS, Levels, ReferenceRanks, WindowScores, WindowTest, normal_scores, two_sided
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.reference import Reference
from tests.conftest import SHIPPED

MONTH = 43_200
_ONE_TEST = 0.01


class Pool:
    """The samples of a model, ordered once, so that a split costs no more sorting."""

    def __init__(self, values: NDArray[np.floating], sides: int) -> None:
        """values: (N, V), all defined."""
        self.whole = ReferenceRanks.of(values, sides)
        self._order = np.argsort(values, axis=0, kind="stable").T
        ordered, step = self.whole.ordered, self.whole.tolerance
        # how many of the pool lie below, and not above, each value and what counts as its ties
        self._low = np.stack([row.searchsorted(row - each, "left") for row, each in zip(ordered, step, strict=True)])
        self._high = np.stack([row.searchsorted(row + each, "right") for row, each in zip(ordered, step, strict=True)])

    def __len__(self) -> int:
        return self.whole.samples

    def test(self, inside: NDArray[np.bool_]) -> WindowTest:
        """A window of these samples (N,) against all others as its reference."""
        quantities, known = len(self._order), int((~inside).sum())
        chosen = inside[self._order]
        below = np.zeros((quantities, len(self) + 1), np.int32)
        np.cumsum(~chosen, axis=1, out=below[:, 1:])
        rows, columns = np.nonzero(chosen)
        twice = below[rows, self._low[rows, columns]] + below[rows, self._high[rows, columns]]
        table = normal_scores_of(known)
        reference = ReferenceRanks(
            self.whole.fingerprint,
            known,
            0,
            np.full(quantities, known),
            self.whole.ordered,
            self.whole.tolerance,
            {},
            self.whole.spread * _untied_spread(known) / _untied_spread(len(self)),
        )
        return WindowTest.of(WindowScores.of_scores(reference, table[twice].reshape(quantities, -1).T), reference)


_tables: dict[int, Floats] = {}


def normal_scores_of(known: int) -> Floats:
    """As `normal_scores`, made once for each number."""
    if known not in _tables:
        _tables[known] = normal_scores(known)
    return _tables[known]


def _untied_spread(known: int) -> float:
    """Mean square of the scores of a reference's own values where no two are ties."""
    return float((normal_scores_of(known)[1::2] ** 2).mean())


@dataclass
class Month:
    """What was counted in the windows of one model and one number of requests."""

    model: str
    requests: int
    tested: int
    reference: int
    windows: int
    tests: int = 0
    drift: int = 0
    warning: int = 0
    one_test: float = 0.0
    exact: float = 0.0

    def count(self, test: WindowTest, levels: Levels) -> None:
        """Takes in one test."""
        self.tests += 1
        self.drift += test.p_value <= levels.drift
        self.warning += test.p_value <= levels.warning
        degrees = 1 / (1 / self.tested + 1 / self.reference)
        for name, each in (("one_test", degrees), ("exact", self.tested)):
            fired = float((two_sided(test.effect * np.sqrt(each)) <= _ONE_TEST).mean())
            setattr(self, name, getattr(self, name) + (fired - getattr(self, name)) / self.tests)

    def row(self, levels: Levels) -> str:
        """Of the table; counts as for a whole month."""
        scale = MONTH / self.windows
        cells = [self.model, str(self.requests), str(self.tested), str(self.reference), str(self.tests)]
        for level, count in ((levels.drift, self.drift), (levels.warning, self.warning)):
            low, high = (scale * each for each in poisson_interval(count))
            cells += [f"{scale * self.tests * level:.2f}", f"{scale * count:.1f} ({low:.1f} to {high:.1f})"]
        cells += [f"{100 * self.one_test:.2f} %", f"{100 * self.exact:.2f} %"]
        return f"| {' | '.join(cells)} |"


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95 % interval of the expected count (Garwood 1936)."""
    low = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return float(low), float(stats.chi2.ppf(0.975, 2 * count + 2) / 2)


def simulate(pool: Pool, month: Month, levels: Levels, seed: int) -> None:
    """Tests as often as a watched model is: windows with too few requests are put together."""
    rng = np.random.default_rng(seed)
    for _ in range(month.windows * month.requests // month.tested if month.requests < LEAST_REQUESTS else month.windows):
        inside = np.zeros(len(pool), bool)
        inside[rng.choice(len(pool), month.tested, replace=False)] = True
        month.count(pool.test(inside), levels)


def row_of(folder: Path, requests: int, windows: int, levels: Levels, seed: int) -> str:
    """One row of the table; of a shipped artifact, all of which have a reference."""
    artifact = load_artifact(folder)
    layout = SideLayout(tuple(artifact.manifest.layers))
    reference = Reference.load(artifact, layout)
    assert reference is not None
    pool = Pool(reference.values, len(layout.rows))
    tested = min(max(requests, LEAST_REQUESTS), len(pool) // 2)
    month = Month(artifact.manifest.name, requests, tested, len(pool) - tested, windows)
    simulate(pool, month, levels, seed)
    return month.row(levels)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.false_alarms", description=__doc__.partition("\n")[0])
    parser.add_argument("--windows", type=int, default=MONTH, help="windows of each row; counts are given for a month of 43,200")
    parser.add_argument("--requests", type=int, nargs="+", default=[10, 100, 1000], help="sampled requests in a window")
    parser.add_argument("--rate", type=float, default=1.0, help="NORMSCOPE_DRIFT_FALSE_ALARMS_PER_MONTH")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    options = parser.parse_args()
    levels = Levels.of(options.rate)
    print(
        "| model | requests | tested | reference | tests | drift: at most | drift: found | warning: at most | warning: found ",
        end="",
    )
    print("| one test at 1 % | reference as exact |\n|" + " --- |" * 11)
    asked = [(folder, requests) for folder in sorted(SHIPPED.glob("*/*")) for requests in options.requests]
    with ProcessPoolExecutor() as processes:
        rows = [processes.submit(row_of, *each, options.windows, levels, options.seed) for each in asked]
        for row in rows:
            print(row.result(), flush=True)
    print("\nfound: with the 95 % interval of the expected number; tested: windows with fewer than 30 requests are put together,")
    print("and a window is at most half of the samples")


if __name__ == "__main__":
    main()
