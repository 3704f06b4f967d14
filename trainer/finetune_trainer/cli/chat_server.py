"""`finetune-trainer chat-server`: a model for one user, with the part of OpenAI's protocol that a conversation needs.

`POST /v1/chat/completions` (also with `stream`), `GET /v1/models` and `GET /healthz`. The server listens on 127.0.0.1
alone, so that in a pod only a port-forward reaches it, and answers one request at a time. Decoding is greedy, so
parameters of sampling have no effect.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from finetune_trainer.cli.generate import GenerateRequest, fetch_models
from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.chat import ChatModel, ConversationError

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1_000_000
_MAX_DISCARDED_BYTES = 64 * 2**20
_MAX_TURNS = 500
_CLIENT_TIMEOUT_SECONDS = 30  # a silent client must not occupy a thread
_BUSY_SECONDS = 3.0
"""How long a request waits for the one before: a client has received an answer before the server has finished with
it."""
_LOCAL_HOSTS = ("127.0.0.1", "localhost")


class Turn(BaseModel):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, StringConstraints(max_length=_MAX_BODY_BYTES)]


class ChatRequest(BaseModel):
    """The fields of a chat completion that have an effect. Others are ignored."""

    model: str | None = None
    messages: list[Turn] = Field(min_length=1, max_length=_MAX_TURNS)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False


class RequestError(Exception):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ChatServer(ThreadingHTTPServer):
    """The server of one model."""

    daemon_threads = True

    def __init__(self, port: int, model: ChatModel, max_new_tokens: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.is_busy = threading.Lock()
        super().__init__(("127.0.0.1", port), _ChatHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection."""


class _ChatHandler(BaseHTTPRequestHandler):
    server: ChatServer
    timeout = _CLIENT_TIMEOUT_SECONDS
    _has_sent_headers = False

    def do_GET(self) -> None:
        """Serve the names of the models and the health."""
        if self.path == "/healthz":
            self._send_json(HTTPStatus.OK, {"status": "ok"})
        elif self.path == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "finetune"} for name in self.server.model.names]
            self._send_json(HTTPStatus.OK, {"object": "list", "data": models})
        else:
            self._send_error(HTTPStatus.NOT_FOUND, "GET /v1/models or /healthz, or POST /v1/chat/completions")

    def do_POST(self) -> None:
        """Answer a conversation."""
        try:
            self._complete_alone(self._read_request())
        except RequestError as error:
            self._send_error(error.status, str(error))
        except ConversationError as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))

    def _complete_alone(self, request: ChatRequest) -> None:
        if not self.server.is_busy.acquire(timeout=_BUSY_SECONDS):
            raise RequestError(HTTPStatus.TOO_MANY_REQUESTS, "another request is being answered; try again later")
        try:
            self._complete(request)
        finally:
            self.server.is_busy.release()

    def _read_request(self) -> ChatRequest:
        if self.path != "/v1/chat/completions":
            raise RequestError(HTTPStatus.NOT_FOUND, "POST /v1/chat/completions")
        # A page of another site, which a browser shows, can neither send JSON nor name this host.
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        if self.headers.get("Host", "").rpartition(":")[0] not in _LOCAL_HOSTS:
            raise RequestError(HTTPStatus.FORBIDDEN, "Host must be 127.0.0.1 or localhost, with the port")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self._discard_body(length)
            message = f"Content-Length must be a number up to {_MAX_BODY_BYTES}"
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        return _parse_request(self.rfile.read(int(length)), self.server.model.names)

    def _discard_body(self, length: str) -> None:
        """Read a body that is refused: a client whose connection is closed while it sends never sees the answer."""
        remaining = min(int(length), _MAX_DISCARDED_BYTES) if length.isdecimal() else 0
        while remaining and (chunk := self.rfile.read(min(remaining, 65_536))):
            remaining -= len(chunk)

    def _complete(self, request: ChatRequest) -> None:
        model, name = self.server.model, request.model or self.server.model.names[0]
        turns = [turn.model_dump() for turn in request.messages]
        requested = request.max_completion_tokens or request.max_tokens or self.server.max_new_tokens
        limit = min(requested, self.server.max_new_tokens)
        completion = _Completion(name)
        if not request.stream:
            answer = model.answer(name, turns, limit)
            self._send_json(HTTPStatus.OK, completion.build_answer(answer.text, is_cut=answer.is_cut))
            return
        answer = model.answer(name, turns, limit, lambda text: self._send_part(completion.build_part(text)))
        self._send_part(completion.build_end(is_cut=answer.is_cut))
        self.wfile.write(b"data: [DONE]\n\n")

    def _send_part(self, content: dict[str, Any]) -> None:
        """Send an event of a stream. The first one is preceded by the headers, so that errors have a status before."""
        if not self._has_sent_headers:
            self._has_sent_headers = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send_json(status, {"error": {"message": message, "type": "invalid_request_error"}})

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: conversations are private."""


class _Completion:
    """The objects that answer one request."""

    def __init__(self, model_name: str) -> None:
        self._fields = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}

    def build_answer(self, text: str, *, is_cut: bool) -> dict[str, Any]:
        """Build the complete answer."""
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": _get_finish_reason(is_cut)}
        return {**self._fields, "object": "chat.completion", "choices": [{"index": 0, **choice}]}

    def build_part(self, text: str) -> dict[str, Any]:
        """Build a part of a streamed answer."""
        return self._build_chunk({"role": "assistant", "content": text}, None)

    def build_end(self, *, is_cut: bool) -> dict[str, Any]:
        """Build the last part of a streamed answer."""
        return self._build_chunk({}, _get_finish_reason(is_cut))

    def _build_chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self._fields, "object": "chat.completion.chunk", "choices": [choice]}


def _get_finish_reason(is_cut: bool) -> str:
    return "length" if is_cut else "stop"


def _parse_request(body: bytes, names: list[str]) -> ChatRequest:
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, detail["loc"]))
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{path}: {detail['msg']}".removeprefix(": ")) from error
    if request.model not in (None, *names):
        raise RequestError(HTTPStatus.NOT_FOUND, f"model must be {' or '.join(names)}")
    return request


def serve_chat(
    request: GenerateRequest, scratch: Path, port: int, on_start: Callable[[int], None] = lambda _: None
) -> None:
    """Load the models and serve them until the process is stopped. `on_start` gets the port.

    Raises `CONFIG_INVALID` if the port is in use.
    """
    with fetch_models(request, scratch) as (model_dir, adapter_dir):
        model = ChatModel(model_dir, adapter_dir)
        try:
            server = ChatServer(port, model, request.max_new_tokens)
        except OSError as error:
            message = f"port {port}: {error.strerror}; choose another one with --port"
            raise TrainerError(Reason.CONFIG_INVALID, message) from error
        log.info("chat: serves %s on http://127.0.0.1:%d/v1", " and ".join(model.names), server.server_port)
        on_start(server.server_port)
        server.serve_forever()
