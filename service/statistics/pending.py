"""What has been counted but is not, or not wholly, stored: the part of one window that one process saw.

A part has a name of its own that is drawn once. Storing it replaces what was stored of it before, so that storing the same part
again, after a failure whose outcome nobody knows, never counts anything twice.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.statistics.layers import BatchStatistics
from models.statistics.request_values import request_values
from service.statistics.channels import ChannelMoments
from service.statistics.series import Series
from service.statistics.sketches import Sketches
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
    """

    start: int
    seconds: int
    part: int
    requests: int
    sampled: int
    moments: bytes
    sketches: bytes | None


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

    def __post_init__(self) -> None:
        self.moments = WindowMoments.empty(self.series.sides, self.series.adds)
        self.sketches = Sketches(self.series.values)

    @property
    def changed(self) -> bool:
        return self.stored != (self.requests, self.sampled)

    def add(self, batches: Sequence[BatchStatistics]) -> None:
        """Takes in all samples, or none where one of the batches raises an exception."""
        values = [request_values(batch) for batch in batches]
        # fails for all that the sketches would refuse, before anything has changed
        self.moments = WindowMoments.merged([self.moments, *(WindowMoments.of(batch) for batch in batches)])
        for batch, each in zip(batches, values, strict=True):
            self.sketches.update(each)
            self.sampled += len(batch)

    def to_stored(self, *, sketches: bool = True) -> StoredPart:
        blob = self.sketches.to_bytes() if sketches else None
        return StoredPart(self.start, self.seconds, self.part, self.requests, self.sampled, self.moments.to_bytes(), blob)


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

    @property
    def changed(self) -> bool:
        return self.stored != self.sampled

    def add(self, moments: ChannelMoments, sampled: int) -> None:
        self.moments = ChannelMoments.merged([self.moments, moments])
        self.sampled += sampled

    def to_stored(self) -> StoredPart:
        return StoredPart(self.start, self.seconds, self.part, 0, self.sampled, self.moments.to_bytes(), None)
