"""A server on the loopback interface that replies to graders as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a complete reply, or pieces of one."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    write: Callable[[BaseHTTPRequestHandler], None] | None = None
    """Writes the reply by itself."""


@dataclass
class Received:
    """A request as the server received it."""

    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class JudgeServer:
    """The address of the server, and what it received."""

    uri: str = ""
    requests: list[Received] = field(default_factory=list)
    most_at_once: int = 0


def build_judge_reply(content: str) -> Reply:
    """Return a chat completion with this text."""
    return Reply(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())


@contextmanager
def serve_replies(reply: Callable[[Received], Reply]) -> Iterator[JudgeServer]:
    """Serve the replies that a function returns."""
    state, lock, active = JudgeServer(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            received = Received(self.path, dict(self.headers), json.loads(content))
            with lock:
                state.requests.append(received)
                active[0] += 1
                state.most_at_once = max(state.most_at_once, active[0])
            try:
                self._send(reply(received))
            except OSError:  # the client has ended the call
                self.close_connection = True
            finally:
                with lock:
                    active[0] -= 1

        def _send(self, answer: Reply) -> None:
            if answer.write:
                self.close_connection = True
                answer.write(self)
                return
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.uri = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
