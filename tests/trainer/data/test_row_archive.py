"""The texts of prepared rows: aligned with the tokens, and with digests that do not depend on the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, tokenizer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.answer_text import format_call
from finetune_trainer.data.row_archive import ArchivedRow, build_archived_row, compute_row_digest
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion

if TYPE_CHECKING:
    import datasets

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ROWS = [
    prompt_completion(f"Is {name} at home?", f"He is {name}.") for name in ("Ada", "Bob", "Cy", "Dee", "Eve", "Flo")
]
BROKEN_ROWS = [{"prompt": 1, "completion": "a"}, prompt_completion("long", "x1 " * 400), ROWS[0]]


def build_task_config(task: str | None = "generation", **dataset: Any) -> TrainerConfig:
    settings = build_config(**dataset)
    return settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"task": task})})


def read_texts(texts: datasets.Dataset | None) -> list[ArchivedRow]:
    assert texts is not None
    return [ArchivedRow.from_columns(row) for row in texts]


def decode_rows(rows: datasets.Dataset | None) -> list[str]:
    assert rows is not None
    return [tokenizer().decode(row["input_ids"]) for row in rows]


@pytest.mark.parametrize(
    "validation", [{"fraction": 0.4}, {"sources": [{"uri": "s3://data/val.jsonl"}]}], ids=["fraction", "sources"]
)
def test_archive_numbers_match_tokens(tmp_path: Path, validation: dict[str, Any]) -> None:
    preparation = {"counterfactuals": ["gender"], "maxInvalidFraction": 0.9}
    settings = build_task_config(preparation=preparation, validation=validation)
    held_out = [prompt_completion("Who is out?", "Gil.")] if "sources" in validation else []
    prepared = prepare_rows(tmp_path, [*BROKEN_ROWS, *ROWS], settings, held_out)
    for rows, texts in ((prepared.dataset, prepared.texts), (prepared.validation, prepared.validation_texts)):
        decoded, archived = decode_rows(rows), read_texts(texts)
        assert len(decoded) == len(archived) > 0
        for text, row in zip(decoded, archived, strict=True):
            assert f"{row.turns[0][1]}<|im_end|>\n<|im_start|>assistant\n{row.answer}<|im_end|>" in text


def test_archive_is_written_for_a_task_only(tmp_path: Path) -> None:
    prepared = prepare_rows(tmp_path, ROWS, build_task_config(task=None, validation={"fraction": 0.4}))
    assert (prepared.texts, prepared.validation_texts) == (None, None)


def test_archive_digest_is_equal_in_other_runs(tmp_path: Path) -> None:
    mail = prompt_completion("Mail\u200b me", "To a@b.example")
    first = prepare_rows(tmp_path / "1", [mail, *ROWS], build_task_config())
    redacting = build_task_config(preparation={"redact": ["email"], "normalizeText": False})
    second = prepare_rows(tmp_path / "2", [*reversed(ROWS[2:]), mail], redacting)
    first_digests, second_digests = ([row.digest for row in read_texts(data.texts)] for data in (first, second))
    assert second_digests == [*reversed(first_digests[3:]), first_digests[0]]
    assert len(set(first_digests)) == len(first_digests)
    assert read_texts(second.texts)[-1].answer != "To a@b.example"


def test_row_digest_depends_on_tools() -> None:
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    digests = {compute_row_digest(Chat(messages)), compute_row_digest(Chat(messages, tools))}
    assert len(digests) == 2
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in digests)


def test_archived_row_has_reasoning_and_calls_apart() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"b": 1, "a": 2}}}
    answer = {"role": "assistant", "content": "One moment.", "reasoning_content": "I add.", "tool_calls": [call]}
    row = build_archived_row("", Chat([{"role": "user", "content": "2+1"}, answer]), 5)
    assert row.answer == "One moment.\n" + format_call("add", {"a": 2, "b": 1})
    assert (row.reasoning, row.has_calls, row.turns) == ("I add.", True, (("user", "2+1"),))
    completion = build_archived_row("", PromptCompletion("2+1", "<think>I add.</think>3"), 5)
    assert (completion.answer, completion.reasoning, completion.has_calls) == ("3", "I add.", False)


def test_archived_row_without_prompt_has_no_answer() -> None:
    assert build_archived_row("", PlainText("All of it."), 1).turns == ()
    assert build_archived_row("", Chat([{"role": "assistant", "content": "Hello."}]), 1).turns == ()


def test_archive_prompt_begins_with_tool_definitions() -> None:
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}]
    tools = [{"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "sub"}}]
    definitions, question = build_archived_row("", Chat(messages, tools), 1).turns
    assert definitions[0] == "tools"
    assert [json.loads(line) for line in definitions[1].splitlines()] == tools
    assert question == ("user", "Add.")
