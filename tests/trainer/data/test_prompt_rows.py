"""Rows for methods that generate answers: with an answer of the data, and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config
from tests.support.trainer.tiny_model import CHATML, StoredFile, tokenizer

from finetune_trainer.contract import DataSource, Reason, TrainerConfig
from finetune_trainer.data.preparation import DataFiles, PreparedData, prepare_dataset
from finetune_trainer.data.row_archive import ArchivedRow
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.grader_preview import check_graders, preview_data_answers
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.steps import count_optimizer_steps

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
PROMPT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"

ROWS: dict[str, tuple[dict[str, Any], str | None, str]] = {
    # row, answer of the data, prompt
    "prompt alone": ({"prompt": "2+2?", "total": 4}, None, PROMPT),
    "prompt and completion": ({"prompt": "2+2?", "completion": "4"}, "4", PROMPT),
    "turns that end with the user": ({"messages": [USER]}, None, PROMPT),
    "turns with an answer": ({"messages": [USER, ANSWER]}, "4", PROMPT),
    "turns after an answer": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, USER]},
        None,
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n{PROMPT}",
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "2+2?"}]}, None, PROMPT),
    "an instruction": ({"instruction": "2+2?"}, None, PROMPT),
    "an instruction with an answer": ({"instruction": "2+2?", "output": "4"}, "4", PROMPT),
    "a list of turns as prompt": ({"prompt": [USER]}, None, PROMPT),
}


def build_policy_config(**evaluation: Any) -> TrainerConfig:
    graders = evaluation.pop("graders", [{"name": "total", "numeric": {"reference": "{{item.total}}"}}])
    training = {
        "method": "grpo",
        "epochs": 1,
        "rewards": [{"grader": graders[0]["name"]}],
        "rollout": {"maxNewTokens": 9},
    }
    content = build_config({"epochs": 1}).to_json() | {"training": training, "evaluation": {"graders": graders}}
    return TrainerConfig.model_validate(content)


def prepare(folder: Path, rows: list[dict[str, Any]], config: TrainerConfig) -> PreparedData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = DataFiles(
        [(DataSource(uri="s3://data/rows.jsonl"), [StoredFile("s3://data/rows.jsonl", path)])], "sha256:0"
    )
    return prepare_dataset(config, files, RowEncoding(tokenizer(CHATML), get_method(config)), folder)


@pytest.mark.parametrize(("row", "answer", "prompt"), ROWS.values(), ids=ROWS)
def test_prompt_row_is_rendered_up_to_its_answer(
    tmp_path: Path, row: dict[str, Any], answer: str | None, prompt: str
) -> None:
    prepared = prepare(tmp_path, [row], build_policy_config())
    assert tokenizer(CHATML).decode(prepared.dataset[0]["prompt_ids"]) == prompt
    assert prepared.texts
    archived = ArchivedRow.from_columns(prepared.texts[0])
    assert archived.reference == answer
    assert archived.item == ({"total": 4} if "total" in row else {})
    assert archived.turns[-1] == ("user", "2+2?")


def test_prompt_row_of_plain_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="has only 'text', in which nothing is a prompt"):
        prepare(tmp_path, [{"text": "abc"}], build_policy_config())


def test_prompt_rows_leave_room_for_the_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * count, "total": 1} for count in (100, 240, 280)]
    prepared = prepare(tmp_path, rows, build_policy_config())
    assert (prepared.report.kept, prepared.report.rejected) == (2, {"overlength": 1})


def test_prompt_rows_without_answers_are_previewed_for_their_columns_alone(tmp_path: Path) -> None:
    config = build_policy_config()
    prepared = prepare(tmp_path, [{"prompt": f"{n}?", "total": n} for n in range(4)], config)
    previews = preview_data_answers(config, prepared)
    assert [(each.split, each.mean, each.describe()) for each in previews] == [
        ("training", None, "no answers to score in 4 rows")
    ]
    check_graders(config, prepared)
    missing = prepare(tmp_path, [{"prompt": f"{n}?"} for n in range(4)], config)
    with pytest.raises(TrainerError, match=r"total gives no score to 4 of 4 answers of the training data") as raised:
        check_graders(config, missing)
    assert raised.value.reason is Reason.DATA_INVALID


def test_steps_of_generated_answers_count_complete_groups_of_prompts() -> None:
    training = build_policy_config().training.model_copy(update={"epochs": 2.0})
    # 8 answers of a step are one prompt with 8 generations; two ranks have two prompts.
    assert [count_optimizer_steps(training, 9, ranks) for ranks in (1, 2)] == [18, 8]
    wider = training.model_copy(update={"batch_size": 3})
    with pytest.raises(TrainerError, match=r"a step has 12 answers .* no multiple of training\.rollout\.generations 8"):
        count_optimizer_steps(wider, 9)
