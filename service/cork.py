"""The head and the body of an answer in one packet.

The HTTP server writes both by themselves. A packet each costs a second system call here and a second wake-up of the client, which
together are a tenth of a small request.
"""

import asyncio

LARGE_BYTES = 1 << 16  # copying so much to save a packet would cost more


class Cork:
    """Stands before a transport: keeps what is written to it until more comes, or the event loop comes round.

    It has what the server's request cycle uses of a transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head: bytes | None = None
        self._has_written = False

    def write(self, data: bytes) -> None:
        """Keeps the first piece for a moment; writes all others at once."""
        if len(data) > LARGE_BYTES:
            self.flush()
        if self._head is not None:
            data, self._head = self._head + data, None
        elif not self._has_written:
            self._has_written = True
            self._head = data
            self._loop.call_soon(self.flush)  # a stream sends its head long before its first event
            return
        self._transport.write(data)

    def close(self) -> None:
        """Writes what is kept, and closes."""
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is about to end."""
        return self._transport.is_closing()

    def flush(self) -> None:
        """Writes what is kept."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)
