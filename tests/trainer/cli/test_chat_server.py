"""Tests of the chat server: its answers are those of `generate`, and requests are bounded."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, config
from tests.support.trainer.tuned_model import load_tuned_model

from finetune_trainer.cli.chat_server import ChatServer
from finetune_trainer.modeling.chat import ChatModel
from finetune_trainer.modeling.generation import generate_completions

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

MAX_NEW_TOKENS = 12
QUESTION = "What is the capital of France?"
SYSTEM_CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n" + CHATML
Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a base model, and an adapter with another chat template and other tokens that end an answer."""
    folder = tmp_path_factory.mktemp("models")
    base = build(folder / "base")
    (base / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6}))
    tuned = load_tuned_model(config(), base)
    tuned.tokenizer.chat_template = SYSTEM_CHATML
    tuned.model.save_pretrained(folder / "adapter")
    tuned.tokenizer.save_pretrained(folder / "adapter")
    (folder / "adapter" / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 42]}))
    return base, folder / "adapter"


@pytest.fixture(scope="module")
def server(models: tuple[Path, Path]) -> Iterator[ChatServer]:
    server = ChatServer(0, ChatModel(*models), MAX_NEW_TOKENS)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def send(server: ChatServer, body: object, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


def ask(server: ChatServer, *turns: str, **fields: Any) -> Answer:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    response = send(server, {"messages": messages, **fields})
    return response.status, json.loads(response.read())


def read_text(answer: Answer) -> str:
    status, content = answer
    assert status == 200, content
    return str(content["choices"][0]["message"]["content"])


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_chat_server_answer_equals_that_of_generate(server: ChatServer, models: tuple[Path, Path], name: str) -> None:
    base, adapter = models
    expected = generate_completions(base, adapter if name == "tuned" else None, [QUESTION], MAX_NEW_TOKENS)
    other = "base" if name == "tuned" else "tuned"
    assert read_text(ask(server, QUESTION, model=other)) != expected[0]
    assert read_text(ask(server, QUESTION, model=name)) == expected[0]


def test_chat_server_default_model_is_tuned(server: ChatServer) -> None:
    assert read_text(ask(server, QUESTION)) == read_text(ask(server, QUESTION, model="tuned"))


def test_chat_server_earlier_turns_are_part_of_the_prompt(server: ChatServer) -> None:
    assert read_text(ask(server, "Hi", "Hello", QUESTION)) != read_text(ask(server, QUESTION))


def test_chat_server_stream_has_the_same_text_in_parts(server: ChatServer) -> None:
    response = send(server, {"messages": [{"role": "user", "content": QUESTION}], "stream": True})
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    *events, end = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    parts = [choice["delta"].get("content", "") for choice in choices]
    assert (end, choices[-1]["finish_reason"]) == ("[DONE]", "length")
    assert len(parts) > 3
    assert "".join(parts) == read_text(ask(server, QUESTION))


def test_chat_server_max_tokens_limits_the_answer(server: ChatServer) -> None:
    status, content = ask(server, QUESTION, max_tokens=2)
    assert (status, content["choices"][0]["finish_reason"]) == (200, "length")
    assert len(read_text((status, content))) < len(read_text(ask(server, QUESTION, max_tokens=10**9)))


def test_chat_server_models_are_listed(server: ChatServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/v1/models")
    models = json.loads(connection.getresponse().read())["data"]
    assert [model["id"] for model in models] == ["tuned", "base"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "Invalid JSON"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "gpt"}, 404, "model must be tuned or base"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "the model has 512 positions"),
        (b" " * 8_000_000, 413, "Content-Length must be a number up to 1000000"),
    ],
    ids=["JSON", "no messages", "role", "model", "positions", "size"],
)
def test_chat_server_invalid_request_is_refused(server: ChatServer, body: object, status: int, message: str) -> None:
    response = send(server, body)
    assert (response.status, message in json.loads(response.read())["error"]["message"]) == (status, True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example:80"}, 403), ({"Content-Type": "text/plain"}, 415)],
    ids=["name of another host", "form of another page"],
)
def test_chat_server_request_of_a_page_is_refused(server: ChatServer, headers: dict[str, str], status: int) -> None:
    assert send(server, {"messages": [{"role": "user", "content": "x"}]}, **headers).status == status


def test_chat_server_second_request_is_refused_while_busy(server: ChatServer) -> None:
    with server.is_busy:
        status, content = ask(server, QUESTION)
    assert (status, content["error"]["message"]) == (429, "another request is being answered; try again later")
