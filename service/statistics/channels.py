"""The moments of every channel over a stretch of time; one blob for all layers of a model. Mergeable; knows no storage."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from models.statistics.layers import BatchStatistics
from models.statistics.moments import Moments
from service.statistics.window import without_nonfinite_samples

_FIELDS = ("count", "mean", "m2", "minimum", "maximum", "zeros", "nonfinite")


@dataclass(frozen=True)
class ChannelMoments:
    """Moments over all samples, of the channels of all layers and sides.

    Attributes:
        joined: fields (sum of C,).
        columns: for each row of the layout, where its channels lie in `joined`.
    """

    joined: Moments
    columns: tuple[slice, ...]

    @classmethod
    def of(cls, batch: BatchStatistics) -> Self:
        """Merges the samples of a batch whose run was asked for channels.

        A sample with nonfinite elements in a channel is left out of that channel.
        """
        rows = [batch.channels(row) for row in range(len(batch.layout.rows))]
        joined = Moments(*(np.concatenate([getattr(row, name) for row in rows], axis=1) for name in _FIELDS))
        ends = np.cumsum([0, *(row.count.shape[1] for row in rows)]).tolist()
        return cls(without_nonfinite_samples(joined).pool(axis=0), tuple(slice(*each) for each in pairwise(ends)))

    @classmethod
    def merged(cls, parts: "Sequence[ChannelMoments]") -> Self:
        """All of them together; at least one, all of one layout."""
        return cls(Moments.stack([part.joined for part in parts], axis=0).pool(axis=0), parts[0].columns)

    def row(self, index: int) -> Moments:
        """Of the channels of one row (layer and side): fields (C,)."""
        return Moments(*(getattr(self.joined, name)[self.columns[index]] for name in _FIELDS))

    def to_bytes(self) -> bytes:
        """uint32 number of rows, their columns, then the fields: float32 but for the counts, compressed."""
        head = np.array([len(self.columns), *(end for each in self.columns for end in (each.start, each.stop))], "<u4")
        with np.errstate(over="ignore"):
            rest = np.stack([getattr(self.joined, name) for name in _FIELDS[1:]]).astype("<f4")
        return zlib.compress(head.tobytes() + self.joined.count.astype("<f8").tobytes() + rest.tobytes(), 1)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """The inverse."""
        data = zlib.decompress(blob)
        rows = int(np.frombuffer(data, "<u4", 1)[0])
        ends = np.frombuffer(data, "<u4", 2 * rows, 4).reshape(rows, 2).tolist()
        start = 4 + 8 * rows
        channels = (len(data) - start) // (8 + 4 * len(_FIELDS[1:]))
        count = np.frombuffer(data, "<f8", channels, start)
        rest = np.frombuffer(data, "<f4", offset=start + 8 * channels).reshape(-1, channels).astype(np.float64)
        return cls(Moments(count, *rest), tuple(slice(*pair) for pair in ends))
