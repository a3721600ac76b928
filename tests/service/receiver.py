"""A real HTTP server on a free port that takes what is posted to it, and answers as it is told."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer


@dataclass
class Receiver:
    """What arrived; `statuses` are those of the first answers, the later ones are 204."""

    statuses: Sequence[int]
    arrived: "queue.Queue[tuple[Message, bytes]]" = field(default_factory=queue.Queue)
    url: str = ""

    def next(self) -> tuple[Message, bytes]:
        """Headers and body of the next request, waited for."""
        return self.arrived.get(timeout=60)


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    """A server until the end of the block."""
    receiver, answers = Receiver(statuses), iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(next(answers, 204))
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            receiver.arrived.put((self.headers, body))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook?token=secret-token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
