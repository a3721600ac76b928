"""Watches one model for drift: windows of its traffic in, one after the other; states, and the layers that are affected, out.

Windows accumulate until they hold enough sampled requests; the state of such a stretch is that of all its windows. A stretch ends
with the hour: an hour with too few requests is `unknown`, what is left over of others is left out. So every replica, and a process
that was started again, makes the same stretches of the same windows. While the database cannot be read, and until what waited
elsewhere is stored, nothing is judged, for some minutes: then what is known here has to do. Knows no threads and no clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.statistics.drift import LEAST_REQUESTS, Levels, ReferenceRanks, State, WindowScores, WindowTest, score_of
from models.statistics.layers import SideLayout
from models.statistics.request_values import value_places
from service.statistics.history import History
from service.statistics.pending import StoredPart
from service.statistics.retention import HOUR_S
from service.statistics.traffic import TrafficStatistics

MAX_VERDICTS = 1000
_PATIENCE_S = 300
_Kind = Literal["higher", "lower", "wider", "narrower", "undefined"]
_SHOWN = {"mean": "request_mean", "std": "request_std"}


@dataclass(frozen=True)
class Verdict:
    """What is said of a stretch of windows, seconds since 1970; `score` is -log10 of the p-value, None if nothing can be said."""

    since: int
    until: int
    requests: int
    sampled: int
    state: State
    score: float | None


@dataclass(frozen=True)
class DriftStatus:
    """What is known at a moment.

    Attributes:
        state: of the newest verdict; `unknown` before the first.
        since: when the unbroken run of this state began, seconds since 1970.
        verdicts: the newest last, `MAX_VERDICTS` at most.
        test: behind the newest verdict; None where the state is `unknown`.
        collected: sampled requests since then.
        seen: end of the last window that was looked at, seconds since 1970; 0 before the first look.
    """

    state: State
    since: int
    verdicts: tuple[Verdict, ...] = ()
    test: WindowTest | None = None
    collected: int = 0
    seen: int = 0

    def state_at(self, start: int) -> State:
        """Of the window that begins at `start`: that of the stretch it is in, or where it is in none of the last before it."""
        return next((each.state for each in reversed(self.verdicts) if each.since <= start), "unknown")


@dataclass(frozen=True)
class Affected:
    """The quantity of a layer that stands out most.

    Attributes:
        side: None for residual_ratio and cosine.
        effect: mean score of the requests, about in standard deviations of the reference; NaN if all are undefined.
        spread: mean square of the scores against the reference's; NaN if it cannot be told.
        p_value: corrected for all tests of the window.
    """

    layer: str
    side: str | None
    statistic: str
    change: _Kind
    effect: float
    spread: float
    p_value: float


class DriftWatch:
    """Follows one model; `look` is called by one thread, `status` is read by any."""

    def __init__(
        self,
        traffic: TrafficStatistics,
        ranks: ReferenceRanks,
        history: History,
        levels: Levels,
        now: float,
        storing_s: float = 0,
    ) -> None:
        """Begins with the hour before the present one, so that a restart forgets nothing.

        `storing_s`: until what others have counted is stored, once the database takes it again.
        """
        self.traffic, self.ranks, self.levels = traffic, ranks, levels
        self._history, self._storing_s = history, storing_s
        self._unread: tuple[float, float] | None = None  # the first and the last look for which the database could not be read
        self._next = _hour_of(now) - HOUR_S
        self._begin(self._next)
        self._hour_is_known = False
        self.status = DriftStatus("unknown", self._next)

    def _begin(self, start: int) -> None:
        self._since, self._requests, self._scores = start, 0, WindowScores.empty(self.ranks)

    def look(self, complete: float) -> bool:
        """Goes through the windows that ended until `complete`, seconds since 1970; whether the state is to be told.

        That is if it has changed, and the first one if it is bad: a change while no process watched is told late, not never.
        """
        window_s = self.traffic.window_s
        end = int(complete // window_s) * window_s
        if self._next - HOUR_S <= end <= self._next:
            return False
        if not 0 < end - self._next <= 2 * HOUR_S:  # the process stood still, or its clock was wrong
            self._next, self._unread = _hour_of(end) - HOUR_S, None
            self._begin(self._next)
            self._hour_is_known = False
        period = self._history.read(self.traffic, self._next, end, scores=True)
        if self._is_to_wait(complete, period.complete):
            return False
        parts: dict[int, list[StoredPart]] = {}
        for part in period.parts:
            if part.seconds == window_s:
                parts.setdefault(part.start, []).append(part)
        before = self.status
        for start in range(self._next, end, window_s):
            self._next = start + window_s
            self._add(start, parts.get(start, ()))
        self.status = replace(self.status, collected=self._scores.samples, seen=end)
        if not before.verdicts:
            return self.status.state in ("warning", "drift")
        return self.status.state != before.state

    def _is_to_wait(self, now: float, read: bool) -> bool:
        if not read:
            self._unread = self._unread[0] if self._unread else now, now
        elif self._unread and now >= self._unread[1] + self._storing_s:
            self._unread = None
        return self._unread is not None and now < self._unread[0] + _PATIENCE_S

    def _add(self, start: int, parts: Iterable[StoredPart]) -> None:
        for part in parts:
            self._requests += part.requests
            scores = None if part.scores is None else WindowScores.from_bytes(part.scores, self.ranks)
            if scores is not None:
                self._scores = self._scores.merge(scores)
        end = start + self.traffic.window_s
        if not self._requests:  # a stretch begins with a request
            self._since = end
        hour_ends = end % HOUR_S == 0
        if self._scores.samples >= LEAST_REQUESTS or (hour_ends and not self._hour_is_known):
            self._judge(end)
        if hour_ends:
            self._begin(end)
            self._hour_is_known = False

    def _judge(self, end: int) -> None:
        test = WindowTest.of(self._scores, self.ranks)
        state = test.state(self.levels)
        known = state != "unknown"
        before = self.status
        if known or before.verdicts or self._requests:  # nothing is said of the time before the first request
            begin = self._since if known else end - HOUR_S
            verdict = Verdict(begin, end, self._requests, test.samples, state, test.score if known else None)
            since = before.since if before.verdicts and before.state == state else begin
            verdicts = (*before.verdicts, verdict)[-MAX_VERDICTS:]
            self.status = DriftStatus(state, since, verdicts, test if known else None)
        else:
            self.status = DriftStatus("unknown", end)
        self._begin(end)
        self._hour_is_known = known


def _hour_of(seconds: float) -> int:
    return int(seconds // HOUR_S) * HOUR_S


def affected_layers(test: WindowTest, layout: SideLayout, level: float) -> list[Affected]:
    """The layers with a p-value of at most `level`, each with its most significant quantity, in the order of the network."""
    strangers = test.strange or test.undefined_p <= level
    strongest: dict[str, Affected] = {}
    change: _Kind
    for i, (place, side, name) in enumerate(value_places(layout)):
        layer, statistic = place.layer, _SHOWN.get(name, name)
        if strangers and test.missing[i]:
            change, p_value = "undefined", test.undefined_p
        elif test.p_values[i] <= level:
            change, p_value = _change(test, i), float(test.p_values[i])
        else:
            continue
        each = Affected(layer, side, statistic, change, float(test.effect[i]), float(test.spread[i]), p_value)
        known = strongest.get(layer)
        if known is None or by_significance(each) < by_significance(known):
            strongest[layer] = each
    return [strongest[each.layer] for each in layout.layers if each.layer in strongest]


def layer_scores(test: WindowTest, layout: SideLayout) -> dict[str, float]:
    """-log10 of the smallest p-value of each layer, in the order of the network."""
    p_values = np.where(test.missing > 0, np.minimum(test.p_values, test.undefined_p), test.p_values)
    smallest: dict[str, float] = {}
    for (place, _, _), p_value in zip(value_places(layout), p_values.tolist(), strict=True):
        smallest[place.layer] = min(p_value, smallest.get(place.layer, 1.0))
    return {layer: score_of(p_value) for layer, p_value in smallest.items()}


def by_significance(each: Affected) -> tuple[bool, float, float]:
    """A sort key: what is undefined comes first, then the smallest p-value; far out all are 0, and the effect decides."""
    return each.change != "undefined", each.p_value, -abs(np.nan_to_num(each.effect))


def _change(test: WindowTest, i: int) -> _Kind:
    if test.location[i] <= test.scale[i]:
        return "higher" if test.effect[i] > 0 else "lower"
    return "wider" if test.spread[i] > 1 else "narrower"
