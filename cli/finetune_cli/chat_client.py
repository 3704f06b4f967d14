"""Talks to `finetune-trainer chat-server` by OpenAI's chat protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from socket import socket

from finetune_cli.errors import CommandError

BASE, TUNED = "base", "tuned"
_SERVING = re.compile(r"chat: serves .* on http://127\.0\.0\.1:(\d+)/v1")
_MAX_ANSWER_LINE_BYTES = 1_000_000
Turn = dict[str, str]


def wait_for_port(log: Iterable[str], on_line: Callable[[str], None]) -> int:
    """Return the port that the log of the server names once the models are loaded. `on_line` gets the lines until then.

    Raises `CommandError` with the last line if the log ends before.
    """
    last_line = ""
    for line in log:
        if match := _SERVING.search(line):
            return int(match[1])
        on_line(line)
        last_line = line or last_line
    raise CommandError(f"the chat server has ended: {last_line or 'its log is empty'}")


class _OpenConnection(HTTPConnection):
    """A connection over a socket that is open already."""

    def __init__(self, port: int, connected: socket) -> None:
        super().__init__("127.0.0.1", port)
        self.sock = connected


@dataclass(frozen=True)
class ChatClient:
    """A client of the server. `open_socket` returns a new connection to it; each request has its own."""

    port: int
    open_socket: Callable[[], socket]

    def ask(self, model: str, turns: Sequence[Turn], max_tokens: int) -> Iterator[str]:
        """Yield the answer in parts, as it is generated. Raises `CommandError`."""
        body = json.dumps({"model": model, "messages": turns, "max_tokens": max_tokens, "stream": True}).encode()
        connection = _OpenConnection(self.port, self.open_socket())
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise CommandError(f"the chat server refuses the request: {_read_error(response)}")
            yield from _read_parts(response)
        except (OSError, HTTPException) as error:
            raise CommandError(
                f"the connection to the chat server has ended: {error or type(error).__name__}"
            ) from None
        finally:
            connection.close()


def _read_error(response: HTTPResponse) -> str:
    try:
        return str(json.loads(response.read(_MAX_ANSWER_LINE_BYTES))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status}"


def _read_parts(response: HTTPResponse) -> Iterator[str]:
    """Yield the texts of a stream of server-sent events. Raises `CommandError` if it ends too early."""
    while line := response.readline(_MAX_ANSWER_LINE_BYTES):
        data = line.decode(errors="replace").strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data:
            yield _read_part(data)
    raise CommandError("the chat server has ended in the middle of the answer")


def _read_part(data: str) -> str:
    try:
        return str(json.loads(data)["choices"][0]["delta"].get("content", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CommandError("the chat server has sent something that is no answer") from None


@dataclass
class Conversation:
    """The turns of a conversation with each of several models, which get the same messages."""

    client: ChatClient
    models: Sequence[str]
    max_tokens: int
    system: str = ""
    _turns: dict[str, list[Turn]] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget all turns, except the system prompt."""
        self._turns = {}

    def send(self, message: str, model: str) -> Iterator[str]:
        """Yield the answer of a model in parts. An answer that was interrupted is no part of the conversation."""
        earlier = self._turns.get(model, [])
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*earlier, {"role": "user", "content": message}]
        parts: list[str] = []
        for part in self.client.ask(model, [*system, *turns], self.max_tokens):
            parts.append(part)
            yield part
        self._turns[model] = [*turns, {"role": "assistant", "content": "".join(parts)}]
