"""The sampler with a clock that the test moves."""

import pytest

from service.statistics.sampling import Sampler


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_share_is_kept_under_load(share: float) -> None:
    """Of many batches within one second, about the share is taken: within five standard deviations."""
    sampler, n = Sampler(share, Clock()), 10_000
    taken = sum(sampler.draw() for _ in range(n))
    assert abs(taken - share * n) <= 5 * (n * share * (1 - share)) ** 0.5 + 1


def test_a_quiet_service_is_seen_whole() -> None:
    """A batch that comes a second or more after the last that was taken is always taken."""
    clock = Clock()
    sampler = Sampler(1e-9, clock)
    seen = []
    for clock.now in (0.0, 0.5, 1.0, 1.9, 2.1, 3.0, 3.2):
        seen.append(sampler.draw())
    assert seen == [True, False, True, False, True, False, True]


def test_nothing_is_taken_of_a_share_of_0() -> None:
    """Not even after a second of silence."""
    clock = Clock()
    sampler = Sampler(0, clock)
    for clock.now in range(5):
        assert not sampler.draw()
