"""What every route shares."""

import asyncio
import threading
from functools import partial

from service.app import create_app
from service.settings import Settings
from service.state import State


def test_large_answers_are_made_one_after_the_other_off_the_event_loop() -> None:
    """However many requests ask for one; each gets its own, and an error reaches the request that it belongs to."""
    state = create_app(Settings()).state.normscope
    assert isinstance(state, State)
    busy, collisions, places = threading.Lock(), [], set()

    def work(number: int) -> int:
        if not busy.acquire(blocking=False):
            collisions.append(number)
        places.add(threading.get_ident())
        sum(range(300_000))  # others would begin meanwhile, if they could
        busy.release()
        if number == 3:
            raise ValueError(number)
        return number

    async def main() -> list[int | BaseException]:
        return await asyncio.gather(*(state.encode(partial(work, number)) for number in range(8)), return_exceptions=True)

    answers = asyncio.run(main())
    assert [answer for answer in answers if isinstance(answer, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(answers[3], ValueError)
    assert collisions == []
    assert threading.get_ident() not in places
