"""`plan --show-rows`: rows as they are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.data_preparation import build_config
from tests.support.trainer.plan_jobs import PlanJobWriter
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, build, chat, tokenizer, write_rows

from finetune_trainer.config.loader import load_manifest
from finetune_trainer.data import preparation
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.planning.plan import build_plan
from finetune_trainer.planning.plan_text import to_text
from finetune_trainer.planning.shown_rows import QUOTE_MARKS, TERMINAL_MARKS, ShownRow, collect_rows, format_rows
from finetune_trainer.training.methods import get_method

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5!"}


def show(
    folder: Path, rows: list[Any], count: int = 9, template: str | None = CHATML, **settings: Any
) -> list[ShownRow]:
    config, words = build_config(settings.pop("training", {}), **settings), tokenizer(template)
    files = preparation.DataFiles([(config.dataset.sources[0], [write_rows(folder / "rows", rows)])], "")
    encoding = RowEncoding(words, get_method(config))
    return collect_rows(preparation.prepare_dataset(config, files, encoding, folder / "work"), words, count)


def test_shown_rows_mark_what_is_supervised(tmp_path: Path) -> None:
    rows = show(
        tmp_path, [chat("a", "x 😀", "b", "y"), {"broken": 1}, chat("c", "z")], preparation={"maxInvalidFraction": 1}
    )
    first, second = format_rows(rows, QUOTE_MARKS).split("\n\n")
    assert first.splitlines() == [
        f"row 1: s3://data/train.jsonl line 1, {rows[0].texts[0].tokens} tokens, of which "
        f"{rows[0].texts[0].supervised_tokens} are supervised",
        *("<|im_start|>user", "a<|im_end|>", "<|im_start|>assistant", "«x 😀<|im_end|>»"),
        *("<|im_start|>user", "b<|im_end|>", "<|im_start|>assistant", "«y<|im_end|>»"),
    ]
    assert second.startswith("row 2: s3://data/train.jsonl line 3, ")
    assert len(show(tmp_path, [chat("a", "x"), chat("b", "y")], count=1)) == 1


def test_shown_rows_counts_are_those_of_the_row(tmp_path: Path) -> None:
    (row,) = show(tmp_path, [chat("a", "x")])
    words = tokenizer()
    expected = words.apply_chat_template(chat("a", "x")["messages"], tokenize=False)
    assert "".join(part.text for part in row.texts[0].parts) == expected
    assert row.texts[0].tokens == len(words(expected)["input_ids"])
    assert row.texts[0].supervised_tokens == len(words("x<|im_end|>")["input_ids"])


def test_shown_rows_leave_out_rows_for_validation(tmp_path: Path) -> None:
    rows = [{"text": f"{word} and nothing else"} for word in ("ink", "oak", "tin", "fog", "sun", "rye", "elk", "gin")]
    shown = show(tmp_path, rows, template=None, validation={"fraction": 0.5})
    assert 0 < len(shown) < len(rows)
    for row in shown:
        line = int(row.location.rpartition(" ")[2])
        assert "".join(part.text for part in row.texts[0].parts).startswith(rows[line - 1]["text"]), (
            "each row has its own location"
        )


def test_shown_rows_dpo_has_both_answers(tmp_path: Path) -> None:
    text = format_rows(show(tmp_path, [PAIR], training={"method": "dpo"}), QUOTE_MARKS)
    chosen, rejected = text.split("\n\n")
    assert chosen.startswith("row 1, chosen: s3://data/train.jsonl line 1, ")
    assert chosen.endswith("2+2?<|im_end|>\n<|im_start|>assistant\n«4<|im_end|>»")
    assert rejected.startswith("row 1, rejected: ")
    assert rejected.endswith("2+2?<|im_end|>\n<|im_start|>assistant\n«5!<|im_end|>»")


def test_shown_rows_kto_has_the_label(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "completion": "4", "label": True}, {"prompt": "2+2?", "completion": "5", "label": False}]
    shown = format_rows(show(tmp_path, rows, training={"method": "kto"}), QUOTE_MARKS).split("\n\n")
    assert [text.splitlines()[0].split(", ")[1] for text in shown] == ["label true", "label false"]
    assert shown[1].endswith("«5<|im_end|>»")


def test_shown_rows_invisible_characters_are_escaped(tmp_path: Path) -> None:
    rows = show(tmp_path, [chat("\x1b[2Jhidden\u202e", "x")], preparation={"normalizeText": False})
    text = format_rows(rows, TERMINAL_MARKS)
    assert "[U+001B][2Jhidden[U+202E]" in text
    assert text.endswith("\x1b[7mx<|im_end|>\x1b[27m")
    assert text.count("\x1b") == 2


@pytest.mark.s3
def test_plan_shows_rows_in_text_and_json(s3: S3Server, tmp_path: Path) -> None:
    jobs = PlanJobWriter(s3, tmp_path)
    jobs.upload_model(build(tmp_path / "tiny"))
    config = load_manifest(jobs.write([chat("a", "x"), chat("b", "y")]))
    plan = build_plan(config, tmp_path, row_count=1)
    assert to_text(plan).endswith("\n<|im_start|>assistant\n«x<|im_end|>»")
    (row,) = json.loads(plan.model_dump_json(by_alias=True))["rows"]
    assert row["location"] == f"s3://data/{tmp_path.name}.jsonl line 1"
    supervised = [part["text"] for part in row["texts"][0]["parts"] if part["supervised"]]
    assert supervised == ["x<|im_end|>"]
