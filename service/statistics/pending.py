"""What has been counted but is not, or not wholly, stored: the part of one window that one process saw.

A part has a name of its own that is drawn once. Storing it replaces what was stored of it before, so that storing the same part
again, after a failure whose outcome nobody knows, never counts anything twice.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.statistics.drift import ReferenceRanks, WindowScores
from models.statistics.layers import BatchStatistics
from models.statistics.request_values import request_values
from service.statistics.channels import ChannelMoments
from service.statistics.series import Series
from service.statistics.sketches import Sketches, sketch_bytes
from service.statistics.window import WindowMoments


@dataclass(frozen=True)
class StoredPart:
    """One part as it is stored.

    Attributes:
        start: seconds since 1970, UTC.
        seconds: length of the window.
        part: the name of the part, unique.
        requests: inputs that were served.
        sampled: inputs that were counted.
        moments: `WindowMoments`, or for an hour of channels `ChannelMoments`.
        sketches: `Sketches`; None for channels, and where they were not asked for.
        scores: `WindowScores`; None likewise, of a model without reference, and of hours and days.
    """

    start: int
    seconds: int
    part: int
    requests: int
    sampled: int
    moments: bytes
    sketches: bytes | None
    scores: bytes | None = None


def new_part() -> int:
    """A name that no other process draws: 63 bits."""
    return secrets.randbits(63)


@dataclass
class PendingWindow:
    """The part of a window that this process saw; not safe to use from several threads."""

    series: Series
    start: int
    seconds: int
    part: int = field(default_factory=new_part)
    requests: int = 0
    sampled: int = 0
    stored: tuple[int, int] = (0, 0)
    """`requests` and `sampled` when it was last stored."""
    moments: WindowMoments = field(init=False)
    sketches: Sketches = field(init=False)
    scores: WindowScores | None = field(default=None, init=False)
    _form: StoredPart | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.moments = WindowMoments.empty(self.series.sides, self.series.adds)
        self.sketches = Sketches(self.series.values)

    @property
    def changed(self) -> bool:
        return self.stored != (self.requests, self.sampled)

    def add(self, batches: Sequence[BatchStatistics], ranks: ReferenceRanks | None = None) -> None:
        """Takes in batches, at least one, and with `ranks` how they compare with the reference.

        Takes in none where one of them raises an exception.
        """
        values = [request_values(batch) for batch in batches]
        scores = None if ranks is None else WindowScores.of(ranks, np.concatenate(values))
        # fails for all that the sketches would refuse, before anything has changed
        self.moments = WindowMoments.merged([self.moments, *map(WindowMoments.of, batches, values)])
        for each in values:
            self.sketches.update(each)
            self.sampled += len(each)
        if scores is not None:
            known = self.scores  # those of a reference that was replaced meanwhile do not mix
            self.scores = known.merge(scores) if known is not None and known.fingerprint == scores.fingerprint else scores

    def to_stored(self, *, sketches: bool = True) -> StoredPart:
        """As it is stored; made once, however often storing it fails, until something is added."""
        if not sketches:
            return self._part(None)
        if self._form is None or (self._form.requests, self._form.sampled) != (self.requests, self.sampled):
            self._form = self._part(self.sketches.to_bytes())
        return self._form

    def _part(self, sketches: bytes | None) -> StoredPart:
        scores = None if self.scores is None else self.scores.to_bytes()
        return StoredPart(
            self.start, self.seconds, self.part, self.requests, self.sampled, self.moments.to_bytes(), sketches, scores
        )

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        form = (
            0 if self._form is None else sum(map(len, (self._form.moments, self._form.sketches or b"", self._form.scores or b"")))
        )
        moments = 8 * 8 * (self.series.sides + self.series.values) + 3 * 8 * self.series.values
        return moments + self.series.values * sketch_bytes(self.sampled) + form


@dataclass
class PendingChannels:
    """The part of an hour's channel moments that this process saw."""

    start: int
    seconds: int
    moments: ChannelMoments
    sampled: int
    part: int = field(default_factory=new_part)
    stored: int = 0
    """`sampled` when it was last stored."""
    _form: StoredPart | None = field(default=None, init=False)

    @property
    def changed(self) -> bool:
        return self.stored != self.sampled

    def add(self, moments: ChannelMoments, sampled: int) -> None:
        self.moments = ChannelMoments.merged([self.moments, moments])
        self.sampled += sampled

    def to_stored(self) -> StoredPart:
        """As it is stored; made once until something is added."""
        if self._form is None or self._form.sampled != self.sampled:
            self._form = StoredPart(self.start, self.seconds, self.part, 0, self.sampled, self.moments.to_bytes(), None)
        return self._form
