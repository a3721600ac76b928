"""The thread for requests that look into a model: how many it takes, when it gives up, and that nothing is left behind."""

import asyncio
import threading

import pytest

from service.engine.workroom import Task, Workroom
from service.errors import ClientGoneError, DeadlineExceededError, OverloadedError


def test_more_than_the_limit_is_refused() -> None:
    """One in hand and one that waits: a third is refused at once; when they have ended there is room again."""
    room, release = Workroom("m", 2), threading.Event()

    async def requests() -> None:
        held = [asyncio.ensure_future(room.do(lambda task: release.wait(), 60)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="NORMSCOPE_MAX_EXPERIMENTS"):
            await room.do(lambda task: True, 60)
        release.set()
        assert all(await asyncio.gather(*held))
        assert await room.do(lambda task: 7, 60) == 7

    asyncio.run(requests())
    room.close()


def test_the_time_of_a_request_is_bounded() -> None:
    """A request whose time is over is told so, whether its work has begun or not."""
    room, release = Workroom("m", 1), threading.Event()
    with pytest.raises(DeadlineExceededError):
        asyncio.run(room.do(lambda task: release.wait(), 0))
    release.set()
    room.close()


def test_work_that_nobody_waits_for_ends_at_its_next_step() -> None:
    """A request that is gone keeps its place until its work has noticed; then the place is free."""
    room, began, release, noticed = Workroom("m", 1), threading.Event(), threading.Event(), threading.Event()

    def work(task: Task) -> None:
        began.set()
        release.wait()
        try:
            task.go_on()
        except ClientGoneError:
            noticed.set()
            raise

    async def requests() -> None:
        gone = asyncio.ensure_future(room.do(work, 60))
        await asyncio.to_thread(began.wait)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        with pytest.raises(OverloadedError):
            await room.do(lambda task: True, 60)
        release.set()

    asyncio.run(requests())
    room.close()
    assert noticed.is_set()


def test_work_that_has_not_begun_is_dropped() -> None:
    """A request that is cancelled while it waits never runs, and leaves its place."""
    room, release = Workroom("m", 2), threading.Event()
    ran = []

    async def requests() -> None:
        first = asyncio.ensure_future(room.do(lambda task: release.wait(), 60))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(room.do(lambda task: ran.append(1), 60))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = asyncio.ensure_future(room.do(lambda task: True, 60))
        await asyncio.sleep(0)
        release.set()
        assert await third
        assert await first

    asyncio.run(requests())
    room.close()
    assert not ran


def test_an_error_of_the_work_reaches_the_request() -> None:
    """What the work raises is raised where it is awaited."""
    room = Workroom("m", 1)

    def fail(task: Task) -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        asyncio.run(room.do(fail, 60))
    room.close()
