"""How long windows are kept, and when they are merged into coarser ones."""

import re
from dataclasses import dataclass
from typing import Self

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
HOUR_S, DAY_S = 3600, 86_400


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `15m`, `6h`, `7d` or `2w`.

    Raises:
        ValueError: it is none of these, or 0.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is no duration; write a number and s, m, h, d or w, such as 15m")
    return int(match[1]) * UNITS_S[match[2]]


@dataclass(frozen=True)
class Retention:
    """Seconds from the start of a window until it is merged into an hour, an hour into a day, and a day is deleted."""

    windows_s: int
    hours_s: int
    days_s: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `6h,7d,365d`.

        Raises:
            ValueError: it is not three durations, each at least as long as what it is merged into.
        """
        parts = [parse_duration(part.strip()) for part in text.split(",")]
        if len(parts) != 3:
            raise ValueError(f"{text!r} has {len(parts)} durations; write three: of windows, hours and days, such as 6h,7d,365d")
        windows_s, hours_s, days_s = parts
        if windows_s < HOUR_S or hours_s < max(DAY_S, windows_s) or days_s < hours_s:
            raise ValueError(
                f"{text!r}: windows are kept 1h at least, hours 1d at least, and the coarser not shorter than the finer"
            )
        return cls(windows_s, hours_s, days_s)
