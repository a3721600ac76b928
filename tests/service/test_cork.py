"""The cork with a transport that keeps what it is told, on a real event loop."""

import asyncio

from service.cork import Cork


class Told(asyncio.Transport):
    """A transport that sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said.append(data if isinstance(data, bytes) else bytes(data))

    def close(self) -> None:
        self.said.append("closed")


def test_head_and_body_are_one_packet() -> None:
    """The first two pieces leave together, all later ones by themselves."""

    async def main() -> None:
        told = Told()
        cork = Cork(told, asyncio.get_running_loop())
        for piece in (b"head", b"body", b"more"):
            cork.write(piece)
        assert told.said == [b"headbody", b"more"]
        await asyncio.sleep(0)
        assert told.said == [b"headbody", b"more"]

    asyncio.run(main())


def test_a_large_body_is_not_copied_behind_its_head() -> None:
    """Head and body are two packets then, in their order, and the body is the very object."""

    async def main() -> None:
        told = Told()
        cork = Cork(told, asyncio.get_running_loop())
        body = bytes(1 << 20)
        cork.write(b"head")
        cork.write(body)
        assert told.said == [b"head", body]
        assert told.said[1] is body

    asyncio.run(main())


def test_a_head_alone_leaves_within_a_turn_of_the_loop() -> None:
    """A stream may send nothing for long after its head."""

    async def main() -> None:
        told = Told()
        Cork(told, asyncio.get_running_loop()).write(b"head")
        assert told.said == []
        await asyncio.sleep(0)
        assert told.said == [b"head"]

    asyncio.run(main())


def test_closing_loses_nothing() -> None:
    """What is kept is written before the end."""

    async def main() -> None:
        told = Told()
        cork = Cork(told, asyncio.get_running_loop())
        cork.write(b"head")
        cork.close()
        await asyncio.sleep(0)
        assert told.said == [b"head", "closed"]

    asyncio.run(main())
